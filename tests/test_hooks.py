"""Optional hooks of an algorithm's Config, and algorithms without any of them."""

import dataclasses
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import rollout, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms import ALGORITHMS, actor_critic, hooks, ppo, reinforce
from ppo_jax.config import ConfigError
from ppo_jax.config.options import option
from ppo_jax.envs import make
from ppo_jax.runs.folder import checkpoints_of
from ppo_jax.train import build, make_train
from ppo_jax.types import Algorithm
from probe_envs import RewardIsAction

SMALL: dict[str, Any] = {
    "preset": "none", "num_envs": 4, "num_steps": 16, "total_timesteps": 128, "hidden": (8,),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plain:
    """A Config with one option and without hooks."""

    step_size: float = option(0.1, "step size", low=0)


def descent(policy, config, optimizer=None):
    """Gradient descent on the score-function loss, with an update of three arguments."""

    def init(key, obs):
        params = policy.init(key, obs)
        return sgd.LearnerState(params, (), jnp.zeros((), jnp.int32))

    def update(key, learner, batch):
        def loss(params):
            return -jnp.mean(policy.apply(params, batch.obs)[0].log_prob(batch.action))

        value, grads = jax.value_and_grad(loss)(learner.params)
        params = jax.tree.map(lambda p, g: p - config.step_size * g, learner.params, grads)
        return dataclasses.replace(learner, params=params, step=learner.step + 1), {"loss": value}

    return Algorithm(init, lambda t: estimate_gae(t, gamma=0.9, lambda_=0.9), update)


@pytest.fixture
def algorithm(monkeypatch):
    """Register a user-defined algorithm with a given Config under a name."""

    def register(config):
        own = types.SimpleNamespace(Config=config, make=descent)
        monkeypatch.setitem(ALGORITHMS, "a2c", own)
        return {**SMALL, "algorithm": "a2c"}

    return register


def test_a_config_without_hooks_trains(algorithm):
    """This Config has no gamma, anneal_timesteps or minibatches."""
    config = configs.make(**algorithm(Plain), normalize_reward=True)
    state, metrics = jax.jit(make_train(config, RewardIsAction()))(jax.random.key(0))
    assert state.learner.step == 2 and np.isfinite(metrics["loss"]).all()
    static, floats = configs.split(config)
    assert floats["step_size"] == 0.1 and configs.merge(static, floats) == config
    assert configs.promises(config) == rollout.PROMISES


def test_the_defaults_of_the_hooks():
    config, collect = Plain(), object()
    assert hooks.critic(config) == "v"
    assert hooks.collector(config, collect) is collect
    assert hooks.resolve(config, None) is config
    assert hooks.divisors(config) == hooks.promises(config) == {}
    hooks.check(config, None, None)


def test_each_hook_is_asked(algorithm):
    @dataclasses.dataclass(frozen=True)
    class Hooked(Plain):
        critic: ClassVar[str] = "none"
        promises: ClassVar[dict] = {"broken": "what it means"}
        pieces: int | None = option(None, "divides the rows", low=1)

        def resolve(self, env):
            return dataclasses.replace(self, pieces=self.pieces or env.time_limit)

        def divisors(self):
            return {"pieces": self.pieces or 1}

        def check(self, run, env):
            if run.num_envs == 3:
                raise ValueError("not three")

    config = configs.make(**algorithm(Hooked))
    assert configs.resolve(config, make("CartPole-v1")).hyper.pieces == 500
    assert configs.promises(config) == rollout.PROMISES | {"broken": "what it means"}
    with pytest.raises(ConfigError, match=r"4 x 16 = 64 does not divide into 5 pieces"):
        configs.make(**algorithm(Hooked), pieces=5)
    with pytest.raises(ConfigError, match="not three"):
        configs.make(**algorithm(Hooked) | {"num_envs": 3})
    program = build(configs.make(**algorithm(Hooked), pieces=4), RewardIsAction())
    assert program.policy.critic == "none"
    state = program.init(jax.random.key(0))
    assert "critic" not in state.learner.params
    assert np.isfinite(program.step(state)[1]["loss"])


def test_another_collector_is_what_the_step_calls(algorithm):
    @dataclasses.dataclass(frozen=True)
    class Counted(Plain):
        def collector(self, collect):
            assert (collect.num_steps, collect.gamma) == (16, 0.99)

            def counted(key, params, state):
                state, trajectory = collect(key, params, state)
                metrics = {"mine": jnp.sum(trajectory.weight)}
                return dataclasses.replace(state, metrics=metrics), trajectory

            return counted

    program = build(configs.make(**algorithm(Counted)), RewardIsAction())
    assert program.step(program.init(jax.random.key(0)))[1]["mine"] == 4 * 16


def test_reinforce_collects_whole_episodes():
    """Episodes of one step are counted if they could have lasted five steps: 4 x 12."""
    config = configs.make(**SMALL, algorithm="reinforce", time_limit=5)
    program = build(config, RewardIsAction())
    state = program.init(jax.random.key(0))
    plain = rollout.Collector(program.vector_env, program.policy, 16, 0.99)
    arguments = (state.key, state.learner.params, state.rollout)
    assert plain(*arguments)[0].metrics["episodes"] == 4 * 16
    whole = hooks.collector(config.hyper, plain)
    assert whole(*arguments)[0].metrics["episodes"] == 4 * 12
    assert program.step(state)[1]["episodes"] == 4 * 12


@pytest.mark.parametrize(("limit", "expected"), [(500.0, 500), (None, None), (np.inf, None)])
def test_reinforce_takes_the_time_limit_of_the_environment(limit, expected):
    env = types.SimpleNamespace(time_limit=limit)
    assert reinforce.Config().resolve(env).time_limit == expected
    assert reinforce.Config(time_limit=7).resolve(env).time_limit == 7


def test_reinforce_promises_that_episodes_end():
    config = configs.make(**SMALL, algorithm="reinforce", time_limit=16)
    assert {*configs.promises(config)} == {"unfinished_episodes", "reused_resets", "lost_cuts"}


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        ("ppo", {"minibatches": 4}),
        ("ppo", {"minibatches": 2, "micro_batches": 2}),
        ("ppo_kl", {"minibatches": 4}),
        ("a2c", {"num_envs": 1, "num_steps": 1, "normalize_advantage": True}),
        ("trpo", {"num_envs": 1, "num_steps": 1, "critic_minibatches": 1}),
        ("actor_critic", {"num_envs": 1, "num_steps": 1}),
    ],
)
def test_single_rows_are_not_normalised(algorithm, values):
    values = {"num_envs": 1, "num_steps": 4, "total_timesteps": 8, "algorithm": algorithm} | values
    with pytest.raises(ConfigError, match="minibatches of a single row"):
        configs.make(preset="none", **values)
    configs.make(preset="none", **values | {"normalize_advantage": False})


@pytest.mark.parametrize(
    ("algorithm", "values", "message"),
    [
        ("ppo", {"minibatches": 7}, "does not divide into 7 minibatches"),
        ("ppo", {"micro_batches": 7}, "does not divide into 28 minibatches x micro_batches"),
        ("ppo_kl", {"minibatches": 7}, "does not divide into 7 minibatches"),
        ("trpo", {"critic_minibatches": 7}, "does not divide into 7 critic_minibatches"),
        ("actor_critic", {"memory": "gru"}, "a Q-function, which cannot be recurrent"),
        ("actor_critic", {"shared_torso": True}, "shares no torso"),
    ],
)
def test_what_an_algorithm_refuses(algorithm, values, message):
    with pytest.raises(ConfigError, match=message):
        configs.make(**SMALL | values, algorithm=algorithm)


def test_gradients_of_micro_batches_are_those_of_the_minibatch():
    def trained(**options):
        config = configs.make(**SMALL, normalize_advantage=False, **options)
        return jax.jit(make_train(config))(jax.random.key(0))[0].learner.params

    whole, parts = trained(), trained(micro_batches=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
    bits = jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts)
    assert not all(jax.tree.leaves(bits)), "the sums are the same bits: nothing was accumulated"


def test_runs_that_are_older_than_an_option_of_their_algorithm_go_on(tmp_path):
    """A config.json and checkpoints from before the option `micro_batches`."""
    config = configs.make(**SMALL)
    values = configs.to_json(config)
    del values["micro_batches"]
    assert configs.from_json(values) == config
    state = {"x": jnp.arange(3.0)}
    checkpoints = checkpoints_of(tmp_path, config)
    del checkpoints.identity["micro_batches"]
    checkpoints.save(1, state)
    shapes = jax.eval_shape(lambda: state)
    assert checkpoints_of(tmp_path, config).restore(shapes)[0] == 1
    changed = dataclasses.replace(config, hyper=ppo.Config(micro_batches=2))
    with pytest.raises(Exception, match="micro_batches"):
        checkpoints_of(tmp_path, changed).restore(shapes)


def test_a_penalty_is_a_term_of_the_loss_of_ppo():
    program = build(configs.make(**SMALL))
    state = program.init(jax.random.key(0))
    collect = rollout.Collector(program.vector_env, program.policy, 16, 0.99)
    trajectory = collect(state.key, state.learner.params, state.rollout)[1]
    batch = rollout.flatten_steps(program.algorithm.estimate(trajectory))

    def penalty(new, rows):
        value = 3.0 * jnp.mean(new.log_prob - rows.log_prob + 1.0)
        return value, {"penalty": value}

    loss, metrics = ppo.make_loss(program.policy, ppo.Config())(state.learner.params, batch)
    more, others = ppo.make_loss(program.policy, ppo.Config(), penalty)(state.learner.params, batch)
    np.testing.assert_allclose(more, loss + 3.0, rtol=1e-5)
    assert others["loss"] == more and others.keys() == metrics.keys() | {"penalty"}


def test_a_critic_of_actions_is_a_hook():
    assert hooks.critic(actor_critic.Config()) == "q"
    assert hooks.critic(reinforce.Config()) == "none"
    assert hooks.critic(reinforce.Config(baseline="value")) == "v"
