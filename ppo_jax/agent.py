"""A trained agent as a plain function: observation -> action. `ppo_jax.load` is `load` here.

It takes what the environment's reset and step return and gives what its step takes, whatever the
layout in which the policy was trained. The statistics that normalise observations are inside.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import guard, rollout
from ppo_jax.config import TrainConfig
from ppo_jax.envs import HostEnv, spaces
from ppo_jax.envs.codec import Codec, Port, int_or_nan, plain
from ppo_jax.networks import Policy, has_memory
from ppo_jax.runs import weights
from ppo_jax.runs.folder import trusted_config
from ppo_jax.runs.restore import build_again
from ppo_jax.runs.restore import load as load_run
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.train import Program
from ppo_jax.types import Params, PyTree, TrainState


class Parts(NamedTuple):
    """What acts.

    Attributes:
        config: of the run.
        policy: networks behind functions.
        params: of the policy.
        moments: statistics it was trained with.
        obs: example [N, ...]: the structure, shapes and types of observations.
        observation_space, action_space: of the environment, as the policy has them.
        codec: the environment's own language and the policy's.
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
        """Whether an action depends on earlier observations."""
        return has_memory(self.policy)


def read_parts(run: Path, checkpoint: str = "latest", given: Given = NOTHING) -> Parts:
    """The acting half of a run.

    Args:
        run: run directory.
        checkpoint: "latest", "best", or the number of an update.
        given: names and objects that stand beside those of the run, and whether it is trusted.

    Raises:
        ConfigError, CheckpointError: not a run, one that names code and is not the user's own, or
            nothing whole to restore.
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
    """The same with descriptions of arrays in place of weights, statistics and observations."""
    program = build_again(config, given)
    state = jax.eval_shape(program.init, jax.random.key(0))
    return parts_of(config, program, state)


def read_weights(path: Path, given: Given = NOTHING) -> Parts:
    """An agent from the .safetensors file that `ppo_jax.export` wrote; its header has the rest.

    Args:
        path: of the file.
        given: as for `read_parts`.

    Raises:
        ConfigError: it is something else, or damaged, or names code and is not the user's own.
    """
    tensors, header = weights.read(path)
    parts = untrained_parts(trusted_config(header, given, path), given)
    filled = weights.fill(saved_arrays(parts), tensors)
    return parts._replace(params=filled["params"], moments=rollout.Moments(filled["obs"]))


def saved_arrays(parts: Parts) -> PyTree:
    """What a file of weights holds: `params`, and the statistics of `obs`, if it has any."""
    return {"params": parts.params, "obs": parts.moments.obs}


def parts_of(config: TrainConfig, program: Program, state: TrainState) -> Parts:
    """The acting half of a state; processes of host environments are ended.

    Args:
        config: of the run.
        program: built for it.
        state: of arrays or their descriptions.
    """
    env = program.env
    params, experience = state.learner.params, state.rollout
    if isinstance(env, HostEnv):
        env.close()
        codec = env.codec
    else:
        codec = plain(experience.obs, env.action_space, env.observation_space)
    return Parts(
        config, program.policy, params, experience.moments, experience.obs,
        env.observation_space, env.action_space, codec,
    )  # fmt: skip


Act = Callable[..., tuple[PyTree, jax.Array]]


def make_act(parts: Parts, greedy: bool = True) -> Act:
    """The agent as a pure function.

    Args:
        parts: of the agent.
        greedy: the distribution's mode instead of a sample.

    Returns:
        (key, core, obs [N, ...], start [N]) -> (core, action [N, *action shape]). Without memory
        core is (), and start is not read; the greedy do not read the key: anything will do.
    """
    checked = _checked_act(parts, greedy)

    def act(key: Any, core: PyTree, obs: PyTree, start: jax.Array) -> tuple[PyTree, jax.Array]:
        return checked(key, core, obs, start)[:2]

    return act


def _checked_act(parts: Parts, greedy: bool) -> Callable[..., tuple[PyTree, jax.Array, jax.Array]]:
    """`make_act`, which also says [N] whether the network gave an action that is finite."""
    shape = parts.action_space.shape

    def act(key: Any, core: PyTree, obs: PyTree, start: jax.Array) -> Any:
        seen = rollout.normalize_obs(parts.moments, obs)
        core, dist, _ = parts.policy.act(parts.params, core, seen, start)
        drawn = dist.mode() if greedy else dist.sample(key)
        action = dist.to_env(drawn)
        return core, action.reshape(action.shape[0], *shape), guard.acted(dist, drawn)

    return act


class Agent:
    """A trained agent: `agent(obs)` is its action.

    Without memory and greedy it is a pure function of the observation. With memory it remembers
    what it saw since `reset()`, or since the last step that was called a start.

    Args:
        parts: of the agent.
        greedy: the most likely action instead of a sample.
        seed: of the samples.
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
        """Forget: the next observation is the first of an episode."""
        self._core: PyTree = None
        self._count = 0

    def __call__(self, obs: PyTree, start: Any = None, *, action_mask: Any = None) -> Any:
        """The action for one observation, or for N of them.

        Args:
            obs: what the environment's reset or step returned, or N of them, [N, ...]; arrays or
                lists, in the environment's own structure.
            start: [N] bool, with memory alone: which of them begin an episode. None: all of them
                at first and after `reset()`, none later.
            action_mask: which actions are legal, as the environment says it; where it does so
                beside the observation, it is needed.

        Returns:
            The action as the environment's step takes it, of one or [N, ...].

        Raises:
            ValueError: the observation has another structure, shape or type than the
                environment's, or a value that is none of its own; a mask is missing; or the number
                of observations changed under an agent with memory.
            FloatingPointError: the network's action is not finite.
        """
        batch, single = as_batch(self._codec.arrays(obs, action_mask), self._codec.ports)
        action = self.act_on(batch, start)
        return action[0] if single else action

    def act_on(self, arrays: Sequence[np.ndarray], start: Any = None) -> np.ndarray:
        """The actions for N observations that are given as their arrays.

        Args:
            arrays: [N, ...] each, as an exported file takes them.
            start: as for a call.
        """
        batch = self._codec.read(arrays)
        count = len(arrays[0])
        self._remember(count)
        first = np.full(count, self._count == 0) if start is None else np.reshape(start, count)
        if not self._greedy:
            self._key, key = jax.random.split(self._key)
        else:
            key = self._key
        self._core, action, acted = self._act(key, self._core, batch, first.astype(bool))
        if not np.all(acted):
            raise FloatingPointError(
                f"the network's action for observation {np.argmin(acted)} of {count} is not "
                "finite: its parameters are damaged, or the observation is not finite"
            )
        self._count = count if self.has_memory else 0
        return self._codec.action.encode(np.asarray(action), np)

    def _remember(self, count: int) -> None:
        """A memory for so many, if there is none."""
        if self._count == 0:
            self._core = self._init_core(count)
        elif self._count != count:
            raise ValueError(
                f"{count} observations for an agent that remembers {self._count}; the number stays "
                "the same until agent.reset()"
            )


def as_batch(arrays: Sequence[Any], ports: Sequence[Port]) -> tuple[list[np.ndarray], bool]:
    """The arrays of an observation as those of N observations, in the environment's types.

    Args:
        arrays: of one observation or N of them.
        ports: what they are to be.

    Returns:
        (arrays [N, ...], whether it was a single observation)

    Raises:
        ValueError: one does not fit, with what does.
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
    """The same numbers in the environment's type, or a refusal; floats may lose digits."""
    given = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        array = given.astype(port.dtype)
    floats = np.issubdtype(port.dtype, np.floating)
    lost = np.isinf(array) & ~np.isinf(given) if floats else array != given
    if np.any(lost):
        raise ValueError(
            f"{_name(port)} has type {given.dtype} and values that {port.dtype} does not hold; it "
            f"must be {port.dtype}, as the environment gives it"
        )
    return array


def _check_choices(x: np.ndarray, port: Port) -> None:
    """Refuse values that are no element of a space of choices."""
    if port.low is None:
        return
    wrong = (x < port.low) | (x > port.high)
    if wrong.any():
        low, high = int(np.min(port.low)), int(np.max(port.high))
        raise ValueError(
            f"{_name(port)} is {int_or_nan(x[wrong].flat[0])}; the environment's own values are "
            f"those from {low} to {high}"
        )


def _name(port: Port) -> str:
    """What a user calls it: "the observation['speed']" of obs.speed."""
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
    """A trained agent as a function: `ppo_jax.load("runs/mine")(obs)` is an action.

    Args:
        run: run directory, or a .safetensors file that `ppo_jax.export` wrote.
        checkpoint: "latest", "best", or the number of an update; of a run directory alone.
        greedy: the most likely action instead of a sample.
        seed: of the samples.
        trust: whether the run may name any code to import. One of the user's own may.
        env, policy, algorithm: names of code that the run names, which may then be imported; or the
            objects themselves, in place of what it names.

    Returns:
        Agent: called with one observation or N of them, it gives the action the environment takes.

    Raises:
        ConfigError, CheckpointError: not a run, one that names code and is not the user's own, or
            nothing whole to restore.
    """
    path, given = Path(run), Given(env, policy, algorithm, trust)
    if path.suffix == ".safetensors" and path.is_file():
        return Agent(read_weights(path, given), greedy, seed)
    return Agent(read_parts(path, checkpoint, given), greedy, seed)
