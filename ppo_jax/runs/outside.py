"""What a job does outside of its compiled programs, and a watch over it.

Simulators of the host raise, end and hang; none of that is an error of the program that steps them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ppo_jax.envs.supervision import repeated

if TYPE_CHECKING:
    from ppo_jax.runs.signals import Signals


class Outside(NamedTuple):
    """What a job does outside of its programs.

    Attributes:
        failure: () -> what failed, in one line; None: nothing did. What the programs return after a
            failure is worth nothing.
        numbers: () -> name -> number, for the log and the summary.
        hurry: (when a signal came) -> None: no call is to take long any more.
        stuck: () -> what is said of a call that hangs; None: none does.
    """

    failure: Callable[[], str | None]
    numbers: Callable[[], dict[str, int]]
    hurry: Callable[[float], None]
    stuck: Callable[[], str | None]


@contextlib.contextmanager
def watched(
    outside: Outside | None, signals: "Signals", give_up: Callable[[str], None]
) -> Iterator[None]:
    """Watch over the calls of a job, in a thread, while a block runs.

    A call that hangs cannot be ended: it is given up, and with it the process.

    Args:
        outside: of the job; None: there is nothing to watch.
        signals: of the command.
        give_up: (reason) -> None, which does not return: saves what there is.
    """
    if outside is None:
        yield
        return

    def look() -> None:
        signals.look()
        if signals.since is not None:
            outside.hurry(signals.since)
        reason = outside.stuck()
        if reason is not None:
            give_up(reason)

    with repeated(look):
        yield
