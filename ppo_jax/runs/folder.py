"""The folder of a run: its lock, its config.json, its checkpoints, and what of it is deleted."""

import contextlib
import fcntl
import json
import os
import re
import shlex
import stat
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig, references
from ppo_jax.config.options import to_json as json_value
from ppo_jax.runs import files, manifest, trust
from ppo_jax.runs.trust import NOTHING, Given

if TYPE_CHECKING:
    from ppo_jax.runs.checkpoint import Checkpoints

# All that a run writes; nothing else is ever deleted, and of folders only what is ours in them.
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
    manifest.NAME,
)
# What a run calls itself in its config.json.
FORMAT = "ppo_jax run"
STAGE_FORMAT = "ppo_jax stage"
UNVERIFIED = re.compile(r"(metrics|samples|summary)\.unverified\d*\.jsonl?")
EVENTS = re.compile(r"events\.out\.tfevents\..+")


class RunDirectory:
    """The folder of one run, locked while it is in use.

    Args:
        path: created if it does not exist.

    Raises:
        ConfigError: it holds something else than a run, it cannot be written to, or another
            process is using it.
    """

    contents: tuple[str, ...] = CONTENTS
    mark = "config.json"  # the file that makes a folder one of these
    format = FORMAT  # and what it has to say
    kind = "run"
    parent = "runs"  # where a new one is made

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            str(path).encode()
            path.mkdir(parents=True, exist_ok=True)
            # A config.json alone makes no run: a Hugging Face model has one, too.
            foreign = sorted(p.name for p in path.iterdir() if not self._is_leftover(p.name))
            if foreign and not self.is_one(path):
                raise ConfigError(
                    f"directory {path.absolute()} is not a {self.kind} and not empty (it has "
                    f"{foreign[0]}); choose another --run-dir"
                )
            files.refuse_links(path, [".lock", *self.contents])
            self._lock = _open_lock(path / ".lock")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.kind} directory {path} ({error.strerror}); it has to be a "
                "directory that you may write to"
            ) from error
        except (UnicodeEncodeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{str(path)!r} cannot be the name of a directory: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{self.kind} directory {path} is in use by another process"
            ) from error
        for leftover in path.iterdir():
            if files.TEMPORARY.fullmatch(leftover.name):
                files.delete(leftover)

    def _is_leftover(self, name: str) -> bool:
        """Whether a crash before the first file can have left it."""
        older = {f".{n}.tmp" for n in self.contents}
        return name in {".lock", manifest.NAME, *older} or bool(files.TEMPORARY.fullmatch(name))

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a folder is one of these: its mark says so, or, where that is damaged, the
        manifest that lists it."""
        try:
            content = json.loads(files.read_text(path / cls.mark))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and "format" in content:
            known = content["format"] == cls.format
        else:
            known = isinstance(content, dict) and cls.is_older(content)
        if known:
            return True
        with contextlib.suppress(manifest.Damaged):
            listed = manifest.read(path)
            return cls.mark in listed and listed[cls.mark].get("of") == cls.format
        return False

    @classmethod
    def is_older(cls, content: dict[str, Any]) -> bool:
        """Whether a mark is that of an earlier version, which did not say what it is."""
        config = content.get("config")
        known = isinstance(config, dict) and {"env", "algorithm"} <= config.keys()
        kept = isinstance(content.get("run"), dict) or isinstance(content.get("sessions"), list)
        return known and kept and "stage" not in content

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
            if not os.path.lexists(options.resume / cls.mark):
                gone = ", which its manifest lists" if manifest.has_one(options.resume) else ""
                raise ConfigError(
                    f"{options.resume} is not a {cls.kind}: it has no {cls.mark}{gone}"
                )
            if not cls.is_one(options.resume):
                raise ConfigError(
                    f"{options.resume} is not a {cls.kind}: its {cls.mark} is not that of one"
                )
            return cls(options.resume)
        directory = cls(options.run_dir or new_directory(cls.parent, name))
        if directory.used and not options.overwrite:
            path = shlex.quote(str(directory.path))
            raise ConfigError(
                f"{cls.kind} directory {path} already holds a {cls.kind}; continue it with "
                f"--resume {path}, replace it with --overwrite, or choose another --run-dir"
            )
        directory.rehearse()
        directory.clear()
        # Before compiling: a run killed there can be resumed.
        describe(directory.path)
        return directory

    def rehearse(self) -> None:
        """Refuse a folder in which checkpoints could not be written or read again.

        Raises:
            ConfigError: what the disk, or the library that writes them, said.
        """
        from ppo_jax.runs.checkpoint import Checkpoints

        try:
            Checkpoints(self.path.absolute() / "checkpoints", {}).rehearse()
        except OSError as error:
            raise ConfigError(
                f"checkpoints cannot be kept in {str(self.path)!r} ({error}); choose a --run-dir "
                "with a shorter name, of letters and digits"
            ) from error

    @property
    def used(self) -> bool:
        """Whether there is a run in it."""
        return self.is_one(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def clear(self) -> None:
        """Delete the run in it; its mark last, so that it stays a run until it is gone."""
        clear(self.path, self.contents, self.mark)


def _open_lock(path: Path) -> Any:
    """The file of the lock, whatever lies there; nothing is written into it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError(f"{path} is not a regular file; delete it")
    return file


def clear(path: Path, contents: Sequence[str], mark: str) -> None:
    """Delete what a run left in a folder, and nothing else.

    Args:
        path: the folder, whose mark says that it is a run.
        contents: names of its files, and of folders in which what is ours is deleted.
        mark: goes last, and the manifest first: nothing of it is missing then.
    """
    order = {manifest.NAME: 0, mark: 2}
    for name in sorted(contents, key=lambda name: order.get(name, 1)):
        if (path / name).is_dir() and not (path / name).is_symlink():
            _clear_folder(path, name)
        else:
            files.delete(path / name)
    for left in path.iterdir():
        if UNVERIFIED.fullmatch(left.name) or files.TEMPORARY.fullmatch(left.name):
            files.delete(left)


def _clear_folder(path: Path, name: str) -> None:
    """Delete what is ours in a folder of a run, and the folder if it is empty then."""
    folder = path / name
    if name == "checkpoints":
        from ppo_jax.runs.checkpoint import Checkpoints

        return Checkpoints(folder, {}).clear()
    if name == "wandb":
        owned = _of_wandb(path)
    elif name == "tensorboard":
        owned = [p for p in folder.iterdir() if EVENTS.fullmatch(p.name)]
    else:
        owned = []
    for found in owned:
        files.delete(found)
    return files.remove_empty(folder)


def _of_wandb(path: Path) -> list[Path]:
    """What Weights & Biases wrote for this run: its folders by the name of the run, and links."""
    try:
        name = json.loads(files.read_text(path / "trackers.json"))["wandb"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    there = [*(path / "wandb").iterdir()]
    links = ("latest-run", "debug.log", "debug-internal.log")
    return [p for p in there if p.name.endswith(f"-{name}") or (p.name in links and p.is_symlink())]


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
    if not os.path.lexists(run_dir / "config.json"):
        gone = ", which its manifest lists" if manifest.has_one(run_dir) else ""
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json{gone}")
    return read_config_file(run_dir / "config.json", given)


def read_config_file(path: Path, given: Given = NOTHING) -> TrainConfig:
    """The configuration in a config.json, wherever it is; as for `read_config`."""
    values = _section(path, "config")
    content = json.loads(files.read_text(path)) | {"config": values}
    trust.check(content, given.named, given.trust, path)
    check_digest(path, content, given)
    return trusted_config(content, given, path)


def check_digest(path: Path, content: dict[str, Any], given: Given) -> None:
    """Refuse a file that differs from its digest; warn where the person vouched for it.

    Args:
        path: of the file that makes a folder a run.
        content: of the file; what it names was looked at by `trust.check`.
        given: as for `read_config`.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        manifest.require(path.parent, path.name)
    except manifest.Damaged as error:
        if not trust.vouched(content, given.named, given.trust):
            raise
        warnings.warn(str(error), stacklevel=2)


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
    content = json.loads(files.read_text(path))
    if {*names} & {*trust.callbacks_of(content)}:
        trust.check(content, given.named, given.trust, path, callbacks=True)


def read_run_options(run_dir: Path) -> dict[str, Any]:
    """The run options that the run was started with; they hold until others are given."""
    return plain(_section(run_dir / "config.json", "run"), run_dir / "config.json")


def plain(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Options of a run as they were read: values and lists of values.

    Raises:
        ConfigError: one is something else, which no run wrote.
    """
    for name, value in options.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in items):
            raise ConfigError(f"{path} is damaged: {name} is {value!r}")
    return options


def write_config(config: TrainConfig, run_options: dict[str, Any], run_dir: Path) -> None:
    """config.json: everything needed to repeat the run."""
    content = {"config": configs.to_json(config), "run": shown(run_options)}
    write_description(run_dir, content, config.matmul_precision)


def write_description(path: Path, content: dict[str, Any], precision: str | None) -> None:
    """config.json: what is run, and each session that ran it.

    Versions and device are those it began with; each session that went on with it has its own.
    """
    from ppo_jax.runs import provenance

    session = {"command": sys.argv, **provenance.record(precision or "default")}
    earlier: list[dict[str, Any]] = []
    if os.path.lexists(path / "config.json"):
        earlier = json.loads(files.read_text(path / "config.json")).get("sessions", [])
    sessions = [*earlier, session]
    began = {name: sessions[0][name] for name in ("versions", "device")}
    format = STAGE_FORMAT if "stage" in content else FORMAT
    content = {"format": format} | content | began | {"sessions": sessions}
    signature = trust.sign(content)
    signed = content | ({"signature": signature} if signature else {})
    manifest.write_json(path, "config.json", signed, of=format)


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """Options in JSON's types."""
    return {name: json_value(value) for name, value in options.items()}


def _section(path: Path, name: str) -> dict[str, Any]:
    try:
        section = json.loads(files.read_text(path))[name]
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


def checkpoints_of(run_dir: Path, config: TrainConfig) -> "Checkpoints":
    """The checkpoints of a run; they belong to its configuration, whatever its length."""
    from ppo_jax.runs.checkpoint import Checkpoints

    run_dir = run_dir.absolute()
    return Checkpoints(run_dir / "checkpoints", **identity_of(config), folder=run_dir)
