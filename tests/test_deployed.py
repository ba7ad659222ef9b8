"""A deployed agent speaks the environment's own language: one conformance test for every space.

Each environment below refuses actions that are not of its action space, and pays for the numbers in
them. The agent, loaded or exported, steps it as its user does: what `reset` and `step` return goes
in, what comes out goes to `step`; and the returns are those of `ppo_jax.evaluate`.
"""

import copy
import dataclasses
import functools
import json
import subprocess
import sys

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
from ppo_jax.runs.trust import Given
from ppo_jax.train import build

gymnasium = pytest.importorskip("gymnasium")

from ppo_jax.envs import action_masks, host_spaces, mask_layouts  # noqa: E402

g = gymnasium.spaces
KEY = jax.random.key(0)
EPISODES, LENGTH = 3, 4
MASKS = ("obs", "info", "method")


class Spoken(gymnasium.Env):
    """Any spaces; the reward is a sum of the action's numbers. Masks are random, if there are any.

    Args:
        observation_space, action_space: its own.
        mask: (where it is said, the function of rows of legal choices that says it); None: nowhere.
    """

    seeds = []  # noqa: RUF012  # of the resets of all of them

    def __init__(self, observation_space, action_space, mask=None):
        # Spaces hold generators of their own: each environment has its.
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = action_space
        self.where, self.say = mask or (None, None)
        if self.where == "method":
            self.action_masks = self._mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            Spoken.seeds.append(seed)
            self.observation_space.seed(seed)
        self.time = 0
        return self._observed()

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if self.where:
            start = getattr(self.action_space, "start", 0)
            chosen = np.reshape(np.asarray(action) - start, -1)
            assert all(row[i] for row, i in zip(self.rows, chosen, strict=True)), "illegal"
        self.time += 1
        numbers = np.asarray(action, float).reshape(-1)
        reward = float(numbers @ np.arange(1, numbers.size + 1))
        obs, info = self._observed()
        return obs, reward, self.time >= LENGTH, False, info

    def _observed(self):
        obs = self.observation_space.sample()
        if not self.where:
            return obs, {}
        sizes = np.reshape(counts(self.action_space), -1)
        self.rows = [self.np_random.integers(0, 2, n) for n in sizes]
        for row in self.rows:
            row[self.np_random.integers(len(row))] = 1
        if self.where == "obs":
            obs["action_mask"] = self._mask()
        return obs, {"action_mask": self._mask()} if self.where == "info" else {}

    def _mask(self):
        return self.say(self.rows)


def counts(space):
    """Numbers of choices of each component."""
    if isinstance(space, g.MultiBinary):
        return np.full(space.shape, 2)
    return space.nvec if isinstance(space, g.MultiDiscrete) else np.array([space.n])


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
    "memory": (g.Discrete(3, start=-1), {"memory": "gru", "memory_size": 4}),
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
    """An agent with weights far enough from 0 for its actions to differ."""
    config = configs.make(preset="none", num_envs=2, num_steps=4, hidden=(4,), **options)
    program = build(config, maker)
    parts = agent.parts_of(program_config(config), program, jax.jit(program.init)(KEY))
    head = {"head": jax.tree.map(lambda x: x * 100, parts.params["actor"]["head"])}
    return parts._replace(params=parts.params | {"actor": parts.params["actor"] | head})


def program_config(config):
    return dataclasses.replace(config, env="<Spoken>")


def call(act, maker, obs, info, env, **more):
    """The action of what reset or step has just returned."""
    source = act.parts.codec.mask_source
    if source == action_masks.INFO:
        more["action_mask"] = info["action_mask"]
    elif source == action_masks.METHOD:
        more["action_mask"] = env.get_wrapper_attr("action_masks")()
    return act(obs, **more)


def returns(choose, maker, seeds):
    """The return of an episode for each seed, stepped as a user does."""
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
    """An agent as a chooser of actions."""

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
        pytest.param(
            k, w, marks=() if (k, w) in {("flat", "method")} else pytest.mark.slow
        )
        for k in MASKED
        for w in MASKS
    ],
)
def test_a_masked_agent_earns_what_it_is_evaluated_with(layout, where):
    """Every action is legal: the environment looks."""
    actions, say, space = MASKED[layout]
    small = g.Dict({"x": g.Box(-1, 1, (3,)), "y": g.Discrete(2, start=1)})
    maker = maker_of(actions, small, (where, say), space)
    check_returns(parts_of(maker), maker)
