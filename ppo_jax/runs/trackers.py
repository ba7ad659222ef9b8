"""Programs that show runs while they run: TensorBoard, Weights & Biases, trackio.

Each is an extra, `pip install 'ppo_jax[NAME]'`; metrics.jsonl is written in any case, and a tracker
that breaks down is left behind, not the run.
"""

import importlib.util
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ppo_jax.config import ConfigError
from ppo_jax.runs import files, manifest

PROJECT = "ppo_jax"
# How a run is called there: it goes on under the same name after --resume.
NAMES = "trackers.json"


class Tracker(Protocol):
    """What a run tells its numbers to."""

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""
        ...

    def close(self) -> None:
        """The last row was told."""
        ...


class TrackedRun(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        path: run directory.
        config: its flat configuration.
        first_step: environment steps of the first row to come; later ones, of an interrupted
            session, are made again.
        name: what the run is called among those of all directories.
    """

    path: Path
    config: dict[str, Any]
    first_step: int
    name: str


def require(names: Iterable[str]) -> None:
    """Refuse trackers that are not installed.

    Args:
        names: in TRACKERS.

    Raises:
        ConfigError: one is missing, with what to do.
    """
    for name in names:
        if not importlib.util.find_spec(TRACKERS[name].package):
            raise ConfigError(
                f"--{name} needs {TRACKERS[name].package}: pip install 'ppo_jax[{name}]'"
            )


def start(
    names: Iterable[str], path: Path, config: dict[str, Any], first_step: int
) -> list[Tracker]:
    """The trackers of a run, new or resumed.

    Args:
        names: in TRACKERS.
        path: run directory, which keeps what the run is called there.
        config: flat, in JSON's types.
        first_step: environment steps of the first row to come.

    Raises:
        ConfigError: one cannot start: no login, no network.
    """
    session = TrackedRun(path, config, first_step, "")
    started: list[Tracker] = []
    for name in names:
        try:
            named = session._replace(name=_name(path, name))
            started.append(Careful(name, TRACKERS[name].open(named)))
        except Exception as error:  # whatever a foreign program meets
            for tracker in started:
                tracker.close()
            hint = TRACKERS[name].hint
            raise ConfigError(f"--{name}: {name} does not start: {error}{hint}") from error
    return started


def _name(path: Path, tracker: str) -> str:
    """The name kept in the run directory; for a new run, one that nobody else has."""
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
    """A tracker that is left behind when it breaks down.

    Args:
        name: of it.
        tracker: itself.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._works = True

    def log(self, row: dict[str, Any]) -> None:
        """A row, unless it broke down before."""
        if self._works:
            self._try(lambda: self._tracker.log(row))

    def close(self) -> None:
        """The last row was told."""
        self._try(self._tracker.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a foreign program meets
            if self._works:
                warnings.warn(f"{self._name} fails ({error}); going on without", stacklevel=1)
            self._works = False


class _TensorBoard:
    def __init__(self, session: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        # Events from there on are of updates that will be made again.
        folder = str(session.path / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=session.first_step)

    def log(self, row: dict[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["env_step"])

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
        self._run.log(_numbers(row), step=row["env_step"])

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
        self._run.log(_numbers(row), step=row["env_step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What has a value; null is none."""
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
