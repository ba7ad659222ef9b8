"""Experiment trackers: TensorBoard, Weights & Biases and trackio.

Each is an optional dependency, the extra of the same name. metrics.jsonl is always written, and
an error of a tracker disables the tracker without ending the run.
"""

import importlib.util
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ppo_jax.config import ConfigError, installation
from ppo_jax.runs import files, manifest
from ppo_jax.runs.metrics_log import position_of

PROJECT = "ppo_jax"
# File with the run's names in the trackers, so that a resumed run continues under the same name.
NAMES = "trackers.json"


class Tracker(Protocol):
    """A receiver of the metrics of a run."""

    def log(self, row: dict[str, Any]) -> None:
        """Log a row of metrics.jsonl."""
        ...

    def close(self) -> None:
        """End the tracked run, after the last row."""
        ...


class TrackedRun(NamedTuple):
    """The description of a run that a tracker receives.

    Attributes:
        path: folder of the run.
        config: flat configuration of the run.
        first_step: environment steps of the first row to come; rows of an interrupted session with
            later steps are replaced.
        name: unique name of the run in the tracker.
    """

    path: Path
    config: dict[str, Any]
    first_step: int
    name: str


def require(names: Iterable[str]) -> None:
    """Refuse trackers that are not installed.

    Args:
        names: names of trackers, keys of TRACKERS.

    Raises:
        ConfigError: a package is missing; the message gives the command that installs it.
    """
    for name in names:
        if not importlib.util.find_spec(TRACKERS[name].package):
            raise ConfigError(
                f"--{name} needs {TRACKERS[name].package}: {installation.command(f'[{name}]')}"
            )


def start(
    names: Iterable[str], path: Path, config: dict[str, Any], first_step: int
) -> list[Tracker]:
    """Start the trackers of a new or resumed run.

    Args:
        names: names of trackers, keys of TRACKERS.
        path: folder of the run, which stores the run's names in the trackers.
        config: flat configuration in JSON types.
        first_step: environment steps of the first row to come.

    Raises:
        ConfigError: a tracker cannot start, for example without a login or a network connection.
    """
    session = TrackedRun(path, config, first_step, "")
    started: list[Tracker] = []
    for name in names:
        try:
            named = session._replace(name=_name(path, name))
            started.append(Careful(name, TRACKERS[name].open(named)))
        except Exception as error:  # trackers may raise any exception
            for tracker in started:
                tracker.close()
            hint = TRACKERS[name].hint
            raise ConfigError(f"--{name}: {name} does not start: {error}{hint}") from error
    return started


def _name(path: Path, tracker: str) -> str:
    """The run's name in a tracker, read from the run folder; a new unique name for a new run."""
    try:
        names = json.loads(files.read_text(path / NAMES))
    except (OSError, ValueError, RecursionError):
        names = {}
    names = names if isinstance(names, dict) else {}
    if tracker not in names:
        names[tracker] = f"{path.absolute().name}-{secrets.token_hex(3)}"
        manifest.write_json(path, NAMES, names)
    return names[tracker]


class Careful:
    """A tracker that is disabled after its first error.

    Args:
        name: name of the tracker, for the warning.
        tracker: the tracker to call.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._works = True

    def log(self, row: dict[str, Any]) -> None:
        """Log a row, unless the tracker is disabled."""
        if self._works:
            self._try(lambda: self._tracker.log(row))

    def close(self) -> None:
        """End the tracked run."""
        self._try(self._tracker.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # trackers may raise any exception
            if self._works:
                warnings.warn(f"{self._name} fails ({error}); continuing without it", stacklevel=1)
            self._works = False


class _TensorBoard:
    def __init__(self, session: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        # Events of an interrupted session from this step on are deleted; they will be repeated.
        folder = str(session.path / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=session.first_step)

    def log(self, row: dict[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, position_of(row))

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, session: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=session.path.absolute().name,
            id=session.name,
            resume="allow",
            dir=str(session.path),
            config=session.config,
            settings=wandb.Settings(console="off"),
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(_numbers(row), step=position_of(row))

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, session: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=session.name,
            resume="allow",
            config=session.config,
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(_numbers(row), step=position_of(row))

    def close(self) -> None:
        self._run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The values that are not null."""
    return {name: value for name, value in row.items() if value is not None}


class _Kind(NamedTuple):
    package: str
    open: Callable[[TrackedRun], Tracker]
    hint: str = ""


TRACKERS = {
    "tensorboard": _Kind("tensorboardX", _TensorBoard),
    "wandb": _Kind("wandb", _Wandb, "; wandb login first, or set WANDB_MODE=offline"),
    "trackio": _Kind("trackio", _Trackio),
}
