"""Conformance of deployed agents with environments, for every kind of space.

Each environment below refuses actions outside its action space, and its reward depends on the
numbers in the actions. The loaded or exported agent is used as by a user: it receives what `reset`
and `step` return, and its actions are passed to `step`. The returns must equal those of
`ppo_jax.evaluate`.
"""

import copy
import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
from ppo_jax import agent, envs, export, networks
from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.envs import InvalidEnvironment, spaces
from ppo_jax.evaluate import evaluate
from ppo_jax.experiment import RunOptions, train
from ppo_jax.train import build

gymnasium = pytest.importorskip("gymnasium")

from deployed_envs import Distance, Spoken, Start  # noqa: E402
from ppo_jax.envs import action_masks, host_spaces, mask_layouts  # noqa: E402

g = gymnasium.spaces
KEY = jax.random.key(0)
EPISODES = 3
MASKS = ("obs", "info", "method")


def side_by_side(rows):
    return np.concatenate(rows).astype(np.int8)


def padded(rows):
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows]).astype(bool)


def in_parts(rows):
    return tuple(row.astype(np.int8) for row in rows)


def by_name(rows):
    return {f"arm{i}": row.astype(np.int8) for i, row in enumerate(rows)}


PIXELS = g.Box(0, 255, (3, 5, 7), np.uint8)
OBSERVATIONS = {
    "Discrete": g.Discrete(5, start=-2),
    "Discrete int32": g.Discrete(5, start=3, dtype=np.int32),
    "Discrete huge": g.Discrete(4, start=2**40),
    "MultiDiscrete": g.MultiDiscrete([3, 4], start=[-1, 7]),
    "MultiDiscrete 2-D": g.MultiDiscrete([[2, 3], [4, 2]], start=[[0, -1], [5, 2]]),
    "MultiBinary": g.MultiBinary(3),
    "MultiBinary 2-D": g.MultiBinary((2, 3)),
    "float64": g.Box(-1.0, np.inf, (3,), np.float64),
    "float16": g.Box(-1.0, 1.0, (3,), np.float16),
    "bool": g.Box(0, 1, (3,), np.bool_),
    "int8": g.Box(-100, 100, (3,), np.int8),
    "uint16": g.Box(0, 65535, (3,), np.uint16),
    "int64": g.Box(-5, 5, (2, 2), np.int64),
    "int64 wide": g.Box(-(2**62), 2**62, (2,), np.int64),
    "uint32": g.Box(0, 2**32 - 1, (2,), np.uint32),
    "uint8 CHW": PIXELS,
    "uint8 HWC": g.Box(0, 255, (5, 7, 3), np.uint8),
    "float CHW": g.Box(0.0, 1.0, (3, 6, 6), np.float32),
    "Tuple": g.Tuple((g.Discrete(2, start=1), g.Dict({"deep": g.MultiBinary((1, 2))}))),
    "Dict": g.Dict({"image": PIXELS, "place": g.Discrete(3, start=-1), "speed": g.Box(-1, 1, ())}),
}
EVERYTHING = g.Dict(
    {k.replace(" ", "_"): s for k, s in OBSERVATIONS.items() if k != "Discrete huge"}
)
ACTIONS = {
    "Discrete": (g.Discrete(3, start=-1), {}),
    "Discrete uint8": (g.Discrete(4, start=2, dtype=np.uint8), {}),
    "MultiDiscrete": (g.MultiDiscrete([3, 4], start=[-1, 7]), {}),
    "MultiDiscrete 2-D": (g.MultiDiscrete([[2, 3], [4, 2]], start=[[0, -1], [5, 2]]), {}),
    "MultiBinary": (g.MultiBinary(3), {}),
    "MultiBinary 2-D": (g.MultiBinary((2, 3)), {}),
    "Box": (g.Box(-0.3, 0.1, (2, 2), np.float32), {}),
    "Box float64": (g.Box(-0.3, 0.7, (2,), np.float64), {}),
    "Box squashed": (g.Box(np.array([-0.3, 0.1]), np.array([0.1, 0.3]), dtype=np.float64),
                     {"squash": True}),
    "Box mapped": (g.Box(np.array([10.0, 0.1, -1.0]), np.array([20.0, np.inf, 1.0]),
                         dtype=np.float64), {}),
    "Box not mapped": (g.Box(10.0, 20.0, (1,)), {"map_actions": False}),
    "memory": (g.Discrete(3, start=-1), {"memory": "gru", "memory_size": 4, "minibatches": 2}),
}  # fmt: skip
MULTI = g.MultiDiscrete([[2, 3], [4, 2]], start=[[0, -1], [5, 2]])
MASKED = {
    "Discrete": (g.Discrete(4, start=-1), lambda rows: rows[0].astype(np.int8), g.MultiBinary(4)),
    "flat": (MULTI, side_by_side, g.MultiBinary(11)),
    "rows": (MULTI, padded, g.Box(0, 1, (4, 4), np.bool_)),
    "parts": (MULTI, in_parts, g.Tuple([g.MultiBinary(n) for n in (2, 3, 4, 2)])),
    "names": (MULTI, by_name,
              g.Dict({f"arm{i}": g.MultiBinary(n) for i, n in enumerate((2, 3, 4, 2))})),
    "bits": (g.MultiBinary((2, 2)), side_by_side, g.MultiBinary(8)),
}  # fmt: skip


def maker_of(actions, observations=EVERYTHING, mask=None, space=None):
    if mask is not None and mask[0] == "obs":
        observations = g.Dict({**observations.spaces, "action_mask": space})
    return functools.partial(Spoken, observations, actions, mask)


def parts_of(maker, **options):
    """An agent whose weights are far enough from 0 to produce different actions."""
    config = configs.make(preset="none", num_envs=2, num_steps=4, hidden=(4,), **options)
    program = build(config, maker)
    parts = agent.parts_of(program_config(config), program, jax.jit(program.init)(KEY))
    head = {"head": jax.tree.map(lambda x: x * 100, parts.params["actor"]["head"])}
    return parts._replace(params=parts.params | {"actor": parts.params["actor"] | head})


def program_config(config):
    return dataclasses.replace(config, env="<Spoken>")


def call(act, maker, obs, info, env, **more):
    """The action for the values that reset or step has just returned."""
    source = act.parts.codec.mask_source
    if source == action_masks.INFO:
        more["action_mask"] = info["action_mask"]
    elif source == action_masks.METHOD:
        more["action_mask"] = env.get_wrapper_attr("action_masks")()
    return act(obs, **more)


def returns(choose, maker, seeds):
    """The return of one episode for each seed, stepped as by a user."""
    found = []
    for seed in seeds:
        env, total, done = maker(), 0.0, False
        obs, info = env.reset(seed=seed)
        first = True
        while not done:
            obs, reward, terminated, truncated, info = env.step(choose(obs, info, env, first))
            total, done, first = total + reward, terminated or truncated, False
        found.append(total)
    return found


def evaluated(parts, maker):
    """(returns, seeds of the environments) of `evaluate`."""
    Spoken.seeds.clear()
    played = evaluate(
        KEY,
        parts.params,
        parts.moments,
        env=envs.as_env(maker),
        policy=parts.policy,
        episodes=EPISODES,
    )
    return np.asarray(played.episode_return), Spoken.seeds[-EPISODES:]


def loaded(act, maker):
    """An agent as a function from observations to actions."""

    def choose(obs, info, env, first):
        if first:
            act.reset()
        return call(act, maker, obs, info, env)

    return choose


def check_returns(parts, maker):
    expected, seeds = evaluated(parts, maker)
    found = returns(loaded(agent.Agent(parts), maker), maker, seeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    return expected, seeds


QUICK = ("Discrete uint8", "MultiDiscrete 2-D", "Box mapped")


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in ACTIONS]
)
def test_a_loaded_agent_earns_what_it_is_evaluated_with(kind):
    actions, options = ACTIONS[kind]
    maker = maker_of(actions)
    check_returns(parts_of(maker, **options), maker)


@pytest.mark.parametrize(
    ("layout", "where"),
    [
        pytest.param(k, w, marks=() if (k, w) in {("flat", "method")} else pytest.mark.slow)
        for k in MASKED
        for w in MASKS
    ],
)
def test_a_masked_agent_earns_what_it_is_evaluated_with(layout, where):
    """Every action is legal, which the environment checks."""
    actions, say, space = MASKED[layout]
    small = g.Dict({"x": g.Box(-1, 1, (3,)), "y": g.Discrete(2, start=1)})
    maker = maker_of(actions, small, (where, say), space)
    check_returns(parts_of(maker), maker)


def entry(obs, mask, name):
    """The value for a named input, following the description in docs/export.md."""
    first, *keys = name.split(".")
    value = mask if first == "action_mask" else obs
    for key in keys:
        value = value[int(key)] if isinstance(value, tuple | list) else value[key]
    return value


def exported(run, header, source, dtype):
    """An exported file as a function from observations to actions; only its header is used."""

    def choose(obs, info, env, first):
        mask = info.get("action_mask")
        mask = env.get_wrapper_attr("action_masks")() if source == "method" else mask
        arrays = [
            np.asarray(entry(obs, mask, port["name"]))[None].astype(port[dtype])
            for port in header["inputs"]
        ]
        return np.asarray(run(*arrays))[0]

    return choose


def check_stablehlo(parts, maker, folder, source=None):
    expected, seeds = check_returns(parts, maker)
    export.stablehlo.check(parts)
    path, described = export.stablehlo.write(parts, folder / "a.stablehlo")
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    choose = exported(program.call, json.loads(described.read_text()), source, "dtype")
    np.testing.assert_allclose(returns(choose, maker, seeds), expected, rtol=1e-5, atol=1e-3)
    return expected


def check_onnx(parts, maker, folder, source=None):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    expected, seeds = evaluated(parts, maker)
    (path,) = export.onnx.write(parts, folder / "a.onnx")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    header = {"inputs": json.loads(session.get_modelmeta().custom_metadata_map["inputs"])}
    names = [port["name"] for port in header["inputs"]]

    def run(*arrays):
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    choose = exported(run, header, source, "env_dtype")
    np.testing.assert_allclose(returns(choose, maker, seeds), expected, rtol=1e-5, atol=1e-3)


FEED_FORWARD = [kind for kind in ACTIONS if kind != "memory"]


def test_an_exported_program_speaks_the_environment_s_language(tmp_path):
    pytest.importorskip("flatbuffers")
    maker = maker_of(ACTIONS["Discrete"][0])
    expected = check_stablehlo(parts_of(maker), maker, tmp_path)
    assert len(set(expected.tolist())) > 1  # the actions depend on the observations


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_an_exported_program_earns_what_is_evaluated(tmp_path, kind):
    pytest.importorskip("flatbuffers")
    actions, options = ACTIONS[kind]
    maker = maker_of(actions)
    check_stablehlo(parts_of(maker, **options), maker, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_a_fresh_process_acts_as_the_agent(tmp_path, format):
    """For observations of every kind, including some that did not occur in training."""
    pytest.importorskip("flatbuffers" if format == "stablehlo" else "jax2onnx")
    actions, say, _ = MASKED["parts"]
    parts = parts_of(maker_of(actions, EVERYTHING, ("info", say)))
    path, *_ = export.FORMATS[format].write(parts, tmp_path / "a")
    count, difference = export.verify.compare(parts, format, path)
    assert count == 256 and difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("where", MASKS)
@pytest.mark.parametrize("layout", MASKED)
def test_an_exported_program_keeps_to_the_mask(tmp_path, layout, where):
    pytest.importorskip("flatbuffers")
    actions, say, space = MASKED[layout]
    small = g.Dict({"x": g.Box(-1, 1, (3,)), "y": g.Discrete(2, start=1)})
    maker = maker_of(actions, small if where != "info" else PIXELS, (where, say), space)
    check_stablehlo(parts_of(maker), maker, tmp_path, where)


@pytest.mark.peers
@pytest.mark.parametrize("kind", FEED_FORWARD)
def test_an_onnx_graph_earns_what_is_evaluated(tmp_path, kind):
    actions, options = ACTIONS[kind]
    maker = maker_of(actions)
    check_onnx(parts_of(maker, **options), maker, tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize("layout", MASKED)
def test_an_onnx_graph_keeps_to_the_mask(tmp_path, layout):
    actions, say, space = MASKED[layout]
    maker = maker_of(actions, PIXELS, ("info", say), space)
    check_onnx(parts_of(maker), maker, tmp_path, "info")


def batch_of(space, count=6):
    """Samples in the environment's types, stacked along a new axis."""
    space = copy.deepcopy(space)
    space.seed(3)
    return gymnasium.vector.utils.concatenate(
        space,
        [space.sample() for _ in range(count)],
        gymnasium.vector.utils.create_empty_array(space, count),
    )


@pytest.mark.parametrize("kind", [k for k in OBSERVATIONS if k != "Discrete huge"])
def test_the_host_and_a_program_read_alike(kind):
    """Reading can be inverted, except for the lowest digits of wide integers."""
    space = OBSERVATIONS[kind]
    spoken = host_spaces.codec(space, g.Discrete(2), "here")
    obs = batch_of(space)
    arrays, single = agent.as_batch(spoken.arrays(obs), spoken.ports)
    assert not single
    ours = spoken.read(arrays)
    inside = [x.astype(p.program_dtype) for x, p in zip(arrays, spoken.ports, strict=True)]
    program = spoken.read([jnp.asarray(x) for x in inside], jnp)
    tree = host_spaces.observation_leaves(space, "here")
    is_leaf = lambda x: hasattr(x, "decode")
    stepped = jax.tree.map(lambda leaf: leaf.read(leaf.of(obs)), tree, is_leaf=is_leaf)
    described = jax.tree.map(lambda leaf: leaf.space, tree, is_leaf=is_leaf)
    for x, y, z, s in zip(*map(jax.tree.leaves, (ours, program, stepped, described)), strict=True):
        assert x.dtype == y.dtype == z.dtype == s.dtype and x.shape[1:] == s.shape
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x, z)
    for x, y, p in zip(arrays, spoken.unread(ours), spoken.ports, strict=True):
        assert y.dtype == p.dtype
        np.testing.assert_allclose(y, x, rtol=1e-6 if x.dtype.itemsize > 2 else 0)


def test_start_offsets_go_in_and_come_out():
    """Both spaces start at -1: the numbers of the user's space, for one and for many."""
    act = agent.Agent(parts_of(Start))
    assert {int(act(i)) for i in (-1, 0, 1)} <= {-1, 0, 1}
    assert act(np.int64(-1)).dtype == np.int64 and Start.action_space.contains(act(-1))
    many = act([-1, 0, 1])
    assert many.shape == (3,) and [act(i) for i in (-1, 0, 1)] == many.tolist()
    for wrong in (2, -2, 2**40):
        with pytest.raises(ValueError, match=f"the observation contains {wrong}; .* from -1 to 1"):
            act(wrong)


def test_images_come_in_the_environment_s_order():
    """[C, H, W] as returned by reset, not in the network's order."""
    maker = functools.partial(Spoken, PIXELS, g.Discrete(2))
    act = agent.Agent(parts_of(maker))
    assert act.observation_space.shape == (5, 7, 3)
    frame = batch_of(PIXELS, 2)
    assert act(frame).shape == (2,) and act(frame[0]) == act(frame)[0]
    with pytest.raises(ValueError, match=r"has shape \(5, 7, 3\); it must be \(3, 5, 7\)"):
        act(np.moveaxis(frame[0], 0, -1))


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((3, 84, 84), "first"),
        ((12, 84, 84), "first"),
        ((1, 84, 84), "first"),
        ((119, 8, 8), "first"),
        ((3, 24, 36), "first"),
        ((84, 84, 3), "last"),
        ((84, 84, 12), "last"),
        ((8, 8, 119), "last"),
        ((24, 36, 3), "last"),
        ((210, 160, 1), "last"),
        ((5, 5, 5), ""),
        ((84, 3, 84), ""),
        ((9, 20, 30), ""),
        ((3, 4, 2), ""),
        ((3,), "last"),
        ((2, 3, 4, 5), "last"),
    ],
)
def test_the_shape_says_where_channels_are(shape, order):
    assert host_spaces.image_order(shape) == order


def test_images_of_unknown_order_are_asked_about():
    space = g.Box(0.0, 1.0, (5, 9, 20), np.float32)
    leaf = functools.partial(host_spaces.observation_leaves, space, "here")
    assert leaf().space.unordered and leaf().space.shape == (5, 9, 20)
    assert leaf(channels="first").space.shape == (9, 20, 5)
    assert leaf(channels="last").space.shape == (5, 9, 20)
    assert not leaf(channels="last").space.unordered
    config = configs.make(preset="none", network="minatar")
    with pytest.raises(InvalidEnvironment, match=r"channel axis is ambiguous.* channels=first"):
        build(config, functools.partial(Spoken, space, g.Discrete(2)))
    with pytest.raises(InvalidEnvironment, match="unknown channels 'frist'; did you mean first"):
        envs.make("gymnasium:CartPole-v1", channels="frist")
    if "ImageOf-v0" not in gymnasium.registry:
        gymnasium.register("ImageOf-v0", functools.partial(Spoken, space, g.Discrete(2)))
    env = envs.make("gymnasium:ImageOf-v0", channels="first")
    assert env.observation_space.shape == env.evaluation().observation_space.shape == (9, 20, 5)
    assert env.codec.ports[0].shape == (5, 9, 20)


INTEGERS = [
    (g.Box(-5, 5, (2,), np.int64), [3, 2**31], np.int32),
    (g.Box(0, 10, (2,), np.uint32), [3, 2**32 - 1], np.int32),
    (g.Box(0, 10, (2,), np.uint64), [3, 2**63], np.int32),
    (g.Box(0, 255, (2,), np.uint8), [3, 256], np.uint8),
    (g.Box(0, 255, (2,), np.uint8), [3, -1], np.uint8),
    (g.Box(-9, 9, (2,), np.float64), [3, 1e300], np.float32),
    (g.MultiDiscrete([3, 4]), [1, 2**31], np.int32),
]


@pytest.mark.parametrize(("space", "value", "dtype"), INTEGERS)
def test_numbers_never_wrap(space, value, dtype):
    """Values that the type cannot represent are errors with the name of the leaf, also in
    training."""
    tree = host_spaces.observation_leaves(g.Dict({"x": g.Tuple((space,))}), "Here")
    (leaf,) = tree["x"]
    assert leaf.space.dtype == dtype
    wrong = np.array([value], np.uint64 if value[1] == 2**63 else None)
    shown = f"{value[1]:g}" if isinstance(value[1], float) else str(value[1])
    message = rf"observations\['x'\]\[0\] of Here has the value {shown.replace('+', '.')}, which"
    with pytest.raises(ValueError, match=message):
        leaf.read(wrong)


def test_integers_beyond_32_bits_are_numbers():
    for space in (OBSERVATIONS["int64 wide"], OBSERVATIONS["uint32"]):
        leaf = host_spaces.observation_leaves(space, "here")
        values = np.array([[2**31, 2**32 - 1]], space.dtype)
        assert leaf.space.dtype == np.float32 and leaf.space.bounded
        np.testing.assert_array_equal(leaf.read(values), np.float32([[2**31, 2**32 - 1]]))


def test_a_choice_that_starts_far_away():
    """The host reads it exactly; a program with 32-bit integers cannot, and is refused."""
    space = OBSERVATIONS["Discrete huge"]
    leaf = host_spaces.observation_leaves(space, "here")
    np.testing.assert_array_equal(leaf.read(np.arange(2**40, 2**40 + 4)), [0, 1, 2, 3])
    maker = functools.partial(Spoken, space, g.Discrete(3, start=2**40))
    parts = parts_of(maker)
    action = agent.Agent(parts)(2**40 + 1)
    assert 0 <= int(action) - 2**40 < 3
    with pytest.raises(ConfigError, match=r"obs has values from 1099511627776 .* safetensors"):
        export.stablehlo.check(parts)
    with pytest.raises(InvalidEnvironment, match="there are too many; use a Box"):
        host_spaces.observation_leaves(g.Discrete(2**40), "here")


@pytest.mark.parametrize("bound", [0.1, 0.3, 1 / 3, 0.7])
def test_numbers_of_a_program_stay_inside_bounds_of_64_bits(bound):
    space = g.Box(-bound, bound, (1,), np.float64)
    action = host_spaces.action(space, "here")
    for xp in (np, jnp):
        found = np.asarray(action.encode(xp.asarray([[-9.0], [9.0]], np.float32), xp))
        assert all(space.contains(x) for x in found)
        np.testing.assert_allclose(found, [[-bound], [bound]], rtol=1e-6)


ROWS = [np.array([1, 0]), np.array([0, 1, 1]), np.array([1, 1, 0, 1]), np.array([0, 1])]


@pytest.mark.parametrize("say", [side_by_side, padded, in_parts, by_name, list])
def test_every_layout_of_a_mask_is_the_same_mask(say):
    said = say(ROWS)
    layout = mask_layouts.layout_of(mask_layouts.arrays_of(said), MULTI, "mask")
    np.testing.assert_array_equal(layout.one(said, "here"), padded(ROWS))
    arrays = [np.asarray(x)[None] for x in layout.of(said)]
    np.testing.assert_array_equal(layout.decode([jnp.asarray(x) for x in arrays], jnp)[0],
                                  padded(ROWS))  # fmt: skip
    for x, y in zip(layout.encode(padded(ROWS)[None]), arrays, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("mask", "actions", "message"),
    [
        (
            np.ones(3),
            g.Discrete(4),
            r"shape \(3,\); for the actions Discrete\(4\) it must be \(4,\)",
        ),
        (np.ones(4), g.MultiDiscrete([2, 3]), r"\(5,\), all components concatenated; \(2, 3\), a"),
        ((np.ones(3), np.ones(2)), g.MultiDiscrete([2, 3]), "2 masks with 2, 3 entries"),
        (np.ones(3), g.MultiBinary(3), r"must be \(6,\), all components"),
    ],
)
def test_masks_that_fit_no_layout_are_refused(mask, actions, message):
    maker = functools.partial(Spoken, PIXELS, actions, ("info", lambda rows: mask))
    with pytest.raises(InvalidEnvironment, match=message):
        envs.as_env(maker)


def test_a_mask_that_fails_is_said_before_training():
    maker = functools.partial(Spoken, PIXELS, g.Discrete(3), ("method", lambda rows: 1 / 0))
    with pytest.raises(
        InvalidEnvironment, match=r"action_masks\(\) of Spoken failed .*ZeroDivision"
    ):
        envs.as_env(maker)


def test_a_mask_beside_the_observation_is_given_to_the_agent():
    actions, say, _ = MASKED["Discrete"]
    maker = maker_of(actions, g.Box(-1, 1, (3,)), ("info", say))
    act = agent.Agent(parts_of(maker))
    for legal in range(4):
        mask = np.eye(4, dtype=np.int8)[legal]
        assert act(np.zeros(3), action_mask=mask) == legal - 1
    many = act(np.zeros((4, 3)), action_mask=np.eye(4))
    np.testing.assert_array_equal(many, [-1, 0, 1, 2])
    with pytest.raises(ValueError, match=r"mask is info\[\"action_mask\"\]"):
        act(np.zeros(3))
    with pytest.raises(ValueError, match=r"the action_mask has shape \(3,\)"):
        act(np.zeros(3), action_mask=np.ones(3))


def test_a_mask_that_is_forgotten_is_said_in_words():
    actions, say, _ = MASKED["Discrete"]
    env = maker_of(actions, g.Box(-1, 1, (3,)), ("info", say))()
    found = action_masks.find(env, "Here")
    shown = action_masks.MaskedEnv(env, found, "Here")
    assert shown.observation_space.contains(shown.reset(seed=1)[0])
    env.where = "nowhere"
    with pytest.raises(ValueError, match="Here: info has no action_mask here"):
        shown.reset()


FRAMES = [
    ((-1, 1), None),
    ((-2, 2), None),
    ((-1, 2), None),
    ((-0.4, 0.4), None),
    ((-np.inf, np.inf), None),
    ((-1, np.inf), None),
    ((0, 1), (0.5, 0.5)),
    ((10, 20), (15, 5)),
    ((-20, -10), (-15, 5)),
    ((0.001, 0.002), (0.0015, 0.0005)),
    ((5, np.inf), (6, 1)),
    ((-np.inf, 0), (-1, 1)),
    ((3, 3), None),
]


@pytest.mark.parametrize(("bounds", "frame"), FRAMES)
def test_where_a_gaussian_is_moved(bounds, frame):
    """Scaled per element; the other entry is not scaled."""
    box = spaces.Box(np.array([bounds[0], -1.0]), np.array([bounds[1], 1.0]), (2,))
    found = spaces.action_frame(box)
    assert (found is None) == (frame is None)
    if frame:
        np.testing.assert_allclose(found, [[frame[0], 0], [frame[1], 1]], rtol=1e-5)
        said = networks.first_actions(box, 0.0, True)
        assert "are mapped" in said and f"[{bounds[0]:g}, {bounds[1]:g}] of action [0];" in said
        assert "omit --no-map-actions" in networks.first_actions(box, 0.0, False)


def test_the_first_actions_are_spread_over_the_bounds():
    """An environment with the usual bounds has the same policy as before."""
    space = spaces.Box(np.array([10.0, -1.0]), np.array([20.0, 1.0]), (2,))
    obs = jnp.zeros((1, 3))
    moved = networks.make_policy(spaces.Box(-1, 1, (3,)), space, map_actions=True)
    params = moved.init(KEY, obs)
    dist = moved.act(params, (), obs, None)[1]
    drawn = dist.to_env(dist.sample_from(dist.noise(KEY, (2000,))))[:, 0]
    np.testing.assert_allclose(dist.to_env(dist.mode()), [[15.0, 0.0]], atol=1e-3)
    assert 0.6 < np.mean((drawn[:, 0] > 10) & (drawn[:, 0] < 20)) < 0.75
    usual = networks.make_policy(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)), map_actions=True)
    assert usual.act(params, (), obs, None)[1].shift is None


@pytest.mark.parametrize(
    ("low", "high", "log_std", "said"),
    [
        (
            -1000,
            1000,
            0.0,
            r"deviation 1, which is 0.001 times half the range of the bounds \[-1000",
        ),
        (-1e-3, 1e-3, 0.0, r"which is 1e\+03 times half the range"),
        (-1000, 1000, 5.0, None),
        (-1, 1, 0.0, None),
        (-0.4, 0.4, 0.0, None),
    ],
)
def test_a_spread_out_of_all_proportion_is_said(low, high, log_std, said):
    found = networks.first_actions(spaces.Box(low, high, (1,)), log_std, True)
    assert found is None if said is None else re.search(said, found)
    assert networks.first_actions(spaces.Discrete(3), 0.0, True) is None


def test_a_run_from_before_there_was_the_option_clips():
    """An old config.json keeps its meaning, and its checkpoints remain valid."""
    from ppo_jax.runs.folder import identity_of

    assert configs.make(preset="none").map_actions
    old = {k: v for k, v in configs.to_json(configs.make()).items() if k != "map_actions"}
    config = configs.from_saved(old)
    assert not config.map_actions
    found = identity_of(config)
    assert found["defaults"] | old | {"map_actions": False} == found["identity"] | {
        k: old[k] for k in ("total_timesteps", "anneal_timesteps")
    }


@pytest.mark.slow
def test_a_run_is_loaded_evaluated_and_exported(tmp_path, monkeypatch):
    """Training, loading and exporting by name alone; the return is ten of ten in each case."""
    pytest.importorskip("flatbuffers")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    config = configs.make(preset="none", env="deployed_envs:Start", total_timesteps=20_480)
    assert train(config, RunOptions(run_dir=tmp_path / "run", eval_episodes=4)).exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval_return_mean"] == 10.0
    for format in ("stablehlo", "safetensors"):
        assert export.export(tmp_path / "run", format).max_difference == 0.0
    program = jax.export.deserialize(bytearray((tmp_path / "run/policy.stablehlo").read_bytes()))

    def straight(obs, info, env, first):
        """The value that reset returned, in its own type, because JAX would convert it to 32
        bits."""
        assert obs.dtype == np.int64
        return np.asarray(program.call(obs[None]))[0]

    assert returns(straight, Start, range(5)) == [10.0] * 5
    for source in (tmp_path / "run", tmp_path / "run" / "policy.safetensors"):
        act = ppo_jax.load(source)
        assert returns(loaded(act, Start), Start, range(5)) == [10.0] * 5
    assert ppo_jax.evaluate(tmp_path / "run", 4).episode_return.tolist() == [10.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "best", "reached"),
    [(10, 20, 15, -5.0), (0, 1, 0.5, -1.0), (0.001, 0.002, 0.0015, -0.001), (5, np.inf, 7, -5.0)],
)
def test_bounds_off_0_are_learned_in(tmp_path, low, high, best, reached):
    maker = functools.partial(Distance, float(low), float(high), best)
    config = configs.make(preset="none", total_timesteps=40_000, num_envs=8)
    with pytest.warns(UserWarning, match="a Gaussian around 0 starts outside or at the edge"):
        result = ppo_jax.run(config, tmp_path / "run", env=maker, eval_episodes=16)
    assert result.summary["eval_return_mean"] > reached
    act = ppo_jax.load(tmp_path / "run", env=maker)
    assert np.mean(returns(loaded(act, maker), maker, range(4))) > reached
