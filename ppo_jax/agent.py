"""A trained agent as a function: observation -> action. `ppo_jax.load` is `load` of this module.

The agent takes what the environment's `reset` and `step` return and returns the action that `step`
takes, whatever layout the policy was trained in. It normalises observations by itself.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import guard, rollout
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.envs import HostEnv, spaces
from ppo_jax.envs.codec import Codec, Port, int_or_nan, plain
from ppo_jax.networks import Policy, has_memory
from ppo_jax.runs import cards, weights
from ppo_jax.runs.folder import trusted_config
from ppo_jax.runs.restore import build_again
from ppo_jax.runs.restore import load as load_run
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.train import Program
from ppo_jax.types import Params, PyTree, TrainState


class Parts(NamedTuple):
    """The parts of a run that choose actions.

    Attributes:
        config: configuration of the run.
        policy: functions of the policy network.
        params: parameters of the policy.
        moments: running statistics of the training run.
        obs: example with leaves [N, ...] of the structure, shapes and types of observations.
            Observations, their space and the statistics have no entry `critic_observation`, which
            only the critic needs.
        observation_space, action_space: spaces of the environment, in the policy's form.
        codec: conversion between the environment's form and the policy's form.
    """

    config: TrainConfig
    policy: Policy
    params: Params
    moments: rollout.Moments
    obs: PyTree
    observation_space: PyTree
    action_space: spaces.Space
    codec: Codec

    @property
    def has_memory(self) -> bool:
        """Whether the policy is recurrent, so that an action depends on earlier observations."""
        return has_memory(self.policy)


def read_parts(run: Path, checkpoint: str = "latest", given: Given = NOTHING) -> Parts:
    """Read the parts of a run that choose actions.

    Args:
        run: run directory.
        checkpoint: "latest", "best", or the number of an update.
        given: names and objects that replace those of the run, and whether the run is trusted.

    Raises:
        ConfigError: if the folder is not a run, or names code without being trusted.
        CheckpointError: if there is no complete checkpoint to restore.
    """
    config, program, state = load_run(
        run,
        checkpoint,
        trust=given.trust,
        env=given.env,
        policy=given.policy,
        algorithm=given.algorithm,
    )
    return parts_of(config, program, state)


def untrained_parts(config: TrainConfig, given: Given = NOTHING) -> Parts:
    """The same parts with shapes and types in place of weights, statistics and observations."""
    program = build_again(config, given)
    state = jax.eval_shape(program.init, jax.random.key(0))
    return parts_of(config, program, state)


def read_weights(path: Path, given: Given = NOTHING) -> Parts:
    """Read an agent from a .safetensors file of `ppo_jax.export`, which contains its configuration.

    Args:
        path: path of the file.
        given: names and objects, as for `read_parts`.

    Raises:
        ConfigError: if the file is not such a file, is damaged, or names code without being
            trusted.
    """
    tensors, header = weights.read(path)
    parts = untrained_parts(trusted_config(header, given, path), given)
    filled = weights.fill(saved_arrays(parts), tensors)
    return parts._replace(params=filled["params"], moments=rollout.Moments(filled["obs"]))


def read_agent(run: Path, checkpoint: str = "latest", given: Given = NOTHING) -> Parts:
    """Read the parts of an agent, wherever it is stored.

    Args:
        run: run directory, file of weights, or name in the zoo, such as "zoo:cartpole".
        checkpoint: "latest", "best", or the number of an update; for run directories only.
        given: names and objects, as for `read_parts`.

    Raises:
        ConfigError: if there is no such agent, it is damaged, or it names code without being
            trusted.
        CheckpointError: if a run directory has no complete checkpoint to restore.
    """
    path = _weights_file(run, checkpoint)
    return read_parts(run, checkpoint, given) if path is None else read_weights(path, given)


def _weights_file(run: Path, checkpoint: str) -> Path | None:
    """The file of weights that a user named, or that the zoo has; None for a run directory."""
    zoo = cards.is_name(run)
    if not zoo and not (run.suffix == ".safetensors" and run.is_file()):
        return None
    if checkpoint != "latest":
        raise ConfigError(
            f"checkpoint is {checkpoint!r}, but {run} has the weights of one update only; leave "
            "the checkpoint out"
        )
    return cards.weights_of(cards.read(str(run))) if zoo else run


class Player(NamedTuple):
    """An agent with the environment that it plays in.

    Attributes:
        config: configuration of its run.
        env: environment, which is not closed.
        policy: functions of the policy network.
        params: parameters of the policy.
        moments: running statistics of the training run.
    """

    config: TrainConfig
    env: Any
    policy: Policy
    params: Params
    moments: rollout.Moments


def read_player(run: Path, checkpoint: str = "latest", given: Given = NOTHING) -> Player:
    """Read an agent and build its environment; arguments and errors as for `read_agent`."""
    path = _weights_file(run, checkpoint)
    if path is not None:
        parts = read_weights(path, given)
        program = build_again(parts.config, given)
        return Player(parts.config, program.env, parts.policy, parts.params, parts.moments)
    config, program, state = load_run(run, checkpoint, **given._asdict())
    learned, moments = state.learner.params, state.rollout.moments
    return Player(config, program.env, program.policy, learned, moments)


def saved_arrays(parts: Parts) -> PyTree:
    """The contents of a file of weights: `params`, and the running statistics `obs`, if any."""
    return {"params": parts.params, "obs": parts.moments.obs}


def parts_of(config: TrainConfig, program: Program, state: TrainState) -> Parts:
    """The parts of a run that choose actions, from its state. Host environments are closed.

    Args:
        config: configuration of the run.
        program: program built for the configuration.
        state: state of arrays, or of their shapes and types.
    """
    env = program.env
    params, experience = state.learner.params, state.rollout
    alone = spaces.without_critic_observation
    obs, space = alone(experience.obs), alone(env.observation_space)
    if isinstance(env, HostEnv):
        env.close()
        codec = env.codec
    else:
        codec = plain(obs, env.action_space, space)
    moments = rollout.Moments(alone(experience.moments.obs), experience.moments.reward)
    return Parts(config, program.policy, params, moments, obs, space, env.action_space, codec)


Act = Callable[..., tuple[PyTree, jax.Array]]


def make_act(parts: Parts, greedy: bool = True) -> Act:
    """The agent as a pure function.

    Args:
        parts: parts of the agent.
        greedy: whether to take the mode of the action distribution rather than a sample.

    Returns:
        Function (key, core, obs [N, ...], start [N]) -> (core, action [N, *action shape]). For a
        feed-forward policy, core is () and start is ignored. If greedy, the key is ignored.
    """
    checked = _checked_act(parts, greedy)

    def act(key: Any, core: PyTree, obs: PyTree, start: jax.Array) -> tuple[PyTree, jax.Array]:
        return checked(key, core, obs, start)[:2]

    return act


def _checked_act(parts: Parts, greedy: bool) -> Callable[..., tuple[PyTree, jax.Array, jax.Array]]:
    """`make_act` that also returns, for each observation, whether the action is finite, [N]."""
    shape = parts.action_space.shape

    def act(key: Any, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        seen = rollout.normalize_obs(parts.moments, obs)
        core, dist, _ = parts.policy.act(parts.params, core, seen, start)
        drawn = dist.mode() if greedy else dist.sample(key)
        action = dist.to_env(drawn)
        return core, action.reshape(action.shape[0], *shape), guard.acted(dist, drawn)

    return act


class Agent:
    """A trained agent: `agent(obs)` returns an action.

    A greedy agent with a feed-forward policy is a pure function of the observation. A recurrent
    agent keeps a recurrent state since `reset()`, or since the last observation that was passed as
    the start of an episode.

    Args:
        parts: parts of the agent.
        greedy: whether to take the most likely action rather than a sample.
        seed: seed of the samples.
    """

    def __init__(self, parts: Parts, greedy: bool = True, seed: int = 0) -> None:
        self.parts, self.config = parts, parts.config
        self.observation_space, self.action_space = parts.observation_space, parts.action_space
        self.has_memory = parts.has_memory
        self._init_core, self._codec = parts.policy.init_core, parts.codec
        self._greedy, self._key = greedy, jax.random.key(seed)
        self._act = jax.jit(_checked_act(parts, greedy))
        self.reset()

    def reset(self) -> None:
        """Reset the recurrent state: the next observation is the first one of an episode."""
        self._core: PyTree = None
        self._count = 0

    def __call__(self, obs: PyTree, start: Any = None, *, action_mask: Any = None) -> Any:
        """The action for one observation, or for N of them.

        Args:
            obs: observation as the environment's reset or step returns it, or N of them, [N, ...];
                arrays or lists in the environment's own structure.
            start: [N] bool, whether each observation begins an episode; for recurrent agents only.
                None stands for True at first and after `reset()`, and for False later.
            action_mask: legal actions as the environment reports them. It is required if the
                environment reports them separately from the observation.

        Returns:
            The action in the form that the environment's step takes, for one observation or [N,
            ...] for N of them.

        Raises:
            ValueError: if the observation has another structure, shape or type than the
                environment's, or a value outside its space; if a mask is missing; or if the number
                of observations of a recurrent agent has changed.
            FloatingPointError: if the network's action is not finite.
        """
        batch, single = as_batch(self._codec.arrays(obs, action_mask), self._codec.ports)
        action = self.act_on(batch, start)
        return action[0] if single else action

    def act_on(self, arrays: Sequence[np.ndarray], start: Any = None) -> np.ndarray:
        """The actions for N observations that are given as separate arrays.

        Args:
            arrays: arrays [N, ...] in the order that an exported file takes them.
            start: starts of episodes, as for a call of the agent.
        """
        batch = self._codec.read(arrays)
        count = len(arrays[0])
        self._start_recurrent_state(count)
        first = np.full(count, self._count == 0) if start is None else np.reshape(start, count)
        if not self._greedy:
            self._key, key = jax.random.split(self._key)
        else:
            key = self._key
        self._core, action, acted = self._act(key, self._core, batch, first.astype(bool))
        if not np.all(acted):
            raise FloatingPointError(
                f"the network's action for observation {np.argmin(acted)} of {count} is not "
                "finite: the parameters are damaged, or the observation is not finite"
            )
        self._count = count if self.has_memory else 0
        return self._codec.action.encode(np.asarray(action), np)

    def _start_recurrent_state(self, count: int) -> None:
        """Initialise the recurrent state for `count` observations, if there is none."""
        if self._count == 0:
            self._core = self._init_core(count)
        elif self._count != count:
            raise ValueError(
                f"{count} observations were given to a recurrent agent that has states for "
                f"{self._count}; the number must stay the same until agent.reset()"
            )


def as_batch(arrays: Sequence[Any], ports: Sequence[Port]) -> tuple[list[np.ndarray], bool]:
    """Convert the arrays of an observation to those of N observations, in the environment's types.

    Args:
        arrays: arrays of one observation or of N observations.
        ports: descriptions of the expected arrays.

    Returns:
        (arrays [N, ...], whether a single observation was given).

    Raises:
        ValueError: if an array does not match its description.
    """
    pairs = list(zip(arrays, ports, strict=True))
    given = [_as_array(x, port) for x, port in pairs]
    single = given[0].ndim == len(ports[0].shape)
    batch = [x[None] if single else x for x in given]
    for x, port in zip(batch, ports, strict=True):
        if x.shape[1:] != port.shape or x.shape[:1] != batch[0].shape[:1] or x.shape[0] == 0:
            shown = x.shape[1:] if single else x.shape
            raise ValueError(
                f"{_name(port)} has shape {shown}; it must be {port.shape}, or "
                f"{('N', *port.shape)} for N observations".replace("'", "")
            )
        _check_choices(x, port)
    return batch, single


def _as_array(x: Any, port: Port) -> np.ndarray:
    """The same numbers in the environment's type, or an error; floats may be rounded."""
    given = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        array = given.astype(port.dtype)
    floats = np.issubdtype(port.dtype, np.floating)
    lost = np.isinf(array) & ~np.isinf(given) if floats else array != given
    if np.any(lost):
        raise ValueError(
            f"{_name(port)} has type {given.dtype} and values that {port.dtype} cannot represent; "
            f"it must be {port.dtype}, the type that the environment returns"
        )
    return array


def _check_choices(x: np.ndarray, port: Port) -> None:
    """Reject values that are not elements of a discrete space."""
    if port.low is None:
        return
    wrong = (x < port.low) | (x > port.high)
    if wrong.any():
        low, high = int(np.min(port.low)), int(np.max(port.high))
        raise ValueError(
            f"{_name(port)} contains {int_or_nan(x[wrong].flat[0])}; the values of the environment "
            f"are from {low} to {high}"
        )


def _name(port: Port) -> str:
    """The name of an array for users: "the observation['speed']" for obs.speed."""
    first, *rest = port.name.split(".")
    shown = "the observation" if first == "obs" else f"the {first}"
    return shown + "".join(f"[{key if key.isdigit() else repr(key)}]" for key in rest)


def load(
    run: Path | str,
    *,
    checkpoint: str = "latest",
    greedy: bool = True,
    seed: int = 0,
    trust: bool = False,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
) -> Agent:
    """Load a trained agent as a function: `ppo_jax.load("runs/mine")(obs)` returns an action.

    Args:
        run: run directory, .safetensors file of `ppo_jax.export`, or name in the zoo, such as
            "zoo:cartpole" (`ppo-jax zoo list`).
        checkpoint: "latest", "best", or the number of an update; for run directories only.
        greedy: whether to take the most likely action rather than a sample.
        seed: seed of the samples.
        trust: whether the run may name any code to import. Runs of the current user are trusted.
        env, policy, algorithm: names of code that the run names, which may then be imported, or
            objects that replace it.

    Returns:
        Agent, which returns the environment's actions for one observation or N of them.

    Raises:
        ConfigError: if there is no such agent, or it names code without being trusted.
        CheckpointError: if there is no complete checkpoint to restore.
    """
    given = Given(env, policy, algorithm, trust)
    return Agent(read_agent(Path(run), checkpoint, given), greedy, seed)
