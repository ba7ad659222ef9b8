"""The group of processes that train one agent together.

Process 0 is the leader: it alone runs the loop, with its timing, callbacks and files. Before each
program that all processes must run together, it publishes a command. The other processes read the
commands and run the same programs (`follow`). All processes therefore run the same programs in the
same order, whatever the leader's decisions depend on.
"""

import contextlib
import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs import failures, global_arrays
from ppo_jax.runs.cluster import board
from ppo_jax.runs.cluster import start as starting
from ppo_jax.runs.cluster.options import ClusterOptions, place_of, split_address
from ppo_jax.runs.cluster.watch import LONG_WORK, Watch
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.signals import Signals
from ppo_jax.types import PyTree

# Number of commands that are kept; no process is further behind.
KEPT_COMMANDS = 64


class Alone:
    """A single process, with the interface of Group; most methods do nothing."""

    rank, size, leads = 0, 1, True

    def attend(self, signals: Signals, advice: Callable[[], str]) -> None:
        """Do nothing; see `Group.attend`."""

    def tell(self, do: str, **more: Any) -> None:
        """Do nothing; see `Group.tell`."""

    def agree(self, what: str, mine: dict[str, Any]) -> None:
        """Do nothing; see `Group.agree`."""

    def same_state(self, update: int, state: PyTree) -> None:
        """Do nothing; see `Group.same_state`."""

    def ready(self) -> None:
        """Do nothing; see `Group.ready`."""

    def at(self, what: str, limit: float | None = None) -> contextlib.AbstractContextManager[None]:
        """A context without supervision; see `Group.at`."""
        return contextlib.nullcontext()

    def leading(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Return the program unchanged; see `Group.leading`."""
        return chunk

    def gathered(self, state: PyTree) -> PyTree:
        """Return the state unchanged; see `Group.gathered`."""
        return state

    def own(self, state: PyTree) -> PyTree:
        """Return the state unchanged; see `Group.own`."""
        return state

    def broken(self, error: Exception) -> RunFailed:
        """The error of a failed program; see `Group.broken`."""
        return RunFailed(failures.one_line(error))


class Group:
    """This process as a member of a group.

    Args:
        rank: number of this process.
        size: number of processes.
        heartbeat: seconds without a sign of life after which a process is considered lost.
        watch: supervision of all processes.
    """

    def __init__(self, rank: int, size: int, heartbeat: float, watch: Watch) -> None:
        self.rank, self.size, self.heartbeat, self.watch = rank, size, heartbeat, watch
        self.board = watch.board
        self._commands, self._rounds, self._longest = 0, 0, 0.0
        self._told_end = False

    @property
    def leads(self) -> bool:
        """Whether this process is the leader (process 0)."""
        return self.rank == 0

    def attend(self, signals: Signals, advice: Callable[[], str]) -> None:
        """Set the signal handlers and the advice for the last message of this process.

        Args:
            signals: signal handlers of the command; process 0 receives the signals of all.
            advice: function () -> description of what has been saved and how to continue.
        """
        self.watch.signals, self.watch.advice = signals, advice

    def at(self, what: str, limit: float | None = None) -> contextlib.AbstractContextManager[None]:
        """Describe the activity of this process within a block; see `Watch.at`."""
        return self.watch.at(what, limit)

    def tell(self, do: str, **more: Any) -> None:
        """Publish the next command for all processes; called by process 0.

        Args:
            do: name of the command: "begin", "chunk", "gather" or "end".
            **more: JSON values that belong to the command.
        """
        self._commands += 1
        self._told_end = do == "end"
        self.board.put(f"command/{self._commands}", json.dumps({"do": do} | more))
        self.board.forget(f"command/{self._commands - KEPT_COMMANDS}")

    def next(self) -> dict[str, Any]:
        """Wait for the next command of process 0; the watch ends the wait if it is lost."""
        self._commands += 1
        text = None
        with self.at("waiting for process 0", math.inf):
            while text is None:
                text = self.board.wait(f"command/{self._commands}", 10.0)
        command = json.loads(text)
        self._told_end = command["do"] == "end"
        return command

    def agree(self, what: str, mine: dict[str, Any]) -> None:
        """Compare values between the processes, and refuse differences.

        Args:
            what: plural noun for the values, for the message.
            mine: name -> value in this process, JSON.

        Raises:
            ConfigError: two processes differ; the message gives their values.
        """
        self._rounds += 1
        folder, mine = f"agree-{self._rounds}", json.loads(json.dumps(mine))
        if not self.leads:
            return self.board.put(f"{folder}/{self.rank}", json.dumps(mine))
        with self.at(f"waiting for the others' {what}", LONG_WORK):
            while len(theirs := self.board.all(folder)) < self.size - 1:
                time.sleep(0.02)
        for rank in sorted(theirs, key=int):
            other = json.loads(theirs[rank])
            names = [n for n in sorted({*mine, *other}) if mine.get(n) != other.get(n)]
            if names:
                name = names[0]
                raise ConfigError(
                    f"the processes have different {what}: {name} is {mine.get(name)} in process "
                    f"0 and {other.get(name)} in process {rank}; start all with the same command, "
                    "the same packages and the same folder"
                )
        return None

    def ready(self) -> None:
        """Wait until all processes have compiled; later waits are limited by the heartbeat."""
        self.agree("programs", {})

    def run(self, chunk: Callable[..., Any], *arguments: Any) -> Any:
        """Run a program together with all other processes, and wait for its results."""
        started = time.monotonic()
        limit = self.heartbeat + self._longest
        with self.watch.at("in an update", limit, shared=True), self._all_there():
            found = jax.block_until_ready(chunk(*arguments))
        self._longest = max(self._longest, time.monotonic() - started)
        return found

    def leading(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a program for process 0, so that each call is announced to the others.

        Args:
            chunk: program (state, floats, count, frozen) -> results, as from `make_chunk`.
        """

        def led(state: PyTree, floats: PyTree, count: Any, *more: Any) -> Any:
            self.tell("chunk", count=int(count))
            return self.run(chunk, state, floats, count, *more)

        return led

    def gathered(self, state: PyTree) -> PyTree:
        """Gather the whole state on the devices of this process; all processes take part.

        Args:
            state: pytree of global arrays.
        """
        if self.leads:
            self.tell("gather")
        with self.watch.at("in gathering the state", shared=True), self._all_there():
            return global_arrays.gather(state)

    def own(self, state: PyTree) -> PyTree:
        """The part of a state that this process can use alone: parameters and its environments.

        Args:
            state: pytree of global arrays.
        """
        return global_arrays.own(state)

    def same_state(self, update: int, state: PyTree) -> None:
        """Refuse to start if the processes have different initial states.

        Args:
            update: number of updates in the state.
            state: pytree of arrays of this process.

        Raises:
            ConfigError: a process has a different state; the message names it.
        """
        self.agree("initial states", {"update": update, "state": digest(state)})

    def broken(self, error: Exception) -> RunFailed:
        """The error for a program that failed, possibly because another process was lost.

        Args:
            error: error raised by JAX.
        """
        if global_arrays.lost_peer(error) and not failures.is_callback(error):
            time.sleep(1.5 * self.heartbeat)  # the watch then ends this process with the reason
        return RunFailed(failures.one_line(error))

    @contextlib.contextmanager
    def _all_there(self) -> Iterator[None]:
        """Convert the various errors of a collective program with a lost process to RunFailed."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if global_arrays.lost_peer(error):
                raise self.broken(error) from error
            raise

    def leave(self, text: str, code: int) -> None:
        """End the command: end all processes after an error, otherwise wait for all to finish.

        Args:
            text: reason in one line; "" if there was no error or it has been printed.
            code: exit code of the command.
        """
        if text or (code and not self._told_end):
            self.watch.end(text or "it was ended", code, shown=bool(text))
        with self.at("ending", LONG_WORK):  # process 0 may still evaluate or draw
            self.board.put(f"done/{self.rank}", str(code))
            while len(self.board.all("done")) < self.size:
                time.sleep(0.02)
        self.watch.stop()
        jax.distributed.shutdown()


_alone = Alone()
_group: Group | None = None


def current() -> Group | Alone:
    """The group of this process; Alone if there is no other process."""
    return _alone if _group is None else _group


def join(options: ClusterOptions) -> Group | None:
    """Join the other processes that the options describe, before JAX's devices are initialised.

    Args:
        options: options of the command.

    Returns:
        The group; None if the options describe a single process.

    Raises:
        ConfigError: see `place_of` and `initialize`.
    """
    global _group
    place = place_of(options)
    if place is None:
        return None
    if _group is not None:
        raise ConfigError("this process has already joined the others; join only once")
    place = starting.initialize(place)
    rank, size, where = place.rank or 0, place.size or 1, split_address(place.coordinator or "")
    watch = Watch(board.connected(), rank, size, place.heartbeat, coordinator=where)
    _group = Group(rank, size, place.heartbeat, watch)
    watch.start()
    _group.agree("settings", {"num_processes": size, "heartbeat": place.heartbeat})
    return _group


def leave(text: str, code: int) -> None:
    """Call `Group.leave` if there is a group; this may end the process."""
    global _group
    group, _group = _group, None
    if group is not None:
        group.leave(text, code)


@contextlib.contextmanager
def joined(**options: Any) -> Iterator[Group]:
    """Join other processes within a block, from Python; `ppo_jax.run` in it is one run of all.

    Args:
        **options: fields of ClusterOptions.

    Raises:
        ConfigError: see `join`. Any exception in the block ends all processes.
    """
    group = join(ClusterOptions(**{"distributed": True} | options))
    assert group is not None
    try:
        yield group
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        leave(error.code if isinstance(error.code, str) else "", code)
        raise
    except BaseException as error:
        text = str(error)
        if not isinstance(error, ConfigError | RunFailed):
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        leave(text, 2 if isinstance(error, ConfigError) else 1)
        raise
    leave("", 0)


def digest(state: PyTree) -> str:
    """SHA-256 digest of the bits of a state, in hexadecimal digits.

    Args:
        state: pytree of arrays of this process.
    """
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        bits = np.asarray(jax.random.key_data(x) if key else x)
        found.update(f"{jax.tree_util.keystr(path)} {bits.dtype} {bits.shape}".encode())
        found.update(bits.tobytes())
    return found.hexdigest()
