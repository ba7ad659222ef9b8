"""The description of a run that the training loop takes.

The training of an agent, a stage of a language model and a round of a sweep are each one Job.
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
    """The description of a run.

    Attributes:
        name: title of the progress display and of the figure.
        init: function () -> initial state.
        shapes: shapes of the state, as returned by `jax.eval_shape`.
        step: one update, (state, frozen, floats) -> (state, Metrics), or with a guard.Found as a
            third result if the step checks its own numbers.
        updates: number of updates of the whole run.
        unit: unit of progress, a key of UNITS, which is also the name of a field of summary.json.
        units_per_update: number of units per update.
        headline: name of the metric that the progress display shows.
        frozen: constant arrays that are an argument of the step.
        floats: traced numbers that are an argument of the step.
        rows: largest number of updates per chunk.
        curves: names of the metrics that the figure of the run shows.
        may_be_nan: prefixes of the names of metrics that may be NaN, for example because no episode
            has finished.
        promises: metric -> meaning, the text of a warning that is issued when the metric is not 0.
        score: (name of a metric, name of a number of the evaluation), by which the best checkpoint
            is chosen; the second applies if there are evaluations during training.
        minimise: whether a lower score is better.
        keeps_best: whether every state with a new best score is saved at once, and the results are
            those of the state with the best score (option `final_model`).
        evaluate: function (state, update) -> numbers; None for a job without an evaluation.
        result: function (state, folder) -> content of summary.json about the trained state; it may
            write files into the folder. If it is None, the numbers of `evaluate` are used.
        samples: function (state, count) -> samples to display, each a dictionary.
        restart: function state -> state for a restored state, which restarts its environments.
        place: function state -> state that copies the state to several devices.
        layout: partition of the state over several devices, if the step is a function of one
            device's part; None for one device, or if the compiler partitions the program.
        devices: number of devices in use; None for all devices.
        outside: activities outside the compiled programs, which can fail on their own.
        cause: the most frequent cause of numbers that are not finite, for the error message.
        source: the origin of observations and rewards, for the error message.
        needs: description -> bytes, for arrays that are in memory at the same time as the state.
        pure: whether an update is a function of its state alone. It is not if environments run in
            Python: then no update can be repeated, and a chunk does not reuse the memory of its
            input state, which is what remains if the chunk fails.
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
    minimise: bool = False
    keeps_best: bool = False
    evaluate: Callable[[Any, int], dict[str, Any]] | None = None
    result: Callable[[Any, Path], dict[str, Any]] | None = None
    samples: Callable[[Any, int], list[dict[str, Any]]] | None = None
    restart: Callable[[Any], Any] = _in_place
    place: Callable[[Any], Any] = _in_place
    layout: Layout | None = None
    devices: int | None = None
    outside: Outside | None = None
    cause: str = "a learning rate that is too high"
    source: str = "the environment"
    needs: dict[str, int] = {}  # noqa: RUF012
    pure: bool = True

    @property
    def sign(self) -> int:
        """The factor with which the larger of two scores is the better one."""
        return -1 if self.minimise else 1

    def placed(self, state: Any) -> Any:
        """Copy a state to the devices of this job."""
        return self.place(state) if self.layout is None else self.layout.place(state)

    def compiled(self, state: Any) -> Chunk:
        """Compile the program of up to `rows` updates.

        Args:
            state: the state on its devices, or its shapes.
        """
        return compile_chunk(
            self.step, state, self.floats, self.frozen, rows=self.rows,
            may_be_nan=self.may_be_nan, donate=self.pure, layout=self.layout,
        )  # fmt: skip


class Progress(NamedTuple):
    """The progress of a run, passed to callbacks between two chunks.

    Attributes:
        update: number of updates made.
        updates: number of updates of the whole run.
        step: number of units made, such as environment steps or responses.
        rows: rows of metrics since the last call, as in metrics.jsonl.
        path: folder of the run; None for a run that is kept in memory.
    """

    update: int
    updates: int
    step: int
    rows: list[dict[str, Any]]
    path: Path | None


Callback = Callable[[Progress, Any], Any]


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        state: the last state.
        summary: content of summary.json.
        path: folder of the run; None for a run that is kept in memory.
        exit_code: 0, or 128 + the number of the signal that ended the run.
    """

    state: Any
    summary: dict[str, Any]
    path: Path | None
    exit_code: int


class Diverged(RunFailed):
    """A number is not finite; the message names the number and the update."""
