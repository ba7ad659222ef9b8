"""GAE and returns: agreement with five implementations, limits, termination and truncation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_jax.advantages import (
    discounted_returns,
    estimate_gae,
    estimate_returns,
    exponential_average,
    gae,
    k_step_advantages,
)
from ppo_jax.types import Trajectory
from reference import Golden

GOLDEN = Golden("01_gae")
estimate = jax.jit(estimate_gae)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
PEERS = ("sb3", "cleanrl", "baselines_ppo1", "rlax", "torchrl", "spinup")
# Where peers define "done" at index t differently, the inputs use our convention: ended by step t.
ROLLOUTS = [
    (case, peer)
    for peer in PEERS
    for case in GOLDEN.cases(f"/{peer}")
    if not case.startswith("truncation")
]


def discounts_of(case: str) -> tuple[float, float]:
    return float(GOLDEN(case)["hp/gamma"]), float(GOLDEN(case)["hp/gae_lambda"])


def inputs_of(case: str):
    gamma, lambda_ = discounts_of(case)
    arrays = GOLDEN(f"{case.split('/')[0]}/inputs")
    value = arrays["values"]
    return {
        "reward": arrays["rewards"],
        "discount": gamma * (1 - arrays["dones"]),
        "value": value,
        "next_value": np.concatenate([value[1:], arrays["last_values"][None]]),
        "cont": 1 - arrays["dones"],
        "lambda_": lambda_,
    }, arrays["last_values"]


@pytest.mark.parametrize(("case", "peer"), ROLLOUTS)
def test_gae_equals_the_peer(case, peer):
    inputs, last_value = inputs_of(case)
    expected = GOLDEN(case)
    advantage = gae(**inputs)
    np.testing.assert_allclose(advantage, expected["advantages"], **TOLERANCE)
    if peer == "spinup":  # it uses the reward-to-go, not the λ-return, as target
        returns = discounted_returns(inputs["reward"], inputs["discount"], last_value)
        np.testing.assert_allclose(returns, expected["rewards_to_go"], **TOLERANCE)
    elif "returns" in expected:
        np.testing.assert_allclose(advantage + inputs["value"], expected["returns"], **TOLERANCE)


def test_every_peer_and_shape_is_compared():
    assert {peer for _, peer in ROLLOUTS} == set(PEERS) and TIME_LIMITS
    answers = [key for key in GOLDEN.arrays if key.endswith("/advantages")]
    assert {key.rsplit("/", 1)[0] for key in answers} == {case for case, _ in ROLLOUTS} | {
        *TIME_LIMITS
    }


TIME_LIMITS = [
    case
    for peer in ("torchrl", "sb3")
    for case in GOLDEN.cases(f"/{peer}")
    if case.startswith("truncation")
]


@pytest.mark.parametrize("case", TIME_LIMITS)
def test_time_limits_bootstrap_like_the_peer(case):
    gamma, lambda_ = discounts_of(case)
    arrays, expected = GOLDEN("truncation/inputs"), GOLDEN(case)
    batch = estimate_gae(
        trajectory(
            reward=arrays["rewards"],
            value=arrays["values"],
            next_value=arrays["next_values"],
            terminated=arrays["terminated"],
            done=np.maximum(arrays["terminated"], arrays["truncated"]),
        ),
        gamma=gamma,
        lambda_=lambda_,
    )
    np.testing.assert_allclose(batch.advantage, expected["advantages"], **TOLERANCE)
    np.testing.assert_allclose(batch.target, expected["returns"], **TOLERANCE)


def trajectory(reward, value, next_value, terminated, done, weight=None) -> Trajectory:
    reward = jnp.asarray(reward)
    return Trajectory(
        obs=jnp.zeros(reward.shape),
        action=jnp.zeros(reward.shape),
        log_prob=jnp.zeros(reward.shape),
        value=jnp.asarray(value),
        next_value=jnp.asarray(next_value),
        reward=reward,
        terminated=jnp.asarray(terminated, bool),
        done=jnp.asarray(done, bool),
        weight=jnp.ones(reward.shape) if weight is None else jnp.asarray(weight, jnp.float32),
    )


def random_trajectory(seed: int, steps: int = 20, envs: int = 3) -> Trajectory:
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, steps, envs)).astype(np.float32)
    terminated = rng.random((steps, envs)) < 0.15
    done = terminated | (rng.random((steps, envs)) < 0.15)
    after = np.concatenate([value[1:], rng.normal(size=(1, envs)).astype(np.float32)])
    final = rng.normal(size=(steps, envs)).astype(np.float32)
    return trajectory(reward, value, np.where(done, final, after), terminated, done)


def test_lambda_zero_is_the_td_residual():
    t = random_trajectory(0)
    batch = estimate_gae(t, gamma=0.9, lambda_=0.0)
    residual = t.reward + 0.9 * (1 - t.terminated) * t.next_value - t.value
    np.testing.assert_allclose(batch.advantage, residual, rtol=1e-6, atol=1e-6)


def test_lambda_one_is_monte_carlo_minus_value():
    t = random_trajectory(1)
    batch = estimate_gae(t, gamma=0.9, lambda_=1.0)
    expected = np.zeros(t.reward.shape)
    for n in range(t.reward.shape[1]):
        following = 0.0
        for i in reversed(range(t.reward.shape[0])):
            if t.done[i, n] or i == t.reward.shape[0] - 1:
                following = 0.0 if t.terminated[i, n] else float(t.next_value[i, n])
            following = float(t.reward[i, n]) + 0.9 * following
            expected[i, n] = following
    np.testing.assert_allclose(batch.target, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(estimate_returns(t, gamma=0.9).target, batch.target)


def arguments(t: Trajectory, gamma: float) -> tuple:
    return (t.reward, gamma * (1 - t.terminated), t.value, t.next_value, 1.0 - t.done)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_k_step_advantages_literally(steps):
    """r_t + γ r_{t+1} + ... + γ^k V(s_{t+k}) − V(s_t), up to the end of the episode or rollout."""
    t, gamma = random_trajectory(3), 0.9
    found = k_step_advantages(*arguments(t, gamma), steps)[-1]
    length, envs = t.reward.shape
    for n in range(envs):
        for start in range(length):
            total = 0.0
            for k in range(steps):
                i = start + k
                total += gamma**k * float(t.reward[i, n])
                last = k == steps - 1 or bool(t.done[i, n]) or i == length - 1
                if last:
                    alive = not bool(t.terminated[i, n])
                    total += alive * gamma ** (k + 1) * float(t.next_value[i, n])
                    break
            expected = total - float(t.value[start, n])
            np.testing.assert_allclose(found[start, n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
def test_the_exponential_average_of_k_step_advantages_is_gae(lambda_):
    t = random_trajectory(4)
    each = k_step_advantages(*arguments(t, 0.9), t.reward.shape[0])
    average = exponential_average(each, lambda_)
    np.testing.assert_allclose(average, gae(*arguments(t, 0.9), lambda_), rtol=1e-4, atol=1e-5)


def test_fewer_steps_than_the_rollout_is_long_are_an_approximation():
    """Sums are truncated after K terms, with an error of at most λ^K times the differences."""
    t = random_trajectory(5)
    exact = gae(*arguments(t, 0.9), 0.5)
    errors = [
        np.abs(exponential_average(k_step_advantages(*arguments(t, 0.9), k), 0.5) - exact).max()
        for k in (2, 5, 10)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_time_limit_is_not_a_termination():
    """Two steps, the second one last: its value is its reward if terminated, plus γ V(s_2) if
    truncated."""
    reward, value, after = jnp.array([1.0, 1.0]), jnp.array([5.0, 6.0]), jnp.array([6.0, 7.0])
    cont = jnp.array([1.0, 0.0])
    terminated = gae(reward, 0.9 * jnp.array([1.0, 0.0]), value, after, cont, 1.0)
    truncated = gae(reward, 0.9 * jnp.array([1.0, 1.0]), value, after, cont, 1.0)
    np.testing.assert_allclose(terminated, [1 + 0.9 * 1 - 5, 1 - 6], rtol=1e-6)
    np.testing.assert_allclose(truncated, [1 + 0.9 * (1 + 0.9 * 7) - 5, 1 + 0.9 * 7 - 6], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([1, 4, 12]), data=st.data())
def test_steps_of_weight_zero_are_not_there(seed, count, data):
    """Dummy steps full of NaN, inserted anywhere except at the end, do not change the others.

    The number of dummy steps is one of three, so that few shapes are compiled.
    """
    whole = random_trajectory(seed, steps=12, envs=1)
    rng = np.random.default_rng(seed)
    places = data.draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
    index = np.insert(np.arange(12), places, -1)
    real = index >= 0

    def insert(x, garbage):
        out = np.full((len(index), 1), garbage, np.asarray(x).dtype)
        out[real] = x
        return out

    value = insert(whole.value, np.nan)
    # As collect would write it: the value of the next row, even of a dummy row.
    shifted = np.concatenate([value[1:], np.asarray(whole.next_value)[-1:]])
    done = insert(whole.done, True)
    next_value = np.where(done & real[:, None], insert(whole.next_value, np.nan), shifted)
    padded = trajectory(
        insert(whole.reward, np.nan),
        value,
        next_value,
        insert(whole.terminated, bool(rng.integers(2))),
        done,
        weight=real[:, None],
    )
    expected = estimate(whole, gamma=0.9, lambda_=0.8)
    found = estimate(padded, gamma=0.9, lambda_=0.8)
    np.testing.assert_allclose(found.advantage[real], expected.advantage, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.target[real], expected.target, rtol=1e-5, atol=1e-5)
    assert np.isfinite(found.advantage).all() and (np.asarray(found.target)[~real] == 0).all()


def test_discounted_returns_by_hand():
    returns = discounted_returns(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, 0.5]), 8.0)
    np.testing.assert_allclose(returns, [1 + 0.5 * 2, 2, 3 + 0.5 * 8])


def test_gae_runs_on_any_trailing_shape():
    x = jnp.ones((7, 2, 3))
    whole = gae(x, 0.9 * x, x, x, x, 0.5)
    one = gae(x[:, 0, 0], 0.9 * x[:, 0, 0], x[:, 0, 0], x[:, 0, 0], x[:, 0, 0], 0.5)
    np.testing.assert_allclose(whole, jnp.broadcast_to(one[:, None, None], x.shape), rtol=1e-6)
    assert jax.jit(gae)(x, x, x, x, x, 0.5).shape == x.shape


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    reward = jnp.ones(300, dtype)
    returns = discounted_returns(reward, jnp.ones(300, dtype), 0)
    assert returns.dtype == jnp.float32
    np.testing.assert_array_equal(returns, np.arange(300, 0, -1))
    advantage = gae(reward, jnp.ones_like(reward), reward, reward, jnp.ones_like(reward), 1.0)
    assert advantage.dtype == jnp.float32


def test_what_follows_a_termination_is_not_read():
    """The value of a terminal state does not matter."""
    row = jnp.ones((3, 1))
    t = trajectory(row, row, row.at[1].set(jnp.inf), row.at[0].set(0) > 0, row.at[0].set(0) > 0)
    assert np.isfinite(estimate_gae(t, gamma=0.9, lambda_=0.5).advantage).all()
