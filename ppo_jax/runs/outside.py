"""Activities of a job outside its compiled programs, and their supervision.

Simulators in Python can raise errors, end or hang; none of that is an error of the compiled program
that calls them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ppo_jax.envs.supervision import repeated

if TYPE_CHECKING:
    from ppo_jax.runs.signals import Signals


class Outside(NamedTuple):
    """The activities of a job outside its compiled programs.

    Attributes:
        failure: function () -> description of a failure in one line, or None. After a failure, the
            results of the programs are invalid.
        numbers: function () -> counters, name -> number, for the log and the summary.
        limit_calls: function (time of a signal) -> None, which limits the duration of all further
            calls.
        stuck: function () -> description of a call that hangs, or None.
    """

    failure: Callable[[], str | None]
    numbers: Callable[[], dict[str, int]]
    limit_calls: Callable[[float], None]
    stuck: Callable[[], str | None]


@contextlib.contextmanager
def watched(
    outside: Outside | None, signals: "Signals", give_up: Callable[[str], None]
) -> Iterator[None]:
    """Supervise the calls of a job from a thread within the block.

    A call that hangs cannot be interrupted, so that the whole process ends.

    Args:
        outside: activities of the job; None for a job without them.
        signals: signal handlers of the command.
        give_up: function (reason) that saves the state and ends the process.
    """
    if outside is None:
        yield
        return

    def look() -> None:
        signals.look()
        if signals.since is not None:
            outside.limit_calls(signals.since)
        reason = outside.stuck()
        if reason is not None:
            give_up(reason)

    with repeated(look):
        yield
