"""PPO-EWMA, RPO, Muon and staggered episodes, each against numbers computed by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppo_jax
from ppo_jax import (
    agent,
    config,
    distributions,
    envs,
    export,
    losses,
    make_train,
    optimizer,
    rollout,
    sgd,
)
from ppo_jax.algorithms import ewma, ppo, rpo
from ppo_jax.config import ConfigError
from ppo_jax.envs import InvalidEnvironment, spaces, staggered
from ppo_jax.envs.stagger import first_cuts
from ppo_jax.experiment import RunOptions, train
from ppo_jax.networks import make_policy
from ppo_jax.sweep import run_sweep
from ppo_jax.train import build
from ppo_jax.types import Batch
from probe_envs import Probe

KEY = jax.random.key(0)
SMALL = {"num_envs": 4, "num_steps": 16, "hidden": (8,), "total_timesteps": 128}
CONTINUOUS = spaces.Box(-1.0, 1.0, (2,))
close = lambda found, wanted, **how: jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **how), found, wanted
)


def made(**options):
    return config.make(preset="none", **SMALL | options)


def problem(**options):
    """(policy, Config, learner, rows) of an update on 16 samples."""
    policy = make_policy(spaces.Box(-1.0, 1.0, (3,)), CONTINUOUS, hidden=(4,))
    hyper = ppo.Config(
        **{"learning_rate": 0.05, "epochs": 1, "minibatches": 1, "anneal_timesteps": np.inf}
        | options
    )
    keys = jax.random.split(KEY, 5)
    obs = jax.random.normal(keys[0], (16, 3))
    learner = ppo.make(policy, hyper).init(keys[1], obs)
    action = jax.random.normal(keys[2], (16, 2))
    dist, value = policy.apply(learner.params, obs)
    old = dist.log_prob(action) + 0.1 * jax.random.normal(keys[3], (16,))
    advantage, ones = jax.random.normal(keys[4], (16,)), jnp.ones(16)
    return policy, hyper, learner, Batch(obs, action, old, value, advantage, value + 1, ones)


@functools.cache
def updated(**options):
    """The learner after an update."""
    policy, hyper, learner, rows = problem(**options)
    return jax.jit(ppo.make(policy, hyper).update)(KEY, learner, rows)[0]


# ------------------------------------------------------------------------------------ PPO-EWMA


def test_the_lagged_parameters_by_hand():
    # β = ½: 1;  (½ · 1 + 3) / 1.5;  (¼ · 1 + ½ · 3 + 7) / 1.75.
    average = ewma.start({"w": jnp.asarray(100.0)})  # the first value has the weight 0
    found = []
    for theta in (1.0, 3.0, 7.0):
        average = ewma.advance(average, {"w": jnp.asarray(theta)}, 0.5)
        found.append(float(average.params["w"]))
    np.testing.assert_allclose(found, [1.0, 3.5 / 1.5, 5.0], rtol=1e-6)
    assert float(average.total) == 1.75


def test_the_decoupled_objective_is_that_of_the_authors():
    # π_old = 0.5, π_prox = 0.25, π_θ = 0.4, Â = 2: ρ' = 1.6 is clipped to 1.2, Â' = 1.
    log = lambda x: jnp.log(jnp.asarray(x))
    advantage, centre = ewma.decoupled(jnp.asarray(2.0), log(0.5), log(0.25))
    loss = losses.clipped_surrogate(log(0.4), centre, advantage, 0.2)
    assert float(loss) == pytest.approx(-1.2, rel=1e-5)
    # compute_losses of openai/ppo-ewma: max(−Â π_θ / π_old, −Â clip(π_θ / π_prox) π_prox / π_old).
    for new, old, prox, advantage in [
        (0.4, 0.5, 0.25, 2.0),
        (0.1, 0.3, 0.2, -1.0),
        (0.3, 0.4, 0.3, 1.0),
    ]:
        theirs = max(
            -advantage * new / old, -advantage * np.clip(new / prox, 0.8, 1.2) * prox / old
        )
        ours = ewma.decoupled(jnp.asarray(advantage), log(old), log(prox))
        loss = losses.clipped_surrogate(log(new), ours[1], ours[0], 0.2)
        assert float(loss) == pytest.approx(theirs, rel=1e-5)


def test_an_update_averages_the_parameters_before_each_step():
    first = updated().params  # at the first step the lagged policy is the policy itself
    _, _, learner, _ = problem(proximal_decay=0.5)
    after = updated(proximal_decay=0.5, epochs=2)
    mean = jax.tree.map(lambda a, b: (0.5 * a + b) / 1.5, learner.params, first)
    close(after.extra.params, mean, rtol=1e-4, atol=1e-6)
    assert float(after.extra.total) == 1.5


def test_without_a_lag_nothing_is_clipped():
    """With β = 0 the ratio to the lagged policy is always 1; its gradient is unclipped."""
    options = {"epochs": 3, "minibatches": 4}
    free = updated(clip_eps=1e6, **options)
    close(updated(proximal_decay=0.0, **options).params, free.params, rtol=1e-4, atol=1e-6)
    lagged = updated(proximal_decay=0.9, **options).params
    clipped = updated(**options).params
    kernel = lambda params: np.asarray(params["actor"]["head"]["kernel"])
    assert not np.allclose(kernel(lagged), kernel(free.params), rtol=1e-3)
    assert not np.allclose(kernel(lagged), kernel(clipped), rtol=1e-3)


@pytest.mark.slow
def test_the_loss_receives_the_prepared_samples_in_every_form_of_an_update(monkeypatch):
    options = {"proximal_decay": 0.9, "epochs": 2, "minibatches": 2, "normalize_advantage": False}
    vector = updated(**options)
    close(updated(proximal_decay=0.9).params, updated().params, rtol=1e-3, atol=1e-5)
    stopped = updated(target_kl=1e6, **options)
    parts = updated(micro_batches=4, **options)
    monkeypatch.setattr(sgd, "FEW_PARAMS", 0)
    trees = updated.__wrapped__(**options)
    for other in (stopped, parts, trees):
        close(other.params, vector.params, rtol=1e-3, atol=1e-5)
        close(other.extra.params, vector.extra.params, rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------------------- RPO


def test_the_noise_is_on_the_mean():
    _, _, _, rows = problem()
    moved = rpo.perturbed(KEY, rows, 0.5)
    noise = rows.action - moved.action
    assert float(jnp.abs(noise).max()) <= 0.5 and float(noise.std()) > 0.2
    mean, log_std = jnp.full((16, 2), 0.3), jnp.full((16, 2), -0.2)
    theirs = distributions.DiagGaussian(mean + noise, log_std).log_prob(rows.action)
    ours = distributions.DiagGaussian(mean, log_std).log_prob(moved.action)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_each_gradient_step_has_its_own_noise():
    policy, hyper, learner, rows = problem(rpo_alpha=0.5)
    prepare = ppo._preparation(policy, hyper, KEY)
    later = dataclasses.replace(learner, step=learner.step + 1)
    one, again, two = (prepare(x, rows)[1].action for x in (learner, learner, later))
    np.testing.assert_array_equal(one, again)
    assert not np.any(one == two) and not np.any(one == rows.action)


# ---------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("name", ["log_std", "content", "position"])
def test_parameters_that_multiply_no_input_are_no_matrices(name):
    params = {name: jnp.ones((3, 2)), "layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = optimizer.make_optimizer(learning_rate=1.0, weight_decay=0.1)
    step, _ = decay.update(zeros, decay.init(params), params)
    assert not np.any(step[name]) and not np.any(step["layer"]["bias"])
    np.testing.assert_allclose(step["layer"]["kernel"], -0.1, rtol=1e-6)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    muon = optimizer.scale_by_muon(eps=1e-8)
    direction, _ = muon.update(grads, muon.init(params), params)
    np.testing.assert_allclose(direction[name], 1.0, rtol=1e-5)  # that of Adam


def test_reppo_staggers_first_episodes():
    assert config.make(preset="none", algorithm="reppo", env="Pendulum-v1", stagger=True).stagger


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """The five iterations of Jordan et al. 2024 for a matrix with no more rows than columns."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_a_step_of_muon_by_hand():
    grads = {
        "kernel": jnp.asarray([[0.3, -0.1, 0.2], [0.05, 0.4, -0.2]]),
        "bias": jnp.asarray([0.02, -0.5]),
        "filters": jnp.full((2, 2, 1, 3), 0.01),
    }
    muon = optimizer.scale_by_muon(eps=1e-8)
    direction, _ = muon.update(grads, muon.init(grads), grads)
    wanted = 0.2 * np.sqrt(3) * newton_schulz(np.asarray(grads["kernel"]))
    np.testing.assert_allclose(direction["kernel"], wanted, rtol=1e-4, atol=1e-5)
    singular = np.linalg.svd(np.asarray(direction["kernel"]) / (0.2 * np.sqrt(3)))[1]
    assert np.all((singular > 0.6) & (singular < 1.3))
    adam = optax.scale_by_adam(eps=1e-8)
    theirs, _ = adam.update(grads, adam.init(grads))
    for name in ("bias", "filters"):
        np.testing.assert_allclose(direction[name], theirs[name], rtol=1e-5)


def test_an_update_gives_muon_matrices_and_not_one_vector():
    policy, hyper, learner, rows = problem(optimizer="muon", weight_decay=0.1, minibatches=4)
    trained = jax.jit(ppo.make(policy, hyper).update)(KEY, learner, rows)[0]
    step = lambda name: np.asarray(trained.params["actor"][name] - learner.params["actor"][name])
    assert np.abs(step("log_std")).max() > 1e-3
    decayed = optimizer.make_optimizer(0.5, learning_rate=0.05, adam=optimizer.scale_by_muon)
    assert type(decayed.init(learner.params)) is optimizer.OptimizerState
    same = sgd.as_vector(optimizer.init(learner.params, decayed), lambda params, rows: (0.0, {}))
    assert same[0].params is learner.params


# ------------------------------------------------------------------------------------- stagger


class Fixed(Probe):
    """Episodes of ten steps; the observation is the time, and action 2 ends an episode."""

    def __init__(self, time_limit: float | None = 10):
        super().__init__(spaces.Box(0.0, 10.0, (1,)), time_limit=time_limit)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        time = state + 1
        obs = time.astype(jnp.float32)[None]
        return obs, time, jnp.float32(1), action == 2, time == 10, {}


def test_the_first_cuts_by_hand():
    np.testing.assert_array_equal(first_cuts(4, 10), [3, 5, 8, 0])
    np.testing.assert_array_equal(first_cuts(5, 3), [1, 2, 2, 0, 0])


def ends(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ends of episodes [T, N], cut ones [T, N]) of staggered environments."""
    vector = envs.vectorize(staggered(Fixed()), 4, len(actions))

    def step(state, action):
        _, state, _, terminated, truncated, info = vector.step(KEY, state, action)
        return state, (terminated | truncated, info["shortened"])

    return jax.lax.scan(step, vector.reset(KEY)[1], jnp.asarray(actions))[1]


def test_episodes_end_at_different_times_and_only_the_first_is_cut():
    done, cut = ends(np.zeros((25, 4), np.int32))
    times = [(np.flatnonzero(done[:, i]) + 1).tolist() for i in range(4)]
    assert times == [[3, 13, 23], [5, 15, 25], [8, 18], [10, 20]]
    assert [(np.flatnonzero(cut[:, i]) + 1).tolist() for i in range(4)] == [[3], [5], [8], []]


def test_an_episode_that_has_ended_before_is_not_cut():
    actions = np.zeros((25, 4), np.int32)
    actions[1] = 2  # all first episodes end after two steps
    done, cut = ends(actions)
    assert not np.any(cut)
    assert [(np.flatnonzero(done[:, i]) + 1).tolist() for i in range(4)] == [[2, 12, 22]] * 4


def test_metrics_count_whole_episodes_and_the_value_of_a_cut_state_is_bootstrapped():
    """Action 2 does not exist for the policy, so that all later episodes last ten steps."""
    program = build(made(num_steps=30, stagger=True, total_timesteps=120), Fixed())
    state = jax.jit(program.init)(KEY)
    collect = rollout.Collector(program.vector_env, program.policy, 30, 0.99)
    later, trajectory = jax.jit(collect)(KEY, state.learner.params, state.rollout)
    found = {name: float(x) for name, x in later.metrics.items()}
    assert found["episodes"] == 2 + 2 + 2 + 3 and found["episode_length"] == 10
    assert found["reused_resets"] == found["lost_cuts"] == 0
    assert trajectory.done[2, 0] and not trajectory.terminated[2, 0]
    value = program.policy.value(state.learner.params, jnp.asarray([[3.0]]))
    np.testing.assert_allclose(trajectory.next_value[2, 0], value[0], rtol=1e-5)
    np.testing.assert_array_equal(later.env_state.env_state.left, 0)
    restarted = jax.jit(program.restart)(dataclasses.replace(state, rollout=later))
    np.testing.assert_array_equal(restarted.rollout.env_state.env_state.left, [3, 5, 8, 0])


# -------------------------------------------------------------------------------------- options

WRONG = [
    ({"rpo_alpha": 0.5, "squash": True, "env": "Pendulum-v1"}, "squash=False"),
    ({"rpo_alpha": -0.1}, "rpo_alpha is -0.1; it must be >= 0"),
    ({"proximal_decay": 1.5}, "proximal_decay is 1.5; it must be >= 0 and <= 1"),
    ({"adam_reset": True, "optimizer": "muon"}, "use optimizer=adam or adam_reset=False"),
    ({"optimizer": "sgd"}, "one of adam, muon"),
    ({"stagger": True, "num_envs": 1}, "use more environments or stagger=False"),
    (
        {"stagger": True, "algorithm": "reinforce", "num_steps": 500},
        "determines itself when episodes start",
    ),
    ({"value_bins": 11}, "value_bins is 11, which a critic with value_head=scalar does not use"),
    ({"value_low": -1.0, "value_head": "quantile"}, "use value_head=two_hot or hl_gauss"),
    ({"value_low": 3.0, "value_high": 3.0, "value_head": "two_hot"}, "value_low must be less"),
    ({"value_head": "two_hot", "value_clip_eps": 0.2}, "or value_clip_eps=None"),
    ({"value_head": "hl_gauss", "algorithm": "reinforce", "num_steps": 500}, "no critic here"),
    ({"norm": "layer", "hidden": ()}, "norm=layer changes the hidden layers, but there are none"),
    ({"residual": True, "norm": "rms", "hidden": ()}, "residual changes the hidden layers"),
    ({"residual": True, "norm": "rms", "hidden": (8, 16)}, "--hidden 16 16"),
    ({"residual": True}, "--norm layer or --norm rms"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_an_option_without_an_effect_is_refused(options, message):
    with pytest.raises(ConfigError) as error:
        made(**{"total_timesteps": 10_000} | options)
    assert message in str(error.value)


def test_an_option_that_does_not_fit_the_environment_is_refused():
    with pytest.raises(ConfigError, match="the actions are Discrete"):
        build(made(rpo_alpha=0.5))
    with pytest.raises(InvalidEnvironment, match="has no time limit"):
        build(made(stagger=True), Fixed(None))
    with pytest.raises(InvalidEnvironment, match="resets them itself"):
        build(made(stagger=True, env="gymnasium:CartPole-v1"))
    with pytest.raises(ValueError, match="returns a Categorical"):
        rpo.require_gaussian(distributions.Categorical(jnp.zeros(2)))


VARIANTS = [
    {"proximal_decay": 0.9, "stagger": True, "norm": "layer", "optimizer": "muon"},
    {"env": "Pendulum-v1", "rpo_alpha": 0.5, "value_head": "hl_gauss", "adam_reset": True},
    {"memory": "gru", "num_steps": 8, "minibatches": 2, "proximal_decay": 0.9, "parts": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS)
def test_variants_train_together(options):
    state, metrics = jax.jit(make_train(made(**options)))(KEY)
    found = jax.tree.map(lambda x: bool(jnp.all(jnp.isfinite(x))), state.learner.params)
    assert all(jax.tree.leaves(found)) and int(state.update) == len(metrics["env_step"])


RUNS = {
    "critic": {"value_head": "hl_gauss", "norm": "rms", "stagger": True, "proximal_decay": 0.9},
    "images": {"env": "Breakout-MinAtar", "network": "impala", "optimizer": "muon"},
    "blocks": {"residual": True, "norm": "layer", "value_head": "quantile", "weight_decay": 0.1},
    "robust": {"env": "Pendulum-v1", "rpo_alpha": 0.5, "adam_reset": True, "objective": "simple"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_exactly_and_its_agent_loads_evaluates_and_is_exported(name, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    hold = {"anneal_timesteps": 128.0}
    settings = made(**RUNS[name] | hold)
    quiet = {"eval_episodes": 0, "log_every": 1}
    assert train(settings, RunOptions(run_dir=whole, **quiet)).exit_code == 0
    short = made(**RUNS[name] | hold | {"total_timesteps": 64})
    assert train(short, RunOptions(run_dir=half, **quiet)).exit_code == 0
    assert train(settings, RunOptions(resume=half, **quiet)).exit_code == 0
    one, two = (agent.read_parts(path).params for path in (whole, half))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    act = ppo_jax.load(half)
    obs = np.zeros(act.observation_space.shape, np.float32)
    assert np.all(np.isfinite(act(obs)))
    for form in ("safetensors", "stablehlo"):
        assert export.export(half, form, tmp_path / form).max_difference == 0
    assert np.all(np.isfinite(ppo_jax.evaluate(half, episodes=2).episode_return))


@pytest.mark.slow
def test_variants_vary_in_a_sweep():
    settings = made()
    points = [{}, {"proximal_decay": 0.5}, {"proximal_decay": 0.9}, {"weight_decay": 0.1}]
    points += [{"stagger": True}, {"optimizer": "muon"}, {"norm": "layer"}]
    _, metrics = run_sweep(settings, points, 2)
    found = [tuple(losses_of) for losses_of in metrics["policy_loss"][:, :, -1].tolist()]
    # The first episode that is cut would have 125 steps, more than the two rollouts have.
    assert found[4] == found[0] and len({*found}) == len(points) - 1


@pytest.mark.slow
def test_a_lagged_policy_starts_from_the_parameters_of_another_run(tmp_path):
    settings = made()
    source, target = tmp_path / "source", tmp_path / "target"
    assert train(settings, RunOptions(run_dir=source, eval_episodes=0)).exit_code == 0
    lagged = dataclasses.replace(
        settings, hyper=dataclasses.replace(settings.hyper, proximal_decay=0.9)
    )
    options = RunOptions(run_dir=target, init_from=source, eval_episodes=0)
    assert train(lagged, options).exit_code == 0
