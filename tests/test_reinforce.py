"""REINFORCE: agreement with peers, episodes included in a batch, and unbiased gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import losses
from ppo_jax.advantages import discounted_returns, estimate_returns
from ppo_jax.algorithms import reinforce
from ppo_jax.config import ConfigError
from ppo_jax.distributions import Categorical
from ppo_jax.envs import vectorize
from ppo_jax.networks import Policy
from ppo_jax.rollout import collect_episodes, flatten_steps, init
from ppo_jax.train import build
from ppo_jax.types import Trajectory
from probe_envs import ConstantReward, Probe
from reference import Golden

GOLDEN = Golden("06_returns_reinforce")
X = {k: jnp.asarray(v) for k, v in GOLDEN("inputs").items()}


# --- 06: returns, losses and gradients of a linear softmax policy -------------------------------


def linear_policy() -> Policy:
    def apply(params, obs):
        return Categorical(obs @ params["W"].T + params["b"]), jnp.zeros(obs.shape[:-1])

    return Policy(init=None, init_core=None, act=None, apply=apply, critic="none")


def trajectory(columns=slice(None), rows=slice(None), **changes) -> Trajectory:
    x = {k: X[k][rows, columns] for k in ("obs", "actions", "rewards", "dones")}
    done = x["dones"].astype(bool)
    zeros = jnp.zeros(done.shape)
    fields = {
        "obs": x["obs"],
        "action": x["actions"],
        "log_prob": zeros,
        "value": zeros,
        "next_value": zeros.at[-1].set(X["last_values"][columns]),
        "reward": x["rewards"],
        "terminated": done,
        "done": done,
        "weight": jnp.ones(done.shape),
    }
    return Trajectory(**fields | changes)


@pytest.mark.parametrize("case", [c.split("/")[0] for c in GOLDEN.cases("/rlax") if "returns" in c])
def test_returns_equal_their_peers(case):
    """Without bootstrapping (REINFORCE) and with it (A2C at λ = 1)."""
    gamma = float(GOLDEN(f"{case}/rlax")["hp/gamma"])
    discount = gamma * (1 - X["dones"])
    plain = discounted_returns(X["rewards"], discount, 0.0)
    bootstrapped = discounted_returns(X["rewards"], discount, X["last_values"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    for peer in ("spinup", "rlax"):
        expected = GOLDEN(f"{case}/{peer}")
        np.testing.assert_allclose(plain, expected["returns"], **close)
        np.testing.assert_allclose(bootstrapped, expected["returns_bootstrap"], **close)
    expected = GOLDEN(f"{case}/sb3")["returns_bootstrap"]
    np.testing.assert_allclose(
        estimate_returns(trajectory(), gamma=gamma).target, expected, **close
    )
    # The algorithm's own loss: with a limit of one step, every step counts.
    algorithm = reinforce.make(linear_policy(), reinforce.Config(gamma=gamma, time_limit=1))
    np.testing.assert_allclose(
        algorithm.estimate(trajectory()).target,
        GOLDEN(f"{case}/rlax")["returns"],
        **close,
    )


def check_gradient(case: str, rows, episodes: float, scale: float = 1.0) -> None:
    """loss · episodes / scale is the peer's loss, which is a mean over steps (scale) or a sum."""
    expected = GOLDEN(case)
    first = jnp.zeros_like(rows.weight).at[0].set(episodes)
    rows = rows.replace(extra=rows.extra._replace(first=first))
    loss_fn = reinforce.make_loss(linear_policy(), reinforce.Config(value_coef=0.0))
    params = {"W": X["W"], "b": X["b"]}
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
    factor = episodes / scale
    np.testing.assert_allclose(loss * factor, expected["loss"], rtol=1e-5, atol=1e-6)
    for name, gradient in grads.items():
        np.testing.assert_allclose(
            gradient * factor, expected[f"grad_{name}"], rtol=1e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("baseline", ["none", "batch_mean"])
def test_gradient_equals_rlax(baseline):
    """Theirs is a mean over steps, ours over episodes."""
    case = "reinforce_all/rlax_" + {"none": "nobaseline", "batch_mean": "mean_baseline"}[baseline]
    gamma = float(GOLDEN(case)["hp/gamma"])
    config = reinforce.Config(gamma=gamma, time_limit=1, baseline=baseline)
    batch = reinforce.make(linear_policy(), config).estimate(trajectory())
    rows = flatten_steps(batch)
    np.testing.assert_allclose(rows.advantage, GOLDEN(case)["adv"], rtol=1e-5, atol=1e-5)
    check_gradient(case, rows, episodes=7.0, scale=rows.weight.size)


def test_gradient_equals_rlax_when_normalised():
    case = "reinforce_all/rlax_normalized_ddof0"
    config = reinforce.Config(gamma=float(GOLDEN(case)["hp/gamma"]), time_limit=1)
    rows = flatten_steps(reinforce.make(linear_policy(), config).estimate(trajectory()))
    rows = rows.replace(advantage=losses.normalize(rows.advantage, ddof=0))
    check_gradient(case, rows, episodes=7.0, scale=rows.weight.size)


@pytest.mark.parametrize("case", ["spinup_1_simple_pg", "spinup_2_rtg_pg"])
def test_gradient_equals_spinningup(case):
    config = reinforce.Config(gamma=1.0, time_limit=1)
    batch = reinforce.make(linear_policy(), config).estimate(trajectory(slice(0, 1)))
    rows, weights = flatten_steps(batch), GOLDEN(f"reinforce_env0/{case}")["weights"]
    if case == "spinup_2_rtg_pg":
        np.testing.assert_allclose(rows.advantage, weights, rtol=1e-5, atol=1e-5)
    else:  # the return of the whole episode for each of its steps
        rows = rows.replace(advantage=jnp.asarray(weights))
    check_gradient(f"reinforce_env0/{case}", rows, episodes=3.0, scale=rows.weight.size)


def test_gradient_equals_pytorch_examples():
    """One episode with normalised returns and a sum over steps, which equals our loss of one
    episode."""
    expected = GOLDEN("reinforce_env0/pytorch_examples")
    start, stop = expected["episode"]
    config = reinforce.Config(gamma=float(expected["hp/gamma"]), time_limit=int(stop - start))
    one = trajectory(slice(0, 1), slice(start, stop))
    rows = flatten_steps(reinforce.make(linear_policy(), config).estimate(one))
    assert float(rows.extra.first.sum()) == 1.0
    advantage = losses.normalize(rows.advantage)
    np.testing.assert_allclose(advantage, expected["returns_normalized"], rtol=1e-4, atol=1e-5)
    check_gradient("reinforce_env0/pytorch_examples", rows.replace(advantage=advantage), 1.0)


# --- which episodes are counted -----------------------------------------------------------------


def test_an_episode_counts_by_where_it_starts():
    """Limit 4, T = 10: episodes may start up to row 6. The last one ends in time and is not
    counted."""
    done = np.zeros((10, 2), bool)
    done[[2, 3, 6, 8], 0] = True  # episodes 0-2, 3, 4-6, 7-8, 9-
    done[[3, 7], 1] = True  # 0-3, 4-7, 8-
    found = reinforce.whole_episodes(jnp.asarray(done), jnp.ones((10, 2)), time_limit=4)
    np.testing.assert_array_equal(found.start[:, 0], [0, 0, 0, 3, 4, 4, 4, 7, 7, 9])
    np.testing.assert_array_equal(found.counted[:, 0], [1] * 7 + [0] * 3)
    np.testing.assert_array_equal(np.flatnonzero(found.first[:, 0]), [0, 3, 4])
    np.testing.assert_array_equal(found.counted[:, 1], [1] * 8 + [0] * 2)
    np.testing.assert_array_equal(np.flatnonzero(found.first[:, 1]), [0, 4])
    np.testing.assert_array_equal(np.flatnonzero(found.last[:, 1]), [3, 7])


def test_steps_that_did_not_happen_belong_to_no_episode():
    """A dummy row with arbitrary values after each end, as for Gymnasium environments."""
    done = jnp.array([[False], [True], [False], [False], [True], [False]])
    weight = jnp.array([[1.0], [1.0], [0.0], [1.0], [1.0], [0.0]])
    reward = jnp.where(weight > 0, 1.0, jnp.nan)
    columns = {"obs": jnp.zeros((6, 1, 4)), "action": jnp.zeros((6, 1), jnp.int32)}
    zeros = jnp.zeros((6, 1))
    whole = Trajectory(
        **columns,
        log_prob=zeros,
        value=zeros,
        next_value=zeros,
        reward=reward,
        terminated=done,
        done=done,
        weight=weight,
    )
    config = reinforce.Config(gamma=1.0, time_limit=2, baseline="leave_one_out")
    batch = reinforce.make(linear_policy(), config).estimate(whole)
    np.testing.assert_array_equal(batch.weight[:, 0], [1, 1, 0, 1, 1, 0])
    counted = np.flatnonzero(batch.weight)
    np.testing.assert_allclose(batch.target[:, 0][counted], [2, 1, 2, 1])
    np.testing.assert_allclose(batch.advantage[:, 0][counted], [0, -1, 0, -1])
    np.testing.assert_array_equal(batch.extra.first[:, 0], [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(batch.extra.last[:, 0], [0, 1, 0, 0, 1, 0])


def test_the_row_between_two_episodes_is_no_start():
    """Limit 2 in 4 steps: the second episode starts at row 3, one row too late."""
    done = jnp.array([[False], [True], [False], [False]])
    weight = jnp.array([[1.0], [1.0], [0.0], [1.0]])
    found = reinforce.whole_episodes(done, weight, time_limit=2)
    np.testing.assert_array_equal(found.counted[:, 0], [1, 1, 0, 0])
    np.testing.assert_array_equal(found.first[:, 0], [1, 0, 0, 0])


def test_an_episode_that_was_cut_is_over():
    """Two episodes of two steps, the first truncated: its return does not include the second."""
    cut = trajectory(slice(0, 1), slice(0, 4), reward=jnp.array([[1.0], [2.0], [4.0], [8.0]]))
    done = jnp.array([[False], [True], [False], [True]])
    cut = cut.replace(done=done, terminated=jnp.zeros_like(done))
    config = reinforce.Config(gamma=0.5, time_limit=2)
    batch = reinforce.make(linear_policy(), config).estimate(cut)
    np.testing.assert_allclose(batch.target[:, 0], [2.0, 2.0, 8.0, 8.0])


def test_the_batch_mean_is_that_of_the_steps_that_count():
    """Limit 2 in 3 steps: an episode that starts at the last step is not counted."""
    done = jnp.array([[False], [True], [False]])
    episodes = reinforce.whole_episodes(done, jnp.ones((3, 1)), time_limit=2)
    returns = jnp.array([[1.0], [3.0], [100.0]])
    np.testing.assert_allclose(reinforce.batch_mean(returns, returns, episodes), 2.0)


def test_leave_one_out_is_the_mean_return_of_the_others():
    """Four episodes with returns 0 and 6 (in sequence), 1 and 2."""
    done = jnp.zeros((4, 3), bool).at[1, 0].set(True).at[3].set(True)
    returns = jnp.arange(12.0).reshape(4, 3)
    episodes = reinforce.whole_episodes(done, jnp.ones((4, 3)), time_limit=2)
    found = reinforce.leave_one_out(returns, returns, episodes)
    np.testing.assert_allclose(found[:, 0], [3.0, 3.0, 1.0, 1.0])  # (6+1+2)/3, (0+1+2)/3
    np.testing.assert_allclose(found[:, 1], 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[:, 2], 7 / 3, rtol=1e-6)
    alone = reinforce.whole_episodes(done[:, 1:2], jnp.ones((4, 1)), time_limit=4)
    np.testing.assert_array_equal(reinforce.leave_one_out(returns[:, :1], returns, alone), 0.0)


def test_an_episode_that_outlasts_its_limit_is_reported():
    config = reinforce.Config(time_limit=2)
    start = trajectory(rows=slice(0, 3))
    nobody = jnp.zeros_like(start.done)
    endless = start.replace(done=nobody, terminated=nobody)
    batch = reinforce.make(linear_policy(), config).estimate(endless)
    assert batch.extra.first.sum() - batch.extra.last.sum() == start.done.shape[1]


def test_rollouts_shorter_than_an_episode_are_refused():
    with pytest.raises(
        ConfigError, match=r"up to 500 steps here, but num_steps is 128; .* at least 500"
    ):
        build(configs.make(preset="none", algorithm="reinforce"))
    with pytest.raises(ConfigError, match="at least 500"):
        configs.make(preset="none", algorithm="reinforce", time_limit=500)
    build(configs.make(preset="none", algorithm="reinforce", num_steps=500))

    with pytest.raises(ConfigError, match="set time_limit"):
        build(configs.make(preset="none", algorithm="reinforce"), ConstantReward())
    with pytest.raises(ConfigError, match="may take 500 steps"):
        build(configs.make(preset="none", algorithm="reinforce", time_limit=100))
    # and by the package's own function
    with pytest.raises(ValueError, match="set time_limit"):
        reinforce.make(linear_policy(), reinforce.Config()).estimate(trajectory())
    with pytest.raises(ValueError, match="critic 'v'"):
        reinforce.make(linear_policy(), reinforce.Config(baseline="value"))


# --- the gradient estimate ----------------------------------------------------------------------


class Chain(Probe):
    """Three states in a row. Action 1 continues, action 0 ends the episode; the last state also
    ends it. Rewards are 1, −2, 5 for stopping in state 0, 1, 2, so that J and its gradient are sums
    of a few terms."""

    def __init__(self):
        super().__init__(time_limit=3)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        ends = (action == 0) | (state == 2)
        reward = jnp.where(ends, jnp.array([1.0, -2.0, 5.0])[state], 0.0)
        following = jnp.minimum(state + 1, 2)
        return following[None] * 1.0, following, reward, ends, jnp.array(False), {}


def table_policy(critic: str = "none") -> Policy:
    """One logit per state for continuing, and a fixed value per state."""
    values = jnp.array([0.5, 1.0, 4.0])

    def apply(params, obs):
        z = params[obs[..., 0].astype(jnp.int32)]
        value = values[obs[..., 0].astype(jnp.int32)]
        return Categorical(jnp.stack([jnp.zeros_like(z), z], axis=-1)), value

    def act(params, core, obs, start):
        return core, *apply(params, obs)

    return Policy(lambda key, obs: jnp.zeros(3), lambda n: (), act, apply, None, critic)


THETA = jnp.array([0.4, -0.3, 0.2])


def objective(theta, gamma=1.0):
    """J, summed over the states in which the episode may stop, with γ^steps for γ < 1."""
    go = jax.nn.sigmoid(theta)
    return (1 - go[0]) * 1.0 + gamma * go[0] * (
        (1 - go[1]) * -2.0 + gamma * go[1] * 5.0
    )  # in state 2 both actions stop


def estimates(baseline: str, num_steps: int, num_envs: int = 8, samples: int = 4000):
    """[samples, 3] gradients of J from independent rollouts with the package's functions."""
    env = vectorize(Chain(), num_envs, num_steps)
    policy = table_policy("v")
    config = reinforce.Config(gamma=1.0, baseline=baseline, time_limit=3, value_coef=0.0)
    algorithm, loss_fn = reinforce.make(policy, config), reinforce.make_loss(policy, config)
    collect = functools.partial(
        collect_episodes, env=env, policy=policy, num_steps=num_steps, gamma=1.0, longest=3
    )

    @jax.jit
    @jax.vmap
    def one(key):
        start_key, key = jax.random.split(key)
        _, trajectory = collect(key, THETA, init(start_key, policy, env))
        rows = flatten_steps(algorithm.estimate(trajectory))
        return -jax.grad(loss_fn, has_aux=True)(THETA, rows)[0]

    return np.asarray(one(jax.random.split(jax.random.key(0), samples)))


def z_score(found: np.ndarray, expected) -> np.ndarray:
    return (found.mean(axis=0) - expected) / (found.std(axis=0) / np.sqrt(len(found)) + 1e-12)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "value"])
def test_the_gradient_is_unbiased(baseline):
    """Agreement with ∇J in closed form, within four standard errors of 4,000 estimates."""
    found = estimates(baseline, num_steps=3)
    expected = jax.grad(objective)(THETA)
    assert np.abs(z_score(found, expected)).max() < 4
    assert np.abs(expected).max() > 10 * found.std(axis=0).max() / np.sqrt(len(found))


def test_longer_rollouts_count_more_episodes_and_stay_close():
    """The number of episodes is random then, and a ratio of means has a bias of order 1/E."""
    expected = np.asarray(jax.grad(objective)(THETA))
    bias = {}
    for num_envs in (1, 16):
        found = estimates("none", num_steps=9, num_envs=num_envs)
        bias[num_envs] = np.abs(found.mean(axis=0) - expected).max()
    assert bias[16] < 0.03 * np.abs(expected).max()
    assert bias[16] < bias[1]


def test_counting_what_happens_to_end_would_be_biased():
    """Control: if all episodes that end within T = 2 are counted, the gradient is wrong."""
    env, policy = vectorize(Chain(), 64, 2), table_policy()
    config = reinforce.Config(gamma=1.0, time_limit=1, value_coef=0.0)
    algorithm, loss_fn = reinforce.make(policy, config), reinforce.make_loss(policy, config)

    @jax.vmap
    def one(key):
        start_key, key = jax.random.split(key)
        _, trajectory = collect_episodes(
            key,
            THETA,
            init(start_key, policy, env),
            env=env,
            policy=policy,
            num_steps=2,
            gamma=1.0,
            longest=1,
        )
        ended = jnp.cumsum(trajectory.done[::-1], axis=0)[::-1] > 0
        batch = algorithm.estimate(trajectory)
        extra = batch.extra._replace(first=batch.extra.first * ended)
        rows = flatten_steps(batch.replace(weight=ended * 1.0, extra=extra))
        return -jax.grad(loss_fn, has_aux=True)(THETA, rows)[0]

    found = np.asarray(jax.jit(one)(jax.random.split(jax.random.key(0), 1000)))
    assert np.abs(z_score(found, jax.grad(objective)(THETA))).max() > 20


def test_baselines_lower_the_variance():
    """The plain batch mean is biased towards 0 by about 1/E, but the others are not."""
    expected = np.asarray(jax.grad(objective)(THETA))
    found = {b: estimates(b, num_steps=3) for b in reinforce.BASELINES}
    variance = {b: g.var(axis=0).sum() for b, g in found.items()}
    assert variance["value"] < 0.8 * variance["none"], variance
    assert variance["leave_one_out"] < 0.95 * variance["none"], variance
    assert variance["batch_mean"] < 0.95 * variance["none"], variance
    assert np.abs(z_score(found["batch_mean"], expected)).max() > 4


def test_the_discounted_return_weights_each_step_alone():
    """For γ < 1: E[Σ_t ∇ log π u_t], every state counted once, without the factor γ^t."""
    go = np.asarray(jax.nn.sigmoid(THETA))
    gamma = 0.5
    worth = [None, -2.0 * (1 - go[1]) + gamma * go[1] * 5.0, 5.0]
    slope = go * (1 - go)
    expected = np.array(
        [
            slope[0] * (gamma * worth[1] - 1.0),
            go[0] * slope[1] * (gamma * worth[2] - -2.0),
            0.0,
        ]
    )
    env, policy = vectorize(Chain(), 512, 3), table_policy()
    config = reinforce.Config(gamma=gamma, time_limit=3, value_coef=0.0)
    algorithm, loss_fn = reinforce.make(policy, config), reinforce.make_loss(policy, config)

    @jax.vmap
    def one(key):
        _, trajectory = collect_episodes(
            key,
            THETA,
            init(key, policy, env),
            env=env,
            policy=policy,
            num_steps=3,
            gamma=1.0,
            longest=3,
        )
        rows = flatten_steps(algorithm.estimate(trajectory))
        return -jax.grad(loss_fn, has_aux=True)(THETA, rows)[0]

    found = np.asarray(jax.jit(one)(jax.random.split(jax.random.key(0), 500)))
    assert np.abs(z_score(found, expected)).max() < 4
