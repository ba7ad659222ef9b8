"""The folder of a run: its lock, its config.json, its checkpoints."""

import fcntl
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig, references
from ppo_jax.config.options import to_json as json_value
from ppo_jax.runs import provenance, trust
from ppo_jax.runs.checkpoint import Checkpoints, delete, write_json
from ppo_jax.runs.trust import NOTHING, Given

# All that a run writes; nothing else is ever deleted.
CONTENTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "learning_curve.png",
    "tensorboard",
    "wandb",
    "trackers.json",
    "checkpoints",
    "policy.stablehlo",
    "policy.stablehlo.json",
    "policy.onnx",
    "policy.safetensors",
)


class RunDirectory:
    """The folder of one run, locked while it is in use.

    Args:
        path: created if it does not exist.

    Raises:
        ConfigError: it holds something else than a run, it cannot be written to, or another
            process is using it.
    """

    contents: tuple[str, ...] = CONTENTS
    mark = "config.json"  # what makes a folder one of these
    kind = "run"
    parent = "runs"  # where a new one is made

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Without its mark, a folder of the same name is somebody else's.
            own = {".lock", *(f".{name}.tmp" for name in self.contents)}
            foreign = sorted({p.name for p in path.iterdir()} - own)
            if foreign and not (path / self.mark).exists():
                raise ConfigError(
                    f"directory {path.absolute()} is not a {self.kind} and not empty (it has "
                    f"{foreign[0]}); choose another --run-dir"
                )
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.kind} directory {path} ({error.strerror}); it has to be a "
                "directory that you may write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{self.kind} directory {path} is in use by another process"
            ) from error

    @classmethod
    def opened(cls, options: Any, name: str, describe: Callable[[Path], None]) -> Self:
        """The folder that a run's options name, locked, and described unless it is resumed.

        Args:
            options: with run_dir, resume and overwrite.
            name: of a new folder in runs/.
            describe: writes the file that makes a folder one of these.

        Raises:
            ConfigError: it holds a run already, or something else, or cannot be written to.
        """
        if options.resume is not None:
            if options.run_dir is not None or options.overwrite:
                raise ConfigError(
                    "--resume goes on in its own folder: no --run-dir, no --overwrite"
                )
            if not (options.resume / cls.mark).is_file():
                raise ConfigError(f"{options.resume} is not a {cls.kind}: it has no {cls.mark}")
            return cls(options.resume)
        directory = cls(options.run_dir or new_directory(cls.parent, name))
        if directory.used and not options.overwrite:
            path = shlex.quote(str(directory.path))
            raise ConfigError(
                f"{cls.kind} directory {path} already holds a {cls.kind}; continue it with "
                f"--resume {path}, replace it with --overwrite, or choose another --run-dir"
            )
        directory.clear()
        # Before compiling: a run killed there can be resumed.
        describe(directory.path)
        return directory

    @property
    def used(self) -> bool:
        """Whether there is a run in it."""
        return (self.path / self.mark).exists()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def clear(self) -> None:
        """Delete the run in it; its mark last, so that it stays a run until it is gone."""
        for name in sorted(self.contents, key=lambda name: name == self.mark):
            delete(self.path / name)


def new_directory(parent: str, name: str) -> Path:
    """A folder that is not there yet: what it is, and when."""
    name = re.sub(r"[:<>, ]+", "_", name).strip("_")
    name = f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    names = [name, *(f"{name}_{k}" for k in range(2, 1000))]
    return next(path for n in names if not (path := Path(parent) / n).exists())


def read_config(run_dir: Path, given: Given = NOTHING) -> TrainConfig:
    """The configuration of a run.

    Args:
        run_dir: run directory.
        given: names and objects that stand beside those of the run, and whether it is trusted.

    Raises:
        ConfigError: the directory is not a run, its config.json is damaged, or it names code to
            import and is not the user's own.
    """
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    return read_config_file(run_dir / "config.json", given)


def read_config_file(path: Path, given: Given = NOTHING) -> TrainConfig:
    """The configuration in a config.json, wherever it is; as for `read_config`."""
    values = _section(path, "config")
    return trusted_config(json.loads(path.read_text()) | {"config": values}, given, path)


def trusted_config(content: dict[str, Any], given: Given, path: Path) -> TrainConfig:
    """The configuration in the content of a file, if all that it names may be imported.

    Args:
        content: with "config", and "signature" if it has one.
        given: as for `read_config`.
        path: of the file, for messages.

    Raises:
        ConfigError: it names code and is not the user's own, or a value is out of its range.
    """
    trust.check(content, given.named, given.trust, path)
    for name in configs.CODE:
        text, part = content["config"].get(name), getattr(given, name)
        if isinstance(text, str) and references.is_text(text) and part is not None:
            references.bind(text, part)
    return configs.from_saved(content["config"])


def read_values(run_dir: Path) -> dict[str, Any]:
    """The flat values in the config.json of a run, as they are written; nothing is imported."""
    return _section(run_dir / "config.json", "config")


def check_callbacks(run_dir: Path, given: Given, names: Sequence[str]) -> None:
    """Refuse the callbacks of somebody else's run, unless they are named again or trusted.

    Raises:
        ConfigError: the names, and the two ways on.
    """
    path = run_dir / "config.json"
    content = json.loads(path.read_text())
    if {*names} & {*trust.callbacks_of(content)}:
        trust.check(content, given.named, given.trust, path, callbacks=True)


def read_run_options(run_dir: Path) -> dict[str, Any]:
    """The run options that the run was started with; they hold until others are given."""
    return _section(run_dir / "config.json", "run")


def write_config(config: TrainConfig, run_options: dict[str, Any], run_dir: Path) -> None:
    """config.json: everything needed to repeat the run."""
    content = {"config": configs.to_json(config), "run": shown(run_options)}
    write_description(run_dir, content, config.matmul_precision)


def write_description(path: Path, content: dict[str, Any], precision: str | None) -> None:
    """config.json: what is run, and each session that ran it.

    Versions and device are those it began with; each session that went on with it has its own.
    """
    file = path / "config.json"
    session = {"command": sys.argv, **provenance.record(precision or "default")}
    earlier = json.loads(file.read_text()).get("sessions", []) if file.exists() else []
    sessions = [*earlier, session]
    began = {name: sessions[0][name] for name in ("versions", "device")}
    content = content | began | {"sessions": sessions}
    signature = trust.sign(content)
    write_json(file, content | ({"signature": signature} if signature else {}))


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """Options in JSON's types."""
    return {name: json_value(value) for name, value in options.items()}


def _section(path: Path, name: str) -> dict[str, Any]:
    try:
        section = json.loads(path.read_text())[name]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}") from error
    if not isinstance(section, dict):
        raise ConfigError(f"{path} is damaged: {name!r} is {section!r}")
    return section


def identity_of(config: TrainConfig) -> dict[str, Any]:
    """What the checkpoints of a run share, whatever its length: `identity`, and its `defaults`."""
    found = {
        "identity": configs.to_json(config),
        "defaults": configs.to_json(TrainConfig(algorithm=config.algorithm)) | configs.BEFORE,
    }
    for values in found.values():
        for may_change in ("total_timesteps", "anneal_timesteps"):
            values.pop(may_change, None)
    return found


def checkpoints_of(run_dir: Path, config: TrainConfig) -> Checkpoints:
    """The checkpoints of a run; they belong to its configuration, whatever its length."""
    return Checkpoints(run_dir.absolute() / "checkpoints", **identity_of(config))
