"""Asymmetric critics: an entry of the observation that the critic alone receives."""

import json
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
import probe_envs
from ppo_jax import agent, envs, export, networks
from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.envs import InvalidEnvironment, spaces
from ppo_jax.networks import SequenceInputs, StateAction
from ppo_jax.train import build

KEY = jax.random.key(0)
BOX = spaces.Box(-1.0, 1.0, (2,))
SPACE = {"seen": BOX, "critic_observation": spaces.Box(-1.0, 1.0, (3,))}
SMALL = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "hidden": (8,), "minibatches": 2}


class HiddenSign(probe_envs.Probe):
    """One step; the reward is a sign that only the critic observes. V = ±1."""

    def __init__(self):
        super().__init__(
            observation_space={"seen": BOX, "critic_observation": spaces.Box(-1.0, 1.0, (1,))}
        )

    def reset(self, key, params):
        sign = jax.random.rademacher(key, (), jnp.float32)
        return {"seen": jnp.zeros(2), "critic_observation": sign[None]}, sign

    def step(self, key, state, action, params):
        obs = {"seen": jnp.zeros(2), "critic_observation": state[None]}
        return obs, state, state, jnp.array(True), jnp.array(False), {}


def some(*lead, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "seen": jax.random.normal(keys[0], (*lead, 2)),
        "critic_observation": jax.random.normal(keys[1], (*lead, 3)),
    }


def other(obs):
    return obs | {"critic_observation": obs["critic_observation"] + 1.0}


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("critic", ["v", "q"])
def test_only_the_critic_receives_the_entry(memory, critic):
    obs, action, start = some(4), jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
    if memory == "none":
        policy = networks.make_policy(SPACE, spaces.Discrete(2), critic=critic)
    elif critic == "q":
        return
    else:
        policy = networks.make_recurrent_policy(SPACE, spaces.Discrete(2), memory=memory)
    params, core = policy.init(KEY, obs), policy.init_core(4)

    def of(obs):
        if critic == "q":
            return policy.apply(params, StateAction(obs, action))
        if memory == "none":
            return policy.apply(params, obs)
        tree = jax.tree.map(lambda x: x[:, None], (obs, start, core))
        return policy.apply(params, SequenceInputs(*tree))

    (dist, value), (same, changed) = of(obs), of(other(obs))
    np.testing.assert_array_equal(dist.logits, same.logits)
    assert np.abs(value - changed).min() > 1e-4
    # The critic receives the other entries as well, and the actor only those.
    moved = of(obs | {"seen": obs["seen"] + 1.0})
    assert np.abs(moved[1] - value).min() > 1e-4
    assert np.abs(moved[0].logits - dist.logits).max() > 1e-5
    alone = policy.act(params, core, {"seen": obs["seen"]}, start)
    np.testing.assert_allclose(alone[1].logits, jnp.reshape(dist.logits, (4, 2)), atol=1e-6)
    np.testing.assert_array_equal(alone[2], np.zeros(4))
    assert jax.tree.structure(alone[0]) == jax.tree.structure(core)


class Seen(NamedTuple):
    """An observation as a NamedTuple."""

    speed: Any
    critic_observation: Any


def test_the_entry_is_found_at_the_top_level_alone():
    assert [path for path, _ in spaces.leaves(SPACE)] == ["['seen']"]
    assert len(spaces.leaves(SPACE, of_critic=True)) == 2
    assert len(spaces.leaves({"a": SPACE})) == 2
    assert spaces.critic_observation(BOX) is None
    seen = spaces.without_critic_observation(Seen(1.0, 2.0))
    assert seen == Seen(1.0, ()) and spaces.critic_observation(seen) is None
    assert spaces.without_critic_observation(()) == ()


def test_what_cannot_be_asymmetric_is_refused():
    with pytest.raises(InvalidEnvironment, match="critic alone.*omit shared_torso"):
        build(configs.make(preset="none", shared_torso=True, **SMALL), HiddenSign())
    with pytest.raises(ValueError, match="cannot share a torso, because"):
        networks.make_policy(SPACE, spaces.Discrete(2), shared_torso=True)
    blind = probe_envs.ConstantReward(observation_space={"critic_observation": BOX})
    with pytest.raises(InvalidEnvironment, match="no entry except critic_observation"):
        envs.check_spaces(blind)
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    for tree in (
        {"a": image, "critic_observation": image},
        {"a": BOX, "critic_observation": image},
    ):
        with pytest.raises(ValueError, match="requires one image"):
            spaces.image(tree)


def needs_the_entry(observation_space, action_space, config):
    """A network that does not run without the entry."""
    policy = networks.make_policy(BOX, action_space)

    def act(params, core, obs, start):
        obs["critic_observation"]
        return policy.act(params, core, obs["seen"], start)

    def apply(params, obs):
        return policy.apply(params, obs["seen"])

    init = lambda key, obs: policy.init(key, obs["seen"])
    return policy._replace(init=init, act=act, apply=apply, value=None)


def test_a_network_of_the_user_must_act_without_the_entry():
    with pytest.raises(ConfigError, match="act without the entry critic_observation, as in a dep"):
        build(configs.make(preset="none", **SMALL), HiddenSign(), needs_the_entry)


def test_an_agent_takes_observations_with_and_without_the_entry():
    config = configs.make(preset="none", normalize_obs=True, **SMALL)
    program = build(config, HiddenSign())
    parts = agent.parts_of(config, program, program.init(KEY))
    assert [port.name for port in parts.codec.ports] == ["obs.seen"]
    assert list(parts.moments.obs) == list(parts.observation_space) == ["seen"]
    act, obs = agent.Agent(parts), np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    expected = act({"seen": obs})
    np.testing.assert_array_equal(act({"seen": obs, "critic_observation": obs[:, :1]}), expected)
    with pytest.raises(ValueError, match=r"must have the entries obs.seen"):
        act({"critic_observation": obs[:, :1]})


# --- Gymnasium ------------------------------------------------------------------------------------

THEIRS = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)


class Simulator(gymnasium.Env):
    """Episodes of 3 steps; the time is in the info, as the critic's observation."""

    observation_space, action_space = THEIRS, gymnasium.spaces.Discrete(2)
    with_mask = forgets = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), self.info()

    def step(self, action):
        self.time += 1
        return self.seen(), float(self.time), self.time == 3, False, self.info()

    def seen(self):
        return np.array([0.5, -0.5])

    def info(self):
        mask = {"action_mask": np.array([1, 0], np.int8)} if self.with_mask else {}
        if self.forgets and self.time:
            return mask
        return {"critic_observation": [self.time, 1], **mask}


class Masked(Simulator):
    with_mask = True


class Forgets(Simulator):
    forgets = True


class Wrong(Simulator):
    def info(self):
        return {"critic_observation": {"time": 0}}


class InDict(Simulator):
    """The entry is in the observation."""

    observation_space = gymnasium.spaces.Dict(
        {"seen": THEIRS, "critic_observation": gymnasium.spaces.Discrete(4)}
    )

    def seen(self):
        return {"seen": np.array([0.5, -0.5]), "critic_observation": self.time}

    def info(self):
        return {}


@pytest.mark.parametrize(
    ("kind", "entries", "value"),
    [
        (Simulator, {"observation", "critic_observation"}, [2.0, 1.0]),
        (Masked, {"observation", "critic_observation", "action_mask"}, [2.0, 1.0]),
        (InDict, {"seen", "critic_observation"}, 2),
    ],
)
def test_a_gymnasium_environment_gives_the_entry(kind, entries, value):
    env = envs.as_env(kind)
    assert set(env.observation_space) == entries
    vector = env.vector(2)
    obs, state = vector.reset(KEY)
    for _ in range(2):
        obs, state, *_ = vector.step(KEY, state, jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(obs["critic_observation"], [value] * 2)
    obs, state, *_, info = vector.step(KEY, state, jnp.zeros(2, jnp.int32))
    final, zero = info["final_observation"]["critic_observation"], obs["critic_observation"]
    assert np.ravel(final)[0] == 3 and np.ravel(zero)[0] == 0
    env.close()


@pytest.mark.parametrize("kind", [Simulator, Masked, InDict])
def test_an_agent_of_a_gymnasium_environment_needs_the_observation_alone(kind):
    config = configs.make(preset="none", normalize_obs=True, **SMALL)
    program = build(config, kind)
    parts = agent.parts_of(config, program, jax.eval_shape(program.init, KEY))
    params = program.policy.init(KEY, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parts.obs)
        | {"critic_observation": jnp.zeros((4, *program.env.observation_space[
            "critic_observation"].shape), jnp.int32 if kind is InDict else jnp.float32)}
    )  # fmt: skip
    statistics = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), parts.moments)
    act = agent.Agent(parts._replace(params=params, moments=statistics))
    mask = {"action_mask": [1, 0]} if kind is Masked else {}
    whole = kind().reset()[0]
    if kind is InDict:
        assert act(whole) == act({"seen": whole["seen"]})
    else:
        assert act(whole, **mask) in (0, 1)
        assert [port.name for port in parts.codec.ports][-1] == "obs"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Forgets, "info has no critic_observation here, although that of the first reset has one"),
        (Wrong, r'info\["critic_observation"\] of Wrong is a dict; it must be an array'),
    ],
)
def test_a_wrong_entry_of_the_info_is_refused(kind, message):
    with pytest.raises(InvalidEnvironment, match=message):
        envs.as_env(kind)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HiddenSign, Simulator])
def test_a_run_is_evaluated_loaded_and_exported(tmp_path, kind):
    pytest.importorskip("flatbuffers")
    config = configs.make(preset="none", normalize_obs=True, env=kind, **SMALL)
    run = tmp_path / "run"
    result = ppo_jax.run(config, run, env=kind, eval_episodes=4)
    assert result.exit_code == 0 and result.summary["eval_episodes"] == 4
    assert len(ppo_jax.evaluate(run, env=kind, episodes=2).episode_return) == 2
    act = ppo_jax.load(run, env=kind)
    seen = np.zeros((3, 2))
    obs = {"seen": seen} if kind is HiddenSign else seen
    assert act(obs).shape == (3,)
    found = export.export(run, "stablehlo", tmp_path / "a.stablehlo", env=kind)
    assert found.max_difference == 0
    names = [port["name"] for port in json.loads(found.files[-1].read_text())["inputs"]]
    assert names == ["obs.seen" if kind is HiddenSign else "obs"]


@pytest.mark.slow
def test_the_critic_predicts_what_the_actor_cannot_see():
    config = configs.make(
        preset="none", num_envs=16, num_steps=16, total_timesteps=30_000, learning_rate=3e-3
    )
    program = build(config, HiddenSign())
    step, state = jax.jit(program.step), program.init(KEY)
    for _ in range(config.num_updates):
        state, _ = step(state)
    obs = {"seen": jnp.zeros((2, 2)), "critic_observation": jnp.array([[1.0], [-1.0]])}
    value = program.policy.apply(state.learner.params, obs)[1]
    np.testing.assert_allclose(value, [1.0, -1.0], atol=0.15)
