"""N copies of a Gymnasium environment, in this process or in one process each.

These replace Gymnasium's own vector environments, which keep the final observation by reference,
merge the infos of all copies, which need not have equal types, and end at the first failure.
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.envs import worker
from ppo_jax.envs.host_rows import Rows
from ppo_jax.envs.supervision import MAKING, SimulatorFailed, Supervision

# Entries of info that are read. A worker process sends no others.
INFOS = ("action_mask",)
# The first program of a worker process. Ctrl-C in a terminal and the signals of a scheduler reach
# all processes of a group. Workers ignore them; this process ends them after the last update.
BOOT = (
    "import signal, sys\n"
    "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
    "import runpy\n"
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
)
# Interval in seconds between checks for signals and timeouts while waiting for a worker process.
LOOK = 0.25


class VectorStep(NamedTuple):
    """The result of a step of all copies.

    Attributes:
        obs: observations for the next action, as leaves [N, ...].
        reward: [N] float32 rewards.
        terminated, truncated: [N] bool flags.
        valid: [N] bool, False if the step was not executed.
        abandoned: [N] bool, True if it was not executed because the copy failed and was replaced.
        final: true successor observations as leaves [N, ...]; None if they equal `obs` for every
            valid step.
    """

    obs: tuple[np.ndarray, ...]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    abandoned: np.ndarray
    final: tuple[np.ndarray, ...] | None


class CopyFailed(Exception):
    """A failure of one copy; the text describes it: "raised ...", "returned ..."."""


class Copies:
    """N copies of an environment, reset in the step that ends their episode (SAME_STEP).

    Args:
        makers: N functions that make a gymnasium.Env.
        processes: whether each copy runs in its own process.
    """

    same_step = True

    def __init__(self, makers: Sequence[Callable[[], Any]], *, processes: bool = False) -> None:
        self.makers, self.num_envs, self.processes = list(makers), len(makers), processes
        self.copies: list[Any] = []

    def open(self, name: str, rows: Rows, supervision: Supervision) -> None:
        """Make the copies.

        Args:
            name: name for messages.
            rows: reader of observations.
            supervision: supervision of the run.

        Raises:
            SimulatorFailed: if a copy cannot be made; the message states its index and the reason.
        """
        self.name, self.rows, self.supervision = name, rows, supervision
        self.seed, self.steps = 0, 0
        kind = Process if self.processes else InProcess
        self.copies = [kind(make) for make in self.makers]
        supervision.calls_one_of(name, self.num_envs, MAKING)
        for i, one in enumerate(self.copies):
            supervision.index = i
            try:
                one.wait(supervision)
            except CopyFailed as error:
                self.close()
                raise self._failed(i, f"cannot be made: it {error}", when="") from error

    def reset(self, seed: int) -> tuple[np.ndarray, ...]:
        """Start N episodes; observations as leaves [N, ...]. Copy i gets seed + i as seed."""
        self.seed, self.steps, supervision = seed, 0, self.supervision
        supervision.calls_one_of(self.name, self.num_envs, "reset")
        arrays = self.rows.empty(self.num_envs)
        for i, one in enumerate(self.copies):
            one.send("reset", seed + i)
        for i, one in enumerate(self.copies):
            supervision.index = i
            try:
                self.rows.write(arrays, i, *one.wait(supervision))
            except (CopyFailed, ValueError) as error:
                self._replace(i, error, arrays, when=supervision.doing)
        return self.rows.ours(arrays)

    def step(self, actions: Any) -> VectorStep:
        """Take one step in each copy, and reset those whose episode ended."""
        self.steps += 1
        count, rows, supervision = self.num_envs, self.rows, self.supervision
        supervision.calls_one_of(self.name, count, f"step {self.steps}")
        arrays, final = rows.empty(count), None
        reward = np.zeros(count, np.float32)
        terminated, truncated, abandoned = np.zeros((3, count), bool)
        for one, action in zip(self.copies, actions, strict=True):
            one.send("step", action)
        for i, one in enumerate(self.copies):
            supervision.index = i
            try:
                obs, reward[i], terminates, truncates, info, following = one.wait(supervision)
                if following is None:
                    rows.write(arrays, i, obs, info)
                    continue
                final = rows.empty(count) if final is None else final
                rows.write(final, i, obs, info, final=True)
                rows.write(arrays, i, *following)
                terminated[i], truncated[i] = terminates, truncates
            except (CopyFailed, ValueError) as error:
                self._replace(i, error, arrays, when=supervision.doing)
                reward[i], abandoned[i] = 0.0, True
        ours = rows.ours(arrays)
        ends = None if final is None else rows.finals(ours, final, terminated | truncated)
        return VectorStep(ours, reward, terminated, truncated, ~abandoned, abandoned, ends)

    def render(self) -> tuple[Any, ...]:
        """The image of the first copy."""
        self.copies[0].send("render")
        try:
            return (self.copies[0].wait(self.supervision),)
        except CopyFailed as error:
            raise self._failed(0, str(error), when="render") from error

    def close(self) -> None:
        """Close the copies and end their processes."""
        for one in self.copies:
            one.end()
        for one in self.copies:
            one.close()
        self.copies = []

    def _replace(self, i: int, error: Exception, arrays: Any, *, when: str) -> None:
        """Replace a failed copy by a new one at the start of an episode.

        Raises:
            SimulatorFailed: if no more copies may be replaced.
        """
        supervision = self.supervision
        doing = supervision.doing
        while supervision.replaced < supervision.restarts and supervision.ending_since is None:
            supervision.replaced += 1
            self.copies[i].discard(supervision)
            self.copies[i] = (Process if self.processes else InProcess)(self.makers[i])
            try:
                supervision.doing = MAKING
                self.copies[i].wait(supervision)
                supervision.doing = doing
                # Another seed than that of the failed copy, which might fail again.
                seed = (self.seed + i + 7919 * supervision.replaced) % 2**30
                self.copies[i].send("reset", seed)
                return self.rows.write(arrays, i, *self.copies[i].wait(supervision))
            except (CopyFailed, ValueError) as another:
                error, when = another, f"{when}, replaced"
        after = f"; {supervision.replaced} were replaced" if supervision.replaced else ""
        raise self._failed(i, f"{error}{after}", when=when) from error

    def _failed(self, i: int, text: str, *, when: str) -> SimulatorFailed:
        where = f"environment {self.name}, index {i} of {self.num_envs}"
        return SimulatorFailed(f"{where}{', ' if when else ''}{when}: {text}")


class InProcess:
    """A copy in this process, with the methods of Process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.copy: Any = None
        self.call: Callable[..., Any] = self._make
        self.arguments: tuple[Any, ...] = (make,)

    def send(self, name: str, *arguments: Any) -> None:
        """Store the call that `wait` executes."""
        self.call, self.arguments = getattr(self.copy, name), arguments

    def wait(self, supervision: Supervision) -> Any:
        """Execute the call and return its result.

        Raises:
            CopyFailed: if the call raised an error.
        """
        supervision.call = time.monotonic()
        try:
            return self.call(*self.arguments)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # A run handles signals itself, so a KeyboardInterrupt comes from the environment.
            raise CopyFailed(worker.raised(error)) from error
        finally:
            supervision.call = None

    def end(self) -> None:
        """Do nothing, because there is no process to end."""

    def close(self) -> None:
        """Close the environment and ignore errors."""
        with contextlib.suppress(Exception):
            if self.copy is not None:
                self.copy.close()

    def discard(self, supervision: Supervision) -> None:
        """Close an environment that failed, and ignore further errors."""
        supervision.call = time.monotonic()
        self.close()
        supervision.call = None

    def _make(self, make: Callable[[], Any]) -> None:
        self.copy = worker.Copy(make)


class Process:
    """A copy in its own process.

    The process is a new program rather than a fork of this one, because a fork would not keep the
    threads of JAX. It has its own process group, so that it receives no signals from the terminal,
    and exits when this process exits for any reason.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        import cloudpickle

        ours, theirs = Pipe()
        lifeline, self._lifeline = os.pipe()
        fds = (theirs.fileno(), lifeline)
        self.connection: Connection = ours
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, worker.__file__, *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        theirs.close()
        os.close(lifeline)
        self.poll = select.poll()
        self.poll.register(ours.fileno(), select.POLLIN)
        self.began = time.monotonic()
        self._write(sys.path)
        self.send("make", cloudpickle.dumps(make), INFOS)
        self.making = True

    def send(self, name: str, *arguments: Any) -> None:
        """Send a request, whose answer `wait` returns."""
        self.began, self.making = time.monotonic(), False
        self._write((name, *arguments))

    def wait(self, supervision: Supervision) -> Any:
        """The answer to the last request.

        Raises:
            CopyFailed: if the call raised an error, the process exited, or the time limit passed.
        """
        while not self.poll.poll(1000 * LOOK):
            if time.monotonic() > supervision.deadline(self.began, self.making):
                raise CopyFailed(supervision.hung(self.began, self.making))
        try:
            succeeded, result = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise CopyFailed(self._how_it_ended()) from None
        except Exception as error:
            raise CopyFailed(f"returned a value that cannot be unpickled: {error}") from error
        if not succeeded:
            raise CopyFailed(result)
        return result

    def end(self) -> None:
        """Request the process to exit."""
        self._write(("close",))

    def close(self) -> None:
        """Wait for the process to exit, and kill it after a timeout."""
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._forget()

    def discard(self, supervision: Supervision) -> None:
        """Kill the process immediately."""
        self.process.kill()
        self._forget()

    def _forget(self) -> None:
        self.process.wait()
        self.connection.close()
        with contextlib.suppress(OSError):
            os.close(self._lifeline)

    def _write(self, message: Any) -> None:
        """Send a message. A process that has exited is detected when its answer is read."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(pickle.dumps(message, protocol=5))

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process exited with status {code}"
