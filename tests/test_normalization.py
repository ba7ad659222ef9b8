"""Running statistics: agreement with SB3, gymnasium and baselines, and with merged batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import normalization
from reference import Golden

GOLDEN = Golden("08_running_stats")


@pytest.mark.parametrize("peer", ["sb3", "gymnasium", "baselines"])
def test_moments_after_each_batch(peer):
    x, y = GOLDEN("rms/inputs"), GOLDEN(f"rms/{peer}")
    moments = normalization.init(x["batches"].shape[1:])
    for i, batch in enumerate(np.split(x["batches"], np.cumsum(x["sizes"])[:-1])):
        moments = normalization.update(moments, jnp.asarray(batch))
        np.testing.assert_allclose(moments.mean, y["mean"][i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.var, y["var"][i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.count, y["count"][i], rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "peer_rtol"),
    [("sb3_vecnormalize_default", 1e-5), ("sb3_vecnormalize_tight_clip", 1e-5)],
)
def test_a_stream_normalised_like_vecnormalize(case, peer_rtol):
    x, y = GOLDEN("stream/inputs"), GOLDEN(f"stream/{case}")
    hp = {k[3:]: float(v) for k, v in y.items() if k.startswith("hp/")}
    obs_moments = normalization.init(x["obs0"].shape[1:])
    obs_moments = normalization.update(obs_moments, jnp.asarray(x["obs0"]))
    reward_moments, accumulated = normalization.init(()), np.zeros(x["rewards"].shape[1])
    done = np.maximum(x["term"], x["trunc"])
    tolerance = {"rtol": peer_rtol * 10, "atol": 1e-5}
    for t in range(len(x["obs"])):
        obs, reward = jnp.asarray(x["obs"][t]), jnp.asarray(x["rewards"][t])
        obs_moments = normalization.update(obs_moments, obs)
        accumulated = accumulated * hp["gamma"] + x["rewards"][t]
        reward_moments = normalization.update(reward_moments, jnp.asarray(accumulated))
        np.testing.assert_allclose(
            normalization.normalize(obs_moments, obs, hp["clip_obs"]),
            y["obs_norm"][t + 1],
            **tolerance,
        )
        np.testing.assert_allclose(
            normalization.scale(reward_moments, reward, hp["clip_reward"]),
            y["reward_norm"][t],
            **tolerance,
        )
        accumulated *= 1 - done[t]
    np.testing.assert_allclose(obs_moments.var, y["obs_var"][-1], rtol=1e-4)
    np.testing.assert_allclose(reward_moments.var, y["ret_var"][-1], rtol=1e-4)


def test_gymnasium_normalises_the_same_stream_of_observations():
    """Its vector wrapper on the same observations; its reward accumulator differs (never reset)."""
    x, y = GOLDEN("stream/inputs"), GOLDEN("stream/gymnasium_vector")
    moments = normalization.init(x["obs0"].shape[1:])
    moments = normalization.update(moments, jnp.asarray(x["obs0"]))
    for t in range(len(x["obs"])):
        moments = normalization.update(moments, jnp.asarray(x["obs"][t]))
        found = normalization.normalize(moments, jnp.asarray(x["obs"][t]), np.inf)
        np.testing.assert_allclose(found, y["obs_norm"][t + 1], rtol=1e-3, atol=1e-4)


def test_batches_merge_to_the_moments_of_all_data():
    data = np.random.default_rng(0).normal(3.0, 2.0, (100, 7, 2)).astype(np.float32)
    moments = normalization.init((2,))
    for part in np.split(data, [3, 50, 51]):
        moments = normalization.update(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, data.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moments.var, data.var((0, 1)), rtol=1e-4)


def test_weightless_elements_are_not_counted():
    data = jnp.array([[1.0], [3.0], [jnp.nan]])
    weighted = normalization.update(normalization.init((1,)), data, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(weighted.mean, 2.0, rtol=1e-3)
    nothing = normalization.update(weighted, data, jnp.zeros(3))
    np.testing.assert_allclose(nothing.var, weighted.var, rtol=1e-6)


def test_a_long_run_does_not_lose_precision():
    """Mean 1000 and standard deviation 0.1, in float32, over a million elements."""
    rng, moments = np.random.default_rng(0), normalization.init(())
    for _ in range(100):
        batch = (1000 + 0.1 * rng.normal(size=10_000)).astype(np.float32)
        moments = normalization.update(moments, jnp.asarray(batch))
    np.testing.assert_allclose(moments.mean, 1000, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(moments.var), 0.1, rtol=0.1)


def test_trees_normalise_float_leaves_alone():
    obs = {"image": jnp.zeros((2, 3), jnp.uint8), "speed": jnp.array([[1.0], [3.0]])}
    moments = normalization.init_tree({k: v[0] for k, v in obs.items()})
    assert moments["image"] == ()
    moments = normalization.update_tree(moments, obs)
    normal = normalization.normalize_tree(moments, obs)
    assert normal["image"].dtype == jnp.uint8
    np.testing.assert_allclose(normal["speed"], [[-1.0], [1.0]], atol=1e-3)
