"""What a run is: the one description that the loop takes.

A training run of an agent, a stage of a language model and a round of a sweep are each one Job.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.runs.chunk import MAX_CHUNK, Chunk, Step, compile_chunk
from ppo_jax.runs.devices import Layout
from ppo_jax.runs.failures import RunFailed as RunFailed
from ppo_jax.runs.outside import Outside
from ppo_jax.runs.terminal import UNITS as UNITS
from ppo_jax.types import PyTree


def _in_place(state: Any) -> Any:
    return state


class Job(NamedTuple):
    """What is run.

    Attributes:
        name: for people: the title of the progress display and of the figure.
        init: () -> state, the first one.
        shapes: of the state, as `jax.eval_shape` gives them.
        step: (state, frozen, floats) -> (state, Metrics), and guard.Found if the step looks at its
            own numbers; one update.
        updates: number of updates of the whole run.
        unit: what an update consists of: a name in UNITS, which is also that of a field of
            summary.json.
        units_per_update: number of them.
        headline: the metric that is shown.
        frozen: arrays that the step takes and nothing changes.
        floats: numbers that the step takes.
        rows: number of updates in a chunk at most.
        curves: metrics that the run's figure shows.
        may_be_nan: beginnings of the names of metrics that may be NaN: there may be no finished
            episode, nothing to explain.
        promises: metric -> what it means, to be warned of, once it is not 0.
        score: (metric of a row, number of an evaluation) by which the best checkpoint is chosen;
            the second where there are evaluations during training.
        evaluate: (state, update) -> numbers; None for a job without an evaluation.
        result: (state, folder) -> what summary.json says of the trained state, which may be written
            into the folder; None to write the numbers of `evaluate`.
        samples: (state, count) -> samples to be looked at, each a dictionary.
        restart: state -> state, for a restored state whose environments are gone.
        place: state -> state, where it is worked on if there are several devices.
        layout: how several devices share the state, whose step is then a function of each device's
            share; None where there is one, or where the compiler divides the work.
        devices: how many of them it works on; None: all.
        outside: what it does outside of its programs, where things fail that are no part of them.
        cause: what usually makes a number infinite, for the message.
        source: where observations and rewards come from, for the message.
        needs: what else has to be in memory at the same time as the state -> bytes of it.
        pure: whether an update is a function of its state alone. Where it is not, for environments
            live on the host, no update can be made again, and a chunk leaves the state that went in
            as it is: that is what is left if it fails.
    """

    name: str
    init: Callable[[], Any]
    shapes: Any
    step: Step
    updates: int
    unit: str
    units_per_update: int
    headline: str
    frozen: PyTree = ()
    floats: PyTree = ()
    rows: int = MAX_CHUNK
    curves: tuple[str, ...] = ()
    may_be_nan: tuple[str, ...] = ()
    promises: dict[str, str] = {}  # noqa: RUF012
    score: tuple[str | None, str | None] = (None, None)
    evaluate: Callable[[Any, int], dict[str, Any]] | None = None
    result: Callable[[Any, Path], dict[str, Any]] | None = None
    samples: Callable[[Any, int], list[dict[str, Any]]] | None = None
    restart: Callable[[Any], Any] = _in_place
    place: Callable[[Any], Any] = _in_place
    layout: Layout | None = None
    devices: int | None = None
    outside: Outside | None = None
    cause: str = "a learning rate too high"
    source: str = "the environment"
    needs: dict[str, int] = {}  # noqa: RUF012
    pure: bool = True

    def placed(self, state: Any) -> Any:
        """A state where it is worked on."""
        return self.place(state) if self.layout is None else self.layout.place(state)

    def compiled(self, state: Any) -> Chunk:
        """The program of up to `rows` updates.

        Args:
            state: placed, or its shapes.
        """
        return compile_chunk(
            self.step, state, self.floats, self.frozen, rows=self.rows,
            may_be_nan=self.may_be_nan, donate=self.pure, layout=self.layout,
        )  # fmt: skip


class Progress(NamedTuple):
    """What a callback sees between two chunks.

    Attributes:
        update: number of updates made.
        updates: of the whole run.
        step: number of units made: environment steps, sequences.
        rows: the rows of metrics.jsonl since the last call.
        path: the run's folder; None for a run that is kept in memory.
    """

    update: int
    updates: int
    step: int
    rows: list[dict[str, Any]]
    path: Path | None


Callback = Callable[[Progress, Any], Any]


class Result(NamedTuple):
    """What came of a run.

    Attributes:
        state: the last one.
        summary: as in summary.json.
        path: the run's folder; None for a run that is kept in memory.
        exit_code: 0, or 128 + the number of the signal that ended it.
    """

    state: Any
    summary: dict[str, Any]
    path: Path | None
    exit_code: int


class Diverged(RunFailed):
    """A number is not finite: which, and when."""
