"""The processes that train one agent together.

Process 0 leads: it alone runs the loop, with its clocks, its callbacks and its files, and before
each program that all have to run together it writes down which one that is. The others read that
and do the same (`follow`). So all of them run the same programs in the same order, whatever is
decided and by what.
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

# Commands that stay readable: nobody is further behind.
KEPT_COMMANDS = 64


class Alone:
    """A process that works alone: what a Group does, which here is nothing."""

    rank, size, leads = 0, 1, True

    def attend(self, signals: Signals, advice: Callable[[], str]) -> None:
        """As `Group.attend`."""

    def tell(self, do: str, **more: Any) -> None:
        """As `Group.tell`."""

    def agree(self, what: str, mine: dict[str, Any]) -> None:
        """As `Group.agree`."""

    def same_state(self, update: int, state: PyTree) -> None:
        """As `Group.same_state`."""

    def ready(self) -> None:
        """As `Group.ready`."""

    def at(self, what: str, limit: float | None = None) -> contextlib.AbstractContextManager[None]:
        """As `Group.at`."""
        return contextlib.nullcontext()

    def leading(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """As `Group.leading`."""
        return chunk

    def gathered(self, state: PyTree) -> PyTree:
        """As `Group.gathered`."""
        return state

    def own(self, state: PyTree) -> PyTree:
        """As `Group.own`."""
        return state

    def broken(self, error: Exception) -> RunFailed:
        """As `Group.broken`."""
        return RunFailed(failures.one_line(error))


class Group:
    """This process among the others.

    Args:
        rank: of this process.
        size: number of processes.
        heartbeat: seconds.
        watch: over all of them.
    """

    def __init__(self, rank: int, size: int, heartbeat: float, watch: Watch) -> None:
        self.rank, self.size, self.heartbeat, self.watch = rank, size, heartbeat, watch
        self.board = watch.board
        self._commands, self._rounds, self._longest = 0, 0, 0.0
        self._told_end = False

    @property
    def leads(self) -> bool:
        """Whether this is process 0, which decides and writes."""
        return self.rank == 0

    def attend(self, signals: Signals, advice: Callable[[], str]) -> None:
        """Process 0 hears of the signals of all, and the last line says how to go on.

        Args:
            signals: of the command.
            advice: () -> what is saved and how to go on.
        """
        self.watch.signals, self.watch.advice = signals, advice

    def at(self, what: str, limit: float | None = None) -> contextlib.AbstractContextManager[None]:
        """This process does something during a block, as `Watch.at`."""
        return self.watch.at(what, limit)

    def tell(self, do: str, **more: Any) -> None:
        """What all do next; by process 0.

        Args:
            do: "begin", "chunk", "gather" or "end".
            **more: JSON that belongs to it.
        """
        self._commands += 1
        self._told_end = do == "end"
        self.board.put(f"command/{self._commands}", json.dumps({"do": do} | more))
        self.board.forget(f"command/{self._commands - KEPT_COMMANDS}")

    def next(self) -> dict[str, Any]:
        """What process 0 wants next. Whether it is still there is the watch's business."""
        self._commands += 1
        text = None
        with self.at("waiting for process 0", math.inf):
            while text is None:
                text = self.board.wait(f"command/{self._commands}", 10.0)
        command = json.loads(text)
        self._told_end = command["do"] == "end"
        return command

    def agree(self, what: str, mine: dict[str, Any]) -> None:
        """Refuse to go on where the processes differ.

        Args:
            what: in words, of which there are different ones.
            mine: name -> text, of this process.

        Raises:
            ConfigError: which process has what.
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
        """Process 0 waits until all have compiled: from then on nobody waits for long."""
        self.agree("programs", {})

    def run(self, chunk: Callable[..., Any], *arguments: Any) -> Any:
        """A program that all run together, until its numbers are there."""
        started = time.monotonic()
        limit = self.heartbeat + self._longest
        with self.watch.at("in an update", limit, shared=True), self._all_there():
            found = jax.block_until_ready(chunk(*arguments))
        self._longest = max(self._longest, time.monotonic() - started)
        return found

    def leading(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """A program as process 0 runs it: the others are told of each call.

        Args:
            chunk: (state, floats, count, frozen) -> what `make_chunk` returns.
        """

        def led(state: PyTree, floats: PyTree, count: Any, *more: Any) -> Any:
            self.tell("chunk", count=int(count))
            return self.run(chunk, state, floats, count, *more)

        return led

    def gathered(self, state: PyTree) -> PyTree:
        """All of a state, on the devices of this process; all processes take part.

        Args:
            state: of global global_arrays.
        """
        if self.leads:
            self.tell("gather")
        with self.watch.at("in gathering the state", shared=True), self._all_there():
            return global_arrays.gather(state)

    def own(self, state: PyTree) -> PyTree:
        """What this process can compute with alone: parameters whole, its part of the rollout.

        Args:
            state: of global global_arrays.
        """
        return global_arrays.own(state)

    def same_state(self, update: int, state: PyTree) -> None:
        """Refuse to begin if the processes begin with different states.

        Args:
            update: number of updates in it.
            state: of arrays of this process.

        Raises:
            ConfigError: which process differs.
        """
        self.agree("first states", {"update": update, "state": digest(state)})

    def broken(self, error: Exception) -> RunFailed:
        """What is said of a program that failed; where another process is gone, which one.

        Args:
            error: of JAX.
        """
        if global_arrays.lost_peer(error) and not failures.is_callback(error):
            time.sleep(1.5 * self.heartbeat)  # the watch ends this process when it knows which
        return RunFailed(failures.one_line(error))

    @contextlib.contextmanager
    def _all_there(self) -> Iterator[None]:
        """A program of all fails in one of several ways, of several types, if one is gone."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if global_arrays.lost_peer(error):
                raise self.broken(error) from error
            raise

    def leave(self, text: str, code: int) -> None:
        """The command ends: all processes do, or wait for each other if all is well.

        Args:
            text: why, in a line; "" if all is well or it was printed already.
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
    """The processes that this one works with."""
    return _alone if _group is None else _group


def join(options: ClusterOptions) -> Group | None:
    """Join the other processes that the options speak of, before JAX's devices are started.

    Args:
        options: of the command.

    Returns:
        The group; None where the options speak of none.

    Raises:
        ConfigError: as `place_of` and `initialize`.
    """
    global _group
    place = place_of(options)
    if place is None:
        return None
    if _group is not None:
        raise ConfigError("this process has joined the others already; join once")
    place = starting.initialize(place)
    rank, size, where = place.rank or 0, place.size or 1, split_address(place.coordinator or "")
    watch = Watch(board.connected(), rank, size, place.heartbeat, coordinator=where)
    _group = Group(rank, size, place.heartbeat, watch)
    watch.start()
    _group.agree("settings", {"num_processes": size, "heartbeat": place.heartbeat})
    return _group


def leave(text: str, code: int) -> None:
    """As `Group.leave`, where there is a group; it may end the process."""
    global _group
    group, _group = _group, None
    if group is not None:
        group.leave(text, code)


@contextlib.contextmanager
def joined(**options: Any) -> Iterator[Group]:
    """Work with other processes during a block, from Python; `ppo_jax.run` in it is one run of all.

    Args:
        **options: fields of ClusterOptions.

    Raises:
        ConfigError: as `join`. What is raised in the block ends all processes.
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
    """SHA-256 of the bits of a state, in hexadecimal digits.

    Args:
        state: of arrays of this process.
    """
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        bits = np.asarray(jax.random.key_data(x) if key else x)
        found.update(f"{jax.tree_util.keystr(path)} {bits.dtype} {bits.shape}".encode())
        found.update(bits.tobytes())
    return found.hexdigest()
