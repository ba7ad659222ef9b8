"""Every kind of space: description, checks, networks, masks, and learning."""

import dataclasses
import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces as gymnax_spaces

import probe_envs
from ppo_jax import config as configs
from ppo_jax import envs, evaluate, losses, networks, normalization, rollout
from ppo_jax.algorithms import ppo
from ppo_jax.distributions import Categorical, JointCategorical, MultiCategorical
from ppo_jax.envs import spaces
from ppo_jax.envs.gymnax import convert_space
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.train import build, make_train
from ppo_jax.types import Batch

KEY = jax.random.key(0)
FLAG = spaces.Box(0, 1, (4,), bool)


@flax.struct.dataclass
class Seen:
    """An observation as a dataclass."""

    speed: Any
    action_mask: Any


def small(**changes):
    options = {
        "num_envs": 16,
        "num_steps": 16,
        "total_timesteps": 16_384,
        "hidden": (32,),
        "learning_rate": 1e-2,
        "gamma": 0.9,
    }
    return configs.make(preset="none", **options | changes)


@pytest.mark.parametrize(
    ("env", "best", "options"),
    [
        (probe_envs.Corridor(), -4.0, {"num_steps": 32}),
        (probe_envs.MatchBits(), 1.0, {}),
        (probe_envs.Signals(), 4.0, {"normalize_obs": True}),
        (probe_envs.BestCard(), 1.0, {"normalize_obs": True}),
        (probe_envs.Choices(), 1.0, {}),
        (probe_envs.Cells(), 1.0, {"shared_torso": True}),
        (probe_envs.ImageAndCue(), 1.0, {"network": "minatar", "activation": "relu"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, probe_envs.Probe) else "",
)
def test_the_best_policy_is_learned(env, best, options):
    """No illegal action is taken: none in 16,384 sampled actions, nor greedily after training."""
    config = small(**options)
    state, metrics = jax.jit(make_train(config, env))(KEY)
    assert metrics["reused_resets"].sum() == metrics["lost_cuts"].sum() == 0
    assert np.nanmin(metrics["episode_return_min"]) >= -12  # Corridor's time limit
    played = evaluate.evaluate(
        KEY,
        state.learner.params,
        state.rollout.moments,
        env=env,
        policy=build(config, env).policy,
        episodes=128,
    )
    assert played.finished.all()
    np.testing.assert_allclose(played.episode_return, best)


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("trpo", probe_envs.BestCard(), {}),
        ("ppo_kl", probe_envs.Choices(), {}),
        ("actor_critic", probe_envs.Cells(), {"num_steps": 4, "actor_rate": 0.3}),
    ],
    ids=["trpo", "ppo_kl", "actor_critic"],
)
def test_the_others_of_the_family_keep_to_the_mask(algorithm, env, options):
    """Algorithms that recompute distributions or evaluate actions find the masks, too."""
    config = small(algorithm=algorithm, total_timesteps=8192, **options)
    state, metrics = jax.jit(make_train(config, env))(KEY)
    for name, value in metrics.items():
        # Once every return is 1, there is no variance to explain.
        assert np.isfinite(value).all() or name == "explained_variance", name
    assert metrics["episode_return_min"].min() >= 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params))
    early, late = metrics["episode_return"][:3].mean(), metrics["episode_return"][-3:].mean()
    assert late > early + 0.05
    if algorithm == "trpo":
        assert metrics["accepted"].mean() > 0.9 and metrics["kl"].max() <= 0.01 * (1 + 1e-4)


def test_integer_observations_of_a_suite_are_one_hot():
    config = small(env="FrozenLake-misc", total_timesteps=512)
    state, metrics = jax.jit(make_train(config))(KEY)
    assert state.learner.params["actor"]["body"]["Dense_0"]["kernel"].shape == (16, 32)
    assert np.isfinite(metrics["loss"]).all()


TREES = [
    (spaces.Discrete(3), [""], None),
    ({"b": FLAG, "a": (FLAG, spaces.Discrete(2))}, ["['a'][0]", "['a'][1]", "['b']"], None),
    ({"x": {"action_mask": FLAG}, "action_mask": FLAG}, ["['x']['action_mask']"], FLAG),
    (probe_envs.Hand(spaces.Box(-1, 1, (4,)), FLAG), [".value"], FLAG),
    (Seen(spaces.Box(-1, 1, (4,)), FLAG), [".speed"], FLAG),
    ((FLAG, spaces.MultiBinary(2)), ["[0]", "[1]"], None),
]


@pytest.mark.parametrize(("tree", "paths", "mask"), TREES)
def test_the_mask_is_told_from_the_rest(tree, paths, mask):
    assert [path for path, _ in spaces.leaves(tree)] == paths
    assert spaces.action_mask(tree) is mask


def test_spaces_describe_themselves():
    tree = {
        "map": spaces.Box(0, 255, (7, 7, 2), np.uint8),
        "arms": (spaces.MultiDiscrete([2, 3], joint=True), spaces.MultiBinary(4)),
    }
    assert spaces.describe(tree) == (
        "['arms'][0] MultiDiscrete(2, 3) joint, ['arms'][1] MultiBinary(4), "
        "['map'] Box(7, 7, 2) uint8"
    )
    assert spaces.describe(spaces.Discrete(3)) == "Discrete(3)"
    with pytest.raises(ValueError, match=r"\(3, 0\); each must be at least 1"):
        spaces.MultiDiscrete((3, 0))


def test_masks_have_the_shape_of_the_choice():
    assert spaces.mask_shape(spaces.Discrete(5)) == (5,)
    assert spaces.mask_shape(spaces.MultiDiscrete((3, 2))) == (2, 3)
    assert spaces.mask_shape(spaces.MultiDiscrete((3, 2, 4), joint=True)) == (3, 2, 4)
    assert spaces.mask_shape(spaces.MultiBinary(3)) is None
    assert spaces.drawn(spaces.MultiDiscrete((3, 2), joint=True)) == spaces.Discrete(6)
    assert spaces.drawn(spaces.MultiDiscrete((3, 2))) == spaces.MultiDiscrete((3, 2))


def test_gymnax_trees_of_spaces_are_ours():
    theirs = gymnax_spaces.Dict(
        {
            "a": gymnax_spaces.Discrete(3),
            "b": gymnax_spaces.Tuple([gymnax_spaces.Box(0, 1, (2,)), gymnax_spaces.Discrete(2)]),
        }
    )
    ours = convert_space(theirs)
    assert ours["a"] == spaces.Discrete(3) and isinstance(ours["b"], tuple)
    assert (
        spaces.describe(ours) == "['a'] Discrete(3), ['b'][0] Box(2,) float32, ['b'][1] Discrete(2)"
    )


class Shows(probe_envs.Probe):
    """One step with a given observation."""

    def __init__(self, observation_space, obs, action_space=probe_envs.Probe.action_space):
        super().__init__(observation_space, action_space)
        object.__setattr__(self, "obs", obs)

    def reset(self, key, params):
        return self.obs, jnp.zeros(())

    def step(self, key, state, action, params):
        return self.obs, state, jnp.float32(0), jnp.array(True), jnp.array(False), {}


def with_mask(mask_space, mask, actions=probe_envs.Probe.action_space):
    shown = {"x": spaces.Box(-1, 1, (1,)), "action_mask": mask_space}
    return Shows(shown, {"x": jnp.zeros(1), "action_mask": mask}, actions)


TWO = jnp.ones(2, bool)
MULTI = spaces.MultiDiscrete((3, 2))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            Shows((spaces.Discrete(2), "text"), (jnp.int32(0), jnp.zeros(1))),
            r"observation space of Shows, builtins.text, is not .* \(and any pytree of them\)",
        ),
        (
            Shows({"x": spaces.Discrete(2)}, (jnp.int32(0),)),
            r"are \('int32\[\]',\), observation_space is \['x'\] Discrete\(2\)",
        ),
        (
            Shows({"x": spaces.Box(-1, 1, (2,))}, {"x": jnp.zeros(3)}),
            r"observations\['x'\] have shape \(3,\), but its observation_space has shape \(2,\)",
        ),
        (
            Shows({"x": spaces.Discrete(2)}, {"x": jnp.float32(0)}),
            r"observations\['x'\] are float32, but its observation_space is Discrete\(2\)",
        ),
        (
            Shows(spaces.Box(0, 255, (2,), np.uint8), jnp.zeros(2)),
            r"observations are float32, but its observation_space is Box\(2,\) uint8",
        ),
        (
            Shows(spaces.MultiBinary(2), jnp.zeros(2)),
            r"observations are float32, but its observation_space is MultiBinary\(2\)",
        ),
        (
            Shows({"action_mask": spaces.Box(0, 1, (2,), bool)}, {"action_mask": TWO}),
            "Shows has nothing to observe: its observation_space has no entry except action_mask",
        ),
        (Shows({}, {}), "Shows has nothing to observe: its observation_space has no entry$"),
        (
            with_mask(spaces.Box(0, 1, (3,), bool), jnp.ones(3, bool)),
            r"is Box\(3,\) bool; for Discrete\(2\) it must be Box\(0, 1, \(2,\), bool\)",
        ),
        (
            with_mask(spaces.Box(0, 1, (2,)), TWO),
            r"is Box\(2,\) float32; for Discrete\(2\) it must be",
        ),
        (
            with_mask(spaces.MultiBinary(2), TWO),
            r"is MultiBinary\(2\); for Discrete\(2\) it must be",
        ),
        (with_mask((spaces.Discrete(2),), (TWO,)), r"is \[0\] Discrete\(2\); for Discrete\(2\) it"),
        (
            with_mask(spaces.Box(0, 1, (2,), bool), jnp.ones(2)),
            r"\['action_mask'\] are float32, but its observation_space is Box\(2,\) bool",
        ),
        (
            with_mask(spaces.Box(0, 1, (3, 2), bool), jnp.ones((3, 2), bool), MULTI),
            r"bool; for MultiDiscrete\(3, 2\) it must be Box\(0, 1, \(2, 3\), bool\)",
        ),
        (
            with_mask(spaces.Box(0, 1, (2,), bool), TWO, spaces.MultiBinary(2)),
            r"has an action_mask for MultiBinary\(2\); masks are supported for Discrete and",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused(env, message):
    with pytest.raises(envs.InvalidEnvironment, match=message):
        envs.as_env(env)


@pytest.mark.parametrize("tree", [t for t, _, _ in TREES if spaces.action_mask(t) is None])
def test_spaces_that_fit_are_taken(tree):
    envs.as_env(Shows(tree, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)))


PIXELS = spaces.Box(0, 255, (4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"x": spaces.Box(-1, 1, (3,))}, r"the observations, \['x'\] Box\(3,\) float32, there are"),
        ({"x": PIXELS, "y": PIXELS}, r"there are 2 of them; use network mlp"),
        ({"x": spaces.Box(0, 255, (2, 4, 1), np.uint8)}, r"images\['x'\] of Shows .* too small"),
    ],
)
def test_convolutions_need_one_image(shown, message):
    env = Shows(shown, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shown))
    with pytest.raises(envs.InvalidEnvironment, match=message):
        build(small(network="minatar"), env)
    if "there are" in message:
        with pytest.raises(ValueError, match="convolutional network requires one image"):
            networks.make_policy(shown, spaces.Discrete(2), cnn=((8, 3, 1),))


def test_leaves_are_laid_side_by_side():
    """In jax.tree's order: dictionaries by key. Bytes are divided by their upper bound."""
    space = {
        "bits": spaces.MultiBinary(2),
        "bytes": spaces.Box(0, 4, (2,), np.uint8),
        "choice": spaces.Discrete(3),
        "choices": spaces.MultiDiscrete((2, 3)),
        "number": spaces.Box(-9, 9, (), np.int32),
        "action_mask": FLAG,
    }
    obs = {
        "bits": jnp.array([[True, False]]),
        "bytes": jnp.array([[1, 4]], jnp.uint8),
        "choice": jnp.array([2]),
        "choices": jnp.array([[1, 0]]),
        "number": jnp.array([-7]),
        "action_mask": jnp.ones((1, 4), bool),
    }
    expected = [[1, 0, 0.25, 1, 0, 0, 1, 0, 1, 1, 0, 0, -7]]
    for image in (False, True):  # no action mask
        features = networks.preprocess(space, obs, image)
        assert features.dtype == jnp.float32
        np.testing.assert_array_equal(features, expected)
    assert networks.batch_shape(space, jax.tree.map(lambda x: x[None], obs)) == (1, 1)


def test_an_image_and_its_company():
    space = {"image": PIXELS, "cue": spaces.Discrete(2)}
    obs = {"image": jnp.full((5, 3, 4, 4, 1), 255, jnp.uint8), "cue": jnp.ones((5, 3), int)}
    seen = networks.preprocess(space, obs, image=True)
    assert seen.image.shape == (5, 3, 4, 4, 1) and (seen.image == 1.0).all()
    np.testing.assert_array_equal(seen.rest, jnp.broadcast_to(jnp.array([0.0, 1.0]), (5, 3, 2)))
    assert networks.preprocess(space, obs, image=False).shape == (5, 3, 18)
    policy = networks.make_policy(space, spaces.Discrete(2), hidden=(8,), cnn=((2, 3, 1),))
    params = policy.init(KEY, obs)
    assert params["actor"]["body"]["layers_1"]["Dense_0"]["kernel"].shape == (2 * 2 * 2 + 2, 8)
    other = policy.apply(params, obs | {"cue": obs["cue"] * 0})
    found = policy.apply(params, obs)
    assert found[1].shape == (5, 3) and (found[1] != other[1]).all()


@pytest.mark.parametrize("critic", ["v", "q", "none"])
@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (spaces.Discrete(4), Categorical),
        (spaces.MultiDiscrete((2, 2)), MultiCategorical),
        (spaces.MultiDiscrete((2, 2), joint=True), JointCategorical),
    ],
    ids=["Discrete", "MultiDiscrete", "joint"],
)
def test_every_policy_applies_the_mask_and_does_not_see_it(critic, actions, expected):
    shape = spaces.mask_shape(actions)
    space = Seen(spaces.Box(-1, 1, (3,)), spaces.Box(0, 1, shape, bool))
    legal = jnp.zeros((2, *shape), bool).at[..., 0].set(True)
    obs = Seen(jnp.ones((2, 3)), legal)
    policy = networks.make_policy(space, actions, hidden=(4,), critic=critic)
    params = policy.init(KEY, obs)
    assert params["actor"]["body"]["Dense_0"]["kernel"].shape == (3, 4)
    _, dist, value = policy.act(params, (), obs, jnp.zeros(2, bool))
    assert isinstance(dist, expected) and value.shape == (2,)
    free = policy.act(params, (), obs.replace(action_mask=~legal & False), jnp.zeros(2, bool))
    assert jnp.isfinite(free[1].logits).all()  # without a legal action, no mask
    np.testing.assert_array_equal(dist.logits, expected.masked(free[1], legal).logits)
    np.testing.assert_array_equal(value, free[2])
    action = dist.sample(KEY)
    inputs = networks.StateAction(obs, action) if critic == "q" else obs
    again, value = policy.apply(params, inputs)
    np.testing.assert_array_equal(again.logits, dist.logits)
    assert value.shape == (2,) and again.to_env(action).shape == (2, *actions.shape)
    chosen = np.asarray(again.to_env(action)).reshape(2, -1)
    assert (chosen[:, -1] == 0).all()  # the only legal one


def test_statistics_are_kept_of_numbers_alone():
    obs, _ = probe_envs.BestCard().reset(KEY, ())
    moments = normalization.init_tree(obs)
    assert isinstance(moments.value, normalization.RunningMoments) and moments.action_mask == ()
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), obs)
    moments = normalization.update_tree(moments, batch)
    seen = rollout.normalize_obs(rollout.Moments(moments), obs)
    assert seen.action_mask.dtype == bool and (seen.action_mask == obs.action_mask).all()
    obs, _ = probe_envs.ImageAndCue().reset(KEY, ())
    assert normalization.init_tree(obs) == {"cue": (), "image": ()}


def test_time_limits_are_bootstrapped_from_trees():
    """V depends only on the time; a truncation uses the value at time 4, which no row contains."""
    env = probe_envs.Signals()
    vector = envs.vectorize(env, 2, 8)
    policy = networks.make_policy(env.observation_space, env.action_space, hidden=(4,))
    state = jax.jit(lambda key: rollout.init(key, policy, vector))(KEY)
    params = jax.jit(policy.init)(KEY, state.obs)
    kernel = params["critic"]["body"]["Dense_0"]["kernel"]  # of left, the two of others[0], time
    params["critic"]["body"]["Dense_0"]["kernel"] = kernel.at[:3].set(0.0)
    collect = functools.partial(rollout.collect, env=vector, policy=policy, num_steps=8, gamma=0.9)
    _, trajectory = jax.jit(collect)(KEY, params, state)
    time = np.tile(np.arange(4), 2)
    np.testing.assert_array_equal(trajectory.obs["others"][1], np.stack([time, time], 1))
    np.testing.assert_array_equal(trajectory.done, np.stack([time == 3, time == 3], 1))
    shown = {"left": jnp.zeros((5, 1)), "others": (jnp.zeros(5, int), jnp.arange(5))}
    value = np.asarray(policy.value(params, shown))
    assert len(np.unique(value)) == 5
    for n in range(2):
        np.testing.assert_allclose(trajectory.value[:, n], value[time], rtol=1e-5)
        np.testing.assert_allclose(trajectory.next_value[:, n], value[time + 1], rtol=1e-5)


def test_rows_of_weight_zero_may_hold_anything():
    """Infinite numbers, no legal action, and an illegal action."""
    env = probe_envs.BestCard()
    policy = networks.make_policy(env.observation_space, env.action_space, hidden=(4,))
    obs = jax.jit(jax.vmap(lambda k: env.reset(k, ())[0]))(jax.random.split(KEY, 4))
    params = jax.jit(policy.init)(KEY, obs)
    dist = policy.apply(params, obs)[0]
    action, ones = dist.mode(), jnp.ones(4)
    batch = Batch(obs, action, dist.log_prob(action), ones, ones, ones * 2, ones)
    loss_fn = ppo.make_loss(policy, ppo.Config(entropy_coef=0.1))
    gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
    expected = gradient(params, jax.tree.map(lambda x: x[:3], batch))[0]
    nothing = probe_envs.Hand(obs.value.at[3].set(jnp.inf), obs.action_mask.at[3].set(False))
    spoilt = dataclasses.replace(
        batch, obs=nothing, action=action.at[3].set(9), weight=ones.at[3].set(0.0)
    )
    chex.assert_trees_all_close(gradient(params, spoilt)[0], expected, atol=1e-6)
    empty = dataclasses.replace(spoilt, weight=jnp.zeros(4))
    assert all((x == 0).all() for x in jax.tree.leaves(gradient(params, empty)[0]))
    assert not losses.mask(empty).obs.action_mask.any()


def test_a_checkpoint_holds_any_tree(tmp_path):
    program = build(small(normalize_obs=True, num_envs=2, num_steps=8), probe_envs.BestCard())
    state = jax.jit(program.init)(KEY)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"algorithm": "ppo"})
    checkpoints.save(1, state)
    restored = checkpoints.restore(jax.eval_shape(program.init, KEY))[1]
    assert isinstance(restored.rollout.obs, probe_envs.Hand)
    chex.assert_trees_all_equal(restored.rollout.obs, state.rollout.obs)
    chex.assert_trees_all_equal(restored.rollout.moments, state.rollout.moments)
