"""PPO: agreement of its loss and whole updates with peers, weight by weight."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms import ppo
from ppo_jax.distributions import Categorical
from ppo_jax.envs import spaces
from ppo_jax.networks import Policy, make_policy
from ppo_jax.rollout import flatten_steps
from ppo_jax.types import Batch, LearnerState, Trajectory
from reference import (
    Golden,
    actor_critic,
    assert_close,
    sb3_params,
    sb3_policy,
    sb3_trajectory,
    spinup_policy,
    spinup_rows,
    table_inputs,
    table_policy,
    under,
)

LOSS, UPDATE = Golden("02_ppo_loss"), Golden("09_full_update")


# --- 02: one loss and its gradients; the policy is a table of its own outputs ---------------


def check_loss(kind: str, case: str, config: ppo.Config, renamed: dict[str, str]) -> None:
    """Compare metrics under the peer's names, and all gradients that were recorded."""
    expected = LOSS(f"{kind}/{case}")
    params, rows = table_inputs(kind)
    loss_fn = ppo.make_loss(table_policy(kind), config)
    (_, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, rows)
    for ours, theirs in renamed.items():
        np.testing.assert_allclose(
            metrics[ours], expected[theirs], rtol=1e-5, atol=1e-6, err_msg=theirs
        )
    for name, gradient in grads.items():
        np.testing.assert_allclose(
            gradient, expected[f"grad_{name}"], rtol=1e-4, atol=1e-7, err_msg=name
        )


KINDS = pytest.mark.parametrize("kind", ["categorical", "gaussian"])


@KINDS
def test_loss_equals_sb3(kind):
    """SB3's value loss has no factor ½, so its coefficient is half of ours."""
    expected = LOSS(f"{kind}/sb3_ppo_A")
    config = ppo.Config(
        clip_eps=float(expected["hp/clip_range"]),
        value_coef=2 * float(expected["hp/vf_coef"]),
        entropy_coef=float(expected["hp/ent_coef"]),
        normalize_advantage=bool(expected["hp/normalize_advantage"]),
    )
    names = ("loss", "policy_loss", "approx_kl", "clip_fraction")
    check_loss(kind, "sb3_ppo_A", config, {n: n for n in names})


@KINDS
@pytest.mark.parametrize("case", ["sb3_ppo_A", "sb3_ppo_B", "sb3_ppo_C"])
def test_settings_of_the_sb3_cases_are_as_stated(kind, case):
    """B and C clip the value instead of taking the larger error: composed here from parts."""
    expected = LOSS(f"{kind}/{case}")
    params, rows = table_inputs(kind)
    dist, value = table_policy(kind).apply(params, None)
    log_prob = dist.log_prob(rows.action)
    advantage = rows.advantage
    if expected["hp/normalize_advantage"]:
        advantage = losses.normalize(advantage)
    policy_loss = losses.mean(
        losses.clipped_surrogate(
            log_prob, rows.log_prob, advantage, float(expected["hp/clip_range"])
        )
    )
    if "hp/clip_range_vf" in expected:
        eps = float(expected["hp/clip_range_vf"])
        value = rows.value + jnp.clip(value - rows.value, -eps, eps)
    value_loss = 2 * losses.mean(losses.squared_error(value, rows.target))
    np.testing.assert_allclose(policy_loss, expected["policy_loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value_loss, expected["value_loss"], rtol=1e-5, atol=1e-6)
    entropy = losses.mean(dist.entropy())
    np.testing.assert_allclose(-entropy, expected["entropy_loss"], rtol=1e-5, atol=1e-6)
    explained = losses.explained_variance(rows.value, rows.target)
    np.testing.assert_allclose(explained, expected["explained_variance"], rtol=1e-5)


@KINDS
@pytest.mark.parametrize("case", ["cleanrl_A", "cleanrl_B"])
def test_loss_equals_cleanrl(kind, case):
    hp = {k[3:]: v.item() for k, v in LOSS(f"{kind}/{case}").items() if k.startswith("hp/")}
    config = ppo.Config(
        clip_eps=hp["clip_coef"],
        value_clip_eps=hp["clip_coef"] if hp["clip_vloss"] else None,
        entropy_coef=hp["ent_coef"],
        value_coef=hp["vf_coef"],
        normalize_advantage=bool(hp["norm_adv"]),
    )
    renamed = {
        "loss": "loss",
        "policy_loss": "pg_loss",
        "value_loss": "v_loss",
        "entropy": "entropy_loss",
        "approx_kl": "approx_kl",
        "clip_fraction": "clipfrac",
    }
    check_loss(kind, case, config, renamed)


@KINDS
def test_loss_equals_spinningup(kind):
    clip_eps = float(LOSS(f"{kind}/spinup_ppo")["hp/clip_ratio"])
    config = ppo.Config(clip_eps=clip_eps, value_coef=2.0, normalize_advantage=False)
    renamed = {"policy_loss": "loss_pi", "clip_fraction": "clipfrac"}
    check_loss(kind, "spinup_ppo", config, renamed)


@pytest.mark.parametrize("case", ["rlax_clip_eps0.1", "rlax_clip_eps0.2"])
def test_surrogate_equals_rlax(case):
    expected = LOSS(f"categorical/{case}")
    eps = float(expected["hp/epsilon"])
    config = ppo.Config(clip_eps=eps, value_coef=0.0, normalize_advantage=False)
    params, rows = table_inputs("categorical")
    loss_fn = ppo.make_loss(table_policy("categorical"), config)
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads["logits"], expected["grad_logits"], rtol=1e-4, atol=1e-7)


def test_entropy_and_policy_gradient_equal_rlax():
    params, rows = table_inputs("categorical")
    for case, loss in {
        "rlax_entropy": lambda z: -losses.mean(Categorical(z).entropy()),
        "rlax_pg": lambda z: losses.mean(
            losses.policy_gradient(Categorical(z).log_prob(rows.action), rows.advantage)
        ),
    }.items():
        expected = LOSS(f"categorical/{case}")
        value, grad = jax.value_and_grad(loss)(params["logits"])
        np.testing.assert_allclose(value, expected["loss"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad, expected["grad_logits"], rtol=1e-4, atol=1e-7)


@KINDS
@pytest.mark.parametrize("case", ["torchrl_clip_A", "torchrl_clip_B"])
def test_objective_equals_torchrl(kind, case):
    """Its clipped value loss is ours without the factor ½."""
    expected = LOSS(f"{kind}/{case}")
    hp = {k[3:]: v.item() for k, v in expected.items() if k.startswith("hp/")}
    config = ppo.Config(
        clip_eps=hp["clip_epsilon"],
        value_clip_eps=hp["clip_value"] or None,
        value_coef=2 * hp["critic_coeff"],
        entropy_coef=hp["entropy_coeff"],
        normalize_advantage=False,
    )
    renamed = {"policy_loss": "loss_objective", "entropy": "entropy"}
    check_loss(kind, case, config, renamed)


@KINDS
def test_padding_full_of_infinities_changes_nothing(kind):
    params, rows = table_inputs(kind)
    size = rows.weight.size
    real = jnp.arange(size) % 3 > 0
    poison = jax.tree.map(
        lambda x: jnp.where(
            real.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.inf if x.dtype == jnp.float32 else -7
        ),
        rows,
    )
    poison = poison.replace(weight=real.astype(jnp.float32))
    # A network instead of a table: infinite observations must not reach its weights either.
    policy = make_policy(
        spaces.Box(-np.inf, np.inf, (1,)),
        spaces.Discrete(params["logits"].shape[-1])
        if kind == "categorical"
        else spaces.Box(-9.0, 9.0, params["mean"].shape[-1:]),
        hidden=(8,),
    )
    clean_obs = jnp.linspace(-1, 1, size)[:, None]
    network = policy.init(jax.random.key(0), clean_obs)
    loss_fn = ppo.make_loss(policy, ppo.Config(entropy_coef=0.01, value_clip_eps=0.2))
    poison = poison.replace(obs=jnp.where(real[:, None], clean_obs, jnp.inf))
    keep = np.flatnonzero(real)
    clean = jax.tree.map(lambda x: x[keep], rows.replace(obs=clean_obs))
    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (expected, _), expected_grads = gradient(network, clean)
    (found, metrics), grads = gradient(network, poison)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_close(grads, expected_grads, rtol=1e-4, atol=1e-7)
    assert all(np.isfinite(v) for v in metrics.values())


# --- 09: whole updates ----------------------------------------------------------------------

SB3_CASES = [
    (kind, case)
    for kind, names in {
        "categorical": ("basic_1epoch", "basic", "vfclip_ent", "early_stop"),
        "gaussian": ("basic_1epoch", "basic", "vfclip_ent", "early_stop"),
        "multidiscrete": ("vfclip_ent",),
    }.items()
    for case in names
]
# The float64 cases are more precise; in float32, one of each kind and of each kind of update.
SB3_SINGLE = [("categorical", "basic"), ("gaussian", "early_stop"), ("multidiscrete", "vfclip_ent")]
SB3_RUNS = [(*case, "float64") for case in SB3_CASES] + [(*c, "float32") for c in SB3_SINGLE]


def replacing_value_loss(policy: Policy, config: ppo.Config, eps: float):
    """SB3's clipped value loss: the clipped error instead of the plain one, never the larger."""
    plain = ppo.make_loss(policy, config)

    def loss_fn(params, rows):
        loss, metrics = plain(params, rows)
        value = policy.apply(params, rows.obs)[1]
        clipped = rows.value + jnp.clip(value - rows.value, -eps, eps)
        theirs = losses.mean(losses.squared_error(clipped, rows.target))
        loss += config.value_coef * (theirs - metrics["value_loss"])
        return loss, metrics | {"loss": loss, "value_loss": theirs}

    return loss_fn


@functools.cache
def sb3_rollout(kind, double, gamma, gae_lambda):
    """(policy, inputs, trajectory, batch), from one program for all cases of a kind."""
    x = UPDATE(f"{kind}/inputs")
    if double:
        x = {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in x.items()}
    policy = sb3_policy(kind, x)

    @jax.jit
    def act(params):
        trajectory = sb3_trajectory(policy, params, x)
        return trajectory, estimate_gae(trajectory, gamma=gamma, lambda_=gae_lambda)

    return policy, x, *act(sb3_params(kind, under("w_behaviour/", x)))


@jax.jit
def by_environment(batch):
    """Rows as SB3 flattens them, environment by environment."""
    return flatten_steps(jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), batch))


@pytest.mark.parametrize(("kind", "case", "dtype"), SB3_RUNS)
def test_update_equals_sb3_weight_by_weight(kind, case, dtype):
    double = dtype == "float64"
    y = UPDATE(f"{kind}/sb3_ppo_{case}" + ("_f64" if double else ""))
    single = UPDATE(f"{kind}/sb3_ppo_{case}")
    hp = {k[3:]: v.item() for k, v in single.items() if k.startswith("hp/")}
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        config = ppo.Config(
            learning_rate=hp["learning_rate"],
            clip_eps=hp["clip_range"],
            entropy_coef=hp["ent_coef"],
            value_coef=2 * hp["vf_coef"],
            normalize_advantage=bool(hp["normalize_advantage"]),
            gae_lambda=hp["gae_lambda"],
            gamma=hp["gamma"],
            target_kl=hp.get("target_kl"),
        )
        policy, x, trajectory, batch = sb3_rollout(kind, double, config.gamma, config.gae_lambda)
        np.testing.assert_allclose(trajectory.log_prob, x["log_probs"], rtol=0, atol=2e-6)
        if double:  # SB3's rollout was float32 even in the twin
            batch = batch.replace(
                log_prob=jnp.asarray(x["log_probs"]),
                value=jnp.asarray(x["values"]),
                advantage=jnp.asarray(single["advantages"], jnp.float64),
                target=jnp.asarray(single["returns"], jnp.float64),
            )
        if "clip_range_vf" in hp:
            loss_fn = replacing_value_loss(policy, config, hp["clip_range_vf"])
        else:
            loss_fn = ppo.make_loss(policy, config)
        optimizer = sgd.make_optimizer(
            hp.get("max_grad_norm", 0.5), hp["adam_eps"], learning_rate=hp["learning_rate"]
        )
        order, size = jnp.asarray(y["permutations"]), hp["batch_size"]
        minibatches = order.shape[1] // size
        stop = (lambda m: m["approx_kl"] > 1.5 * hp["target_kl"]) if "target_kl" in hp else None

        @jax.jit
        def run(params, rows):
            """The whole update, and the weights after each step of its first epoch."""
            learner = LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
            # A float32 optimiser state would limit the precision: our learning rate is a float32
            # constant.
            if double:
                state = learner.opt_state._replace(learning_rate=jnp.float64(hp["learning_rate"]))
                learner = learner.replace(opt_state=state)
            final, metrics = sgd.sgd_epochs(
                learner, rows, loss_fn, optimizer, order=order, minibatches=minibatches, stop=stop
            )

            def step(learner, part):
                minibatch = jax.tree.map(lambda a: a[part], rows)
                learner, _ = sgd.sgd_step(learner, minibatch, loss_fn, optimizer)
                return learner, learner.params

            parts = order[0, : minibatches * size].reshape(minibatches, size)
            return final, metrics, jax.lax.scan(step, learner, parts)[1]

        params = sb3_params(kind, under("w0/", x))
        final, metrics, steps = run(params, by_environment(batch))
        taken = int(y["n_minibatches"])
        assert int(final.step) == taken
        tolerance = {"rtol": 0, "atol": 1e-10 if double else 5e-6}
        history = under("w_hist/", y)
        weights = {k: v[-1] for k, v in history.items()}
        assert_close(final.params, sb3_params(kind, weights), **tolerance)
        for ours, theirs in (
            ("policy_loss", "mb_policy_loss"),
            ("value_loss", "mb_value_loss"),
            ("approx_kl", "mb_approx_kl"),
            ("clip_fraction", "mb_clip_fraction"),
            ("grad_norm", "mb_grad_norm"),
        ):
            expected = np.mean(y[theirs][:taken]) * (0.5 if ours == "value_loss" else 1)
            np.testing.assert_allclose(
                metrics[ours], expected, rtol=1e-7 if double else 1e-4, atol=1e-6, err_msg=ours
            )
        # And step by step, as far as the shuffled order is known.
        steps = jax.device_get(steps)
        for k in range(min(taken, minibatches)):
            weights = {n: v[k + 1] for n, v in history.items()}
            found = jax.tree.map(lambda a, k=k: a[k], steps)
            assert_close(found, sb3_params(kind, weights), **tolerance)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_first_gradient_equals_sb3(kind):
    x, y = UPDATE(f"{kind}/inputs"), UPDATE(f"{kind}/sb3_ppo_basic")
    policy, _, _, batch = sb3_rollout(kind, False, float(y["hp/gamma"]), float(y["hp/gae_lambda"]))
    config = ppo.Config(
        clip_eps=float(y["hp/clip_range"]),
        value_coef=2 * float(y["hp/vf_coef"]),
        entropy_coef=float(y["hp/ent_coef"]),
    )
    rows = by_environment(batch)
    first = jax.tree.map(lambda a: a[y["permutations"][0, : int(y["hp/batch_size"])]], rows)
    loss_fn = ppo.make_loss(policy, config)
    grads = jax.jit(jax.grad(loss_fn, has_aux=True))(sb3_params(kind, under("w0/", x)), first)[0]
    expected = sb3_params(kind, under("grad_mb0_preclip/", y))
    assert_close(grads, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_update_equals_cleanrl_weight_by_weight(kind):
    y = UPDATE(f"cleanrl_{kind}/default")
    hp = {k[3:]: v.item() for k, v in y.items() if k.startswith("hp/")}
    actor = "actor" if kind == "categorical" else "actor_mean"
    log_std = None if kind == "categorical" else "actor_logstd"

    names = [[f"{net}.{i}" for i in (0, 2, 4)] for net in (actor, "critic")]
    *hidden, outputs = (y[f"w0/{name}.bias"].size for name in names[0])

    def params_of(prefix):
        return actor_critic(under(prefix, y), *names, log_std)

    action_space = (
        spaces.Discrete(outputs)
        if kind == "categorical"
        else spaces.Box(-np.inf, np.inf, y["actions"].shape[2:])
    )
    shown = spaces.Box(-np.inf, np.inf, y["obs"].shape[2:])
    policy = make_policy(shown, action_space, hidden=tuple(hidden))
    minibatches = y["permutations"].shape[1] // hp["minibatch_size"]
    config = ppo.Config(
        learning_rate=hp["learning_rate"],
        epochs=hp["update_epochs"],
        minibatches=minibatches,
        gamma=hp["gamma"],
        gae_lambda=hp["gae_lambda"],
        clip_eps=hp["clip_coef"],
        value_clip_eps=hp["clip_coef"],
        entropy_coef=hp["ent_coef"],
        value_coef=hp["vf_coef"],
    )
    # CleanRL's dones[t] means that s_t starts an episode; ours means that step t ended one.
    done = np.concatenate([y["dones"][1:], y["next_done"][None]]).astype(bool)
    trajectory = Trajectory(
        obs=jnp.asarray(y["obs"]),
        action=jnp.asarray(y["actions"]),
        log_prob=jnp.asarray(y["logprobs"]),
        value=jnp.asarray(y["values"]),
        next_value=jnp.concatenate([y["values"][1:], y["next_value"].reshape(1, -1)]),
        reward=jnp.asarray(y["rewards"]),
        terminated=jnp.asarray(done),
        done=jnp.asarray(done),
        weight=jnp.ones(done.shape),
    )
    algorithm = ppo.make(policy, config)
    batch = algorithm.estimate(trajectory)
    np.testing.assert_allclose(batch.advantage, y["advantages"], rtol=2e-5, atol=2e-5)
    optimizer = sgd.make_optimizer(
        hp["max_grad_norm"], hp["adam_eps"], learning_rate=hp["learning_rate"]
    )
    params = params_of("w0/")
    learner = LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    rows, loss_fn = flatten_steps(batch), ppo.make_loss(policy, config)
    order = jnp.asarray(y["permutations"])
    part = jax.tree.map(lambda a: a[order[0, : hp["minibatch_size"]]], rows)
    first, _ = jax.jit(lambda *args: sgd.sgd_step(*args, loss_fn, optimizer))(learner, part)
    assert_close(first.params, params_of("w1/"), rtol=0, atol=2e-5)
    epochs = lambda *args: sgd.sgd_epochs(
        *args, loss_fn, optimizer, order=order, minibatches=minibatches
    )
    final, metrics = jax.jit(epochs)(learner, rows)
    assert_close(final.params, params_of("w_end/"), rtol=0, atol=5e-5)
    for ours, theirs in (
        ("loss", "mb_loss"),
        ("entropy", "mb_entropy_loss"),
        ("grad_norm", "mb_grad_norm"),
    ):
        np.testing.assert_allclose(metrics[ours], y[theirs].mean(), rtol=1e-4, atol=1e-6)
    explained = losses.explained_variance(rows.value, rows.target)
    np.testing.assert_allclose(explained, y["explained_variance"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_update_equals_spinningup(kind):
    """Full batches, separate optimisers for actor and critic, and a stop based on the k1
    estimate."""
    y = UPDATE(f"spinup_{kind}/ppo_update")
    hp = {k[3:]: v.item() for k, v in y.items() if k.startswith("hp/")}
    (policy, params_of), rows = spinup_policy(kind, y), spinup_rows(y)
    start = params_of("w0/")

    def descend(part, loss_fn, rate, epochs, stop=None):
        optimizer = sgd.make_optimizer(math.inf, hp["adam_eps"], learning_rate=rate)
        learner = LearnerState(start[part], optimizer.init(start[part]), jnp.int32(0))
        order = jnp.tile(jnp.arange(rows.weight.size), (epochs, 1))
        return sgd.sgd_epochs(
            learner, rows, loss_fn, optimizer, order=order, minibatches=1, stop=stop
        )[0].params

    def actor_loss(params, rows):
        dist = policy.apply(start | {"actor": params}, rows.obs)[0]
        log_prob = dist.log_prob(rows.action)
        loss = losses.clipped_surrogate(log_prob, rows.log_prob, rows.advantage, hp["clip_ratio"])
        return losses.mean(loss), {"kl": losses.mean(rows.log_prob - log_prob)}

    def critic_loss(params, rows):
        value = policy.apply(start | {"critic": params}, rows.obs)[1]
        return 2 * losses.mean(losses.squared_error(value, rows.target)), {}

    found = {
        "actor": descend(
            "actor",
            actor_loss,
            hp["pi_lr"],
            hp["train_pi_iters"],
            stop=lambda m: m["kl"] > 1.5 * hp["target_kl"],
        ),
        "critic": descend("critic", critic_loss, hp["vf_lr"], hp["train_v_iters"]),
    }
    assert_close(found, params_of("w1/"), rtol=0, atol=5e-5)


# --- the update as a whole ------------------------------------------------------------------


def small_update(**options):
    policy = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))
    config = ppo.Config(**{"learning_rate": 1e-2, "epochs": 3, **options})
    algorithm = ppo.make(policy, config)

    @jax.jit
    def start(key):
        obs = jax.random.normal(key, (64, 3))
        learner = algorithm.init(key, obs)
        dist, value = policy.apply(learner.params, obs)
        action = dist.sample(key)
        rows = Batch(
            obs, action, dist.log_prob(action), value, obs[:, 0], value + obs[:, 1], jnp.ones(64)
        )
        return learner, rows

    return algorithm._replace(update=jax.jit(algorithm.update)), *start(jax.random.key(0))


def test_the_ratio_is_one_on_the_first_minibatch():
    algorithm, learner, rows = small_update(epochs=1, minibatches=1, learning_rate=1e-3)
    _, metrics = algorithm.update(jax.random.key(1), learner, rows)
    assert abs(metrics["approx_kl"]) < 1e-7 and metrics["clip_fraction"] == 0
    np.testing.assert_allclose(metrics["policy_loss"], 0, atol=1e-6)  # −mean of normalised Â


def test_the_learning_rate_falls_linearly_and_is_state():
    algorithm, learner, rows = small_update(learning_rate=0.1, anneal_timesteps=4 * 64.0)
    rates = []
    for _ in range(6):
        learner, metrics = algorithm.update(jax.random.key(1), learner, rows)
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025, 0, 0], atol=1e-7)


def test_target_kl_stops_the_epochs():
    free, learner, rows = small_update(learning_rate=0.05, epochs=10)
    moved, metrics = free.update(jax.random.key(1), learner, rows)
    assert int(moved.step) == 40 and metrics["approx_kl"] > 0.006

    @jax.jit
    def bound(target):
        algorithm = small_update(learning_rate=0.05, epochs=10, target_kl=target)[0]
        return algorithm.update(jax.random.key(1), learner, rows)

    stopped, metrics = bound(0.002)
    assert 0 < int(stopped.step) < 40
    assert metrics["approx_kl"] <= 0.003
    # Before the stop, the update equals the one without a stop.
    policy = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))
    loss_fn, optimizer = ppo.make_loss(policy, ppo.Config()), sgd.make_optimizer(learning_rate=0.05)

    def step(learner, part):
        minibatch = jax.tree.map(lambda a: a[part], rows)
        after, metrics = sgd.sgd_step(learner, minibatch, loss_fn, optimizer)
        return after, (learner.params, metrics["approx_kl"])

    order = sgd.shuffles(jax.random.key(1), 64, 10).reshape(40, 16)
    by_hand, kls = jax.jit(lambda order: jax.lax.scan(step, learner, order)[1])(order)
    first = np.argmax(kls > 0.003)
    assert int(stopped.step) == first
    before = jax.tree.map(lambda x: x[first], by_hand)
    assert_close(stopped.params, before, rtol=1e-5, atol=1e-6)
    # A KL between the target and 1.5 times the target does not stop the update.
    target = kls[first] / 1.4
    later = np.argmax(kls > 1.5 * target)
    assert first < later
    assert int(bound(target)[0].step) == later


def test_an_optimizer_of_the_users_own():
    _, _, rows = small_update()
    policy = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))
    algorithm = ppo.make(policy, ppo.Config(anneal_timesteps=64.0), optimizer=optax.sgd(0.1))
    learner = algorithm.init(jax.random.key(0), rows.obs)
    moved, metrics = algorithm.update(jax.random.key(1), learner, rows)
    assert "learning_rate" not in metrics
    assert int(moved.step) == 16


def test_the_rate_of_an_optimizer_that_is_given_is_its_own():
    _, _, rows = small_update()
    policy = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))
    optimizer = sgd.make_optimizer(learning_rate=0.01)
    algorithm = ppo.make(policy, ppo.Config(learning_rate=0.5), optimizer=optimizer)
    learner = algorithm.init(jax.random.key(0), rows.obs)
    _, metrics = algorithm.update(jax.random.key(1), learner, rows)
    np.testing.assert_allclose(metrics["learning_rate"], 0.01, rtol=1e-6)
