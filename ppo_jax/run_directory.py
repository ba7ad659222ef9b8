"""The folder of a run: its lock, its config.json, its checkpoints."""

import fcntl
import json
import shutil
import sys
from pathlib import Path

from ppo_jax import config as configs
from ppo_jax import report
from ppo_jax.checkpoint import Checkpoints, write_json
from ppo_jax.config import ConfigError, TrainConfig


class RunDirectory:
    """The folder of one run, locked while it is in use.

    Args:
        path: created if it does not exist.

    Raises:
        ConfigError: it cannot be written to, or another process is using it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"cannot write to run directory {path} ({error.strerror}); choose another --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"run directory {path} is in use by another process") from error

    @property
    def used(self) -> bool:
        """Whether there is a run in it."""
        return any(p.name != ".lock" for p in self.path.iterdir())

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def clear(self) -> None:
        """Delete the run in it."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()


def read_config(run_dir: Path, name: str = "config.json") -> TrainConfig:
    """The configuration of a run.

    Raises:
        ConfigError: the directory is not a run, or its config.json is damaged.
    """
    path = run_dir / name
    try:
        values = json.loads(path.read_text())["config"]
    except FileNotFoundError as error:
        raise ConfigError(f"{run_dir} is not a run directory: it has no {name}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    return configs.from_json(values)


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """config.json: everything needed to repeat the run."""
    content = {
        "config": configs.to_json(config),
        "versions": report.versions(),
        "device": report.device(),
        "command": sys.argv,
    }
    write_json(run_dir / "config.json", content)


def checkpoints_of(run_dir: Path, config: TrainConfig) -> Checkpoints:
    """The checkpoints of a run; they belong to its configuration, whatever its length."""
    identity = configs.to_json(config)
    for may_change in ("total_timesteps", "anneal_timesteps"):
        identity.pop(may_change, None)
    return Checkpoints(run_dir.absolute() / "checkpoints", identity)
