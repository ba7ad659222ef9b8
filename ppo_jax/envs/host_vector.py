"""Any Gymnasium vector environment, with the interface of `Copies`."""

import copy
import functools
from typing import Any

import numpy as np

from ppo_jax.envs import worker
from ppo_jax.envs.copies import VectorStep
from ppo_jax.envs.host_rows import Rows
from ppo_jax.envs.mask_layouts import NOTHING_LEGAL
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.supervision import SimulatorFailed, Supervision


class GymnasiumVector:
    """A vector environment with either of Gymnasium's two modes of automatic reset.

    SAME_STEP: the step that ends an episode returns the first observation of the next episode, and
    its info contains the true final observation. NEXT_STEP: that step returns the true final
    observation. The step after it ignores the action and returns the first observation; it is a
    dummy step with `valid` False.

    Args:
        venv: vector environment.
    """

    def __init__(self, venv: Any) -> None:
        self.venv, self.num_envs = venv, venv.num_envs

    def open(self, name: str, rows: Rows, supervision: Supervision) -> None:
        """Read the mode of automatic reset.

        Raises:
            InvalidEnvironment: if the mode is not supported.
        """
        self.name, self.rows, self.supervision = name, rows, supervision
        self.steps, self.restarting = 0, np.zeros(self.num_envs, bool)
        venv = self.venv
        # The attribute takes precedence, because environments of one class share the dictionary
        # `metadata`, which the most recently created one has written.
        mode = getattr(getattr(venv, "unwrapped", venv), "autoreset_mode", None)
        mode = (venv.metadata or {}).get("autoreset_mode") if mode is None else mode
        mode = getattr(mode, "value", mode)
        if mode not in ("SameStep", "NextStep"):
            raise InvalidEnvironment(
                f"vector environment {name} has autoreset_mode {mode}; it must reset its "
                "environments automatically: SAME_STEP, or NEXT_STEP with a dummy step in between"
            )
        self.same_step = mode == "SameStep"
        if self.same_step:
            _copy_observations(venv)

    def reset(self, seed: int) -> tuple[np.ndarray, ...]:
        """Start N new episodes; the first observations as leaves [N, ...]."""
        self.steps, self.restarting = 0, np.zeros(self.num_envs, bool)
        obs, _ = self._call("reset", functools.partial(self.venv.reset, seed=seed))
        ours = self._read(obs, "reset")
        self._check_masks(ours, np.ones(self.num_envs, bool), "reset")
        return ours

    def step(self, actions: Any) -> VectorStep:
        """Take one step in all environments."""
        self.steps += 1
        when = f"step {self.steps}"
        result = self._call(when, functools.partial(self.venv.step, actions))
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._failed(
                f"returned {worker.described(result)}, expected {worker.EXPECTED}", when
            )
        obs, reward, terminated, truncated, info = result
        # Copies, because an environment may write its next step into the same arrays.
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        valid, done, ours = ~self.restarting, terminated | truncated, self._read(obs, when)
        # With NEXT_STEP, no action follows the end of an episode.
        self._check_masks(ours, np.ones_like(done) if self.same_step else ~done, when)
        final = None
        if not self.same_step:
            self.restarting = done
        elif done.any():
            final = self._final(ours, info, done)
        nobody = np.zeros(self.num_envs, bool)
        reward = np.array(reward, np.float32)
        return VectorStep(ours, reward, terminated, truncated, valid, nobody, final)

    def render(self) -> Any:
        """The images of all environments."""
        return self.venv.render()

    def close(self) -> None:
        """Close the environments and end their processes."""
        self.venv.close()

    def _final(self, obs: tuple[np.ndarray, ...], info: Any, done: np.ndarray) -> tuple[Any, ...]:
        """obs, with the true final observation where an episode ended."""
        if "final_obs" not in info:
            raise RuntimeError(
                f"{self.name} resets in the same step, but its info has no final_obs"
            )
        theirs, final = info["final_obs"], tuple(x.copy() for x in obs)
        batched = isinstance(theirs, dict | tuple)  # each leaf is an array [N, ...]
        for leaf, array in zip(self.rows.leaves, final, strict=True):
            for i in np.flatnonzero(done):
                one = leaf.of(theirs)[i] if batched else leaf.of(theirs[i])
                array[i] = leaf.read(np.asarray(one)[None])[0]
        return final

    def _read(self, obs: Any, when: str) -> tuple[np.ndarray, ...]:
        try:
            return self.rows.batch(obs)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._failed(f"returned observations of another kind: {error}", when) from error

    def _check_masks(self, ours: tuple[np.ndarray, ...], acted: np.ndarray, when: str) -> None:
        """Reject masks that allow no action where an action follows, [N] bool."""
        wrong = np.flatnonzero(self.rows.without_choice(ours) & acted)
        if len(wrong):
            raise self._failed(
                f"index {wrong[0]} of {self.num_envs} returned {NOTHING_LEGAL}", when
            )

    def _call(self, when: str, function: Any) -> Any:
        try:
            with self.supervision.calls(self.name, when):
                return function()
        except (Exception, SystemExit) as error:
            raise self._failed(worker.raised(error), when) from error

    def _failed(self, text: str, when: str) -> SimulatorFailed:
        return SimulatorFailed(f"vector environment {self.name}, {when}: {text}")


def _copy_observations(venv: Any) -> None:
    """Make the environments of a SyncVectorEnv return copies. It resets them in the same step, and
    the reset may overwrite the final observation."""
    inner = getattr(venv, "unwrapped", venv)
    if type(inner).__name__ != "SyncVectorEnv":
        return

    def copied(function: Any, *arguments: Any, **options: Any) -> Any:
        obs, *rest = function(*arguments, **options)
        return copy.deepcopy(obs), *rest

    for env in inner.envs:
        env.step = functools.partial(copied, env.step)
