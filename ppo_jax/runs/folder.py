"""The folder of a run: its lock, its config.json, its checkpoints, and how it is deleted."""

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

# All files that a run writes. No other file is deleted; in a folder, only files that the run wrote.
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
# Value of "format" in the config.json of a run.
FORMAT = "ppo_jax run"
STAGE_FORMAT = "ppo_jax stage"
UNVERIFIED = re.compile(r"(metrics|samples|summary)\.unverified\d*\.jsonl?")
EVENTS = re.compile(r"events\.out\.tfevents\..+")


class RunDirectory:
    """The folder of one run, locked while it is in use.

    Args:
        path: path of the folder; created if it does not exist.

    Raises:
        ConfigError: the folder contains other files than a run, is not writable, or is in use by
            another process.
    """

    contents: tuple[str, ...] = CONTENTS
    mark = "config.json"  # the file that identifies a folder of this kind
    format = FORMAT  # the value of "format" in that file
    kind = "run"
    parent = "runs"  # folder in which new ones are created

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            str(path).encode()
            path.mkdir(parents=True, exist_ok=True)
            # A config.json alone does not identify a run: Hugging Face models have one, too.
            foreign = sorted(p.name for p in path.iterdir() if not self._is_leftover(p.name))
            if foreign and not self.is_one(path):
                raise ConfigError(
                    f"directory {path.absolute()} is not a {self.kind} and not empty (it contains "
                    f"{foreign[0]}); choose another --run-dir"
                )
            files.refuse_links(path, [".lock", *self.contents])
            self._lock = _open_lock(path / ".lock")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.kind} directory {path} ({error.strerror}); choose a "
                "directory for which you have write permission"
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
        """Whether a file may have been left by a crash before the first complete file."""
        older = {f".{n}.tmp" for n in self.contents}
        return name in {".lock", manifest.NAME, *older} or bool(files.TEMPORARY.fullmatch(name))

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a folder is one of this kind, by its identifying file, or, if that file is
        damaged, by the manifest that lists it."""
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
        """Whether the content is that of an earlier version, which did not write "format"."""
        config = content.get("config")
        known = isinstance(config, dict) and {"env", "algorithm"} <= config.keys()
        kept = isinstance(content.get("run"), dict) or isinstance(content.get("sessions"), list)
        return known and kept and "stage" not in content

    @classmethod
    def opened(cls, options: Any, name: str, describe: Callable[[Path], None]) -> Self:
        """Lock the folder that the options name, and write its description unless it is resumed.

        Args:
            options: options with the fields run_dir, resume and overwrite.
            name: prefix of the name of a new folder in runs/.
            describe: function that writes the identifying file into a folder.

        Raises:
            ConfigError: the folder already contains a run or other files, or is not writable.
        """
        if options.resume is not None:
            if options.run_dir is not None or options.overwrite:
                raise ConfigError(
                    "--resume continues in the same folder: omit --run-dir and --overwrite"
                )
            if not os.path.lexists(options.resume / cls.mark):
                gone = ", which its manifest lists" if manifest.has_one(options.resume) else ""
                raise ConfigError(
                    f"{options.resume} is not a {cls.kind}: it has no {cls.mark}{gone}"
                )
            if not cls.is_one(options.resume):
                raise ConfigError(
                    f"{options.resume} is not a {cls.kind}: its {cls.mark} has another format"
                )
            return cls(options.resume)
        directory = cls(options.run_dir or new_directory(cls.parent, name))
        if directory.used and not options.overwrite:
            path = shlex.quote(str(directory.path))
            raise ConfigError(
                f"{cls.kind} directory {path} already holds a {cls.kind}; continue it with "
                f"--resume {path}, replace it with --overwrite, or choose another --run-dir"
            )
        directory.try_saving()
        directory.clear()
        # Written before compiling, so that a run that is killed while compiling can be resumed.
        describe(directory.path)
        return directory

    def try_saving(self) -> None:
        """Refuse a folder in which checkpoints cannot be written and read back.

        Raises:
            ConfigError: the error of the file system or of Orbax.
        """
        from ppo_jax.runs.checkpoint import Checkpoints

        try:
            Checkpoints(self.path.absolute() / "checkpoints", {}).try_saving()
        except OSError as error:
            raise ConfigError(
                f"checkpoints cannot be stored in {str(self.path)!r} ({error}); choose a --run-dir "
                "with a shorter name that consists of letters and digits"
            ) from error

    @property
    def used(self) -> bool:
        """Whether the folder contains a run."""
        return self.is_one(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def clear(self) -> None:
        """Delete the run; the identifying file last, so that a partial deletion can be repeated."""
        clear(self.path, self.contents, self.mark)


def _open_lock(path: Path) -> Any:
    """Open the lock file, which must be a regular file; nothing is written to it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ConfigError(f"{path} is not a regular file; delete it")
    return file


def clear(path: Path, contents: Sequence[str], mark: str) -> None:
    """Delete the files of a run in a folder, and no others.

    Args:
        path: a folder that is known to contain a run.
        contents: names of its files, and of folders in which the run's files are deleted.
        mark: name of the identifying file, which is deleted last. The manifest is deleted first, so
            that no file is reported as missing after an interruption.
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
    """Delete a run's files in one of its folders, and the folder itself if it is then empty."""
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
    """Files that Weights & Biases wrote for this run: folders with the run's name, and links."""
    try:
        name = json.loads(files.read_text(path / "trackers.json"))["wandb"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    there = [*(path / "wandb").iterdir()]
    links = ("latest-run", "debug.log", "debug-internal.log")
    return [p for p in there if p.name.endswith(f"-{name}") or (p.name in links and p.is_symlink())]


def new_directory(parent: str, name: str) -> Path:
    """A path that does not exist yet, from a name and the current time."""
    name = re.sub(r"[:<>, ]+", "_", name).strip("_")
    name = f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    names = [name, *(f"{name}_{k}" for k in range(2, 1000))]
    return next(path for n in names if not (path := Path(parent) / n).exists())


def read_config(run_dir: Path, given: Given = NOTHING) -> TrainConfig:
    """The configuration of a run.

    Args:
        run_dir: folder of the run.
        given: names and objects that the user gave in addition to the folder, and whether the
            folder is trusted.

    Raises:
        ConfigError: the folder is not a run, its config.json is damaged, or it names code to import
            and was not signed by this user.
    """
    if not os.path.lexists(run_dir / "config.json"):
        gone = ", which its manifest lists" if manifest.has_one(run_dir) else ""
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json{gone}")
    return read_config_file(run_dir / "config.json", given)


def read_config_file(path: Path, given: Given = NOTHING) -> TrainConfig:
    """The configuration in a config.json at any path; otherwise like `read_config`."""
    values = _section(path, "config")
    content = json.loads(files.read_text(path)) | {"config": values}
    trust.check(content, given.named, given.trust, path)
    check_digest(path, content, given)
    return trusted_config(content, given, path)


def check_digest(path: Path, content: dict[str, Any], given: Given) -> None:
    """Refuse a file that differs from its digest; only warn if the user trusts it.

    Args:
        path: path of the file that identifies a run folder.
        content: content of the file; `trust.check` has accepted the names in it.
        given: names and objects that the user gave, as for `read_config`.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        manifest.require(path.parent, path.name)
    except manifest.Damaged as error:
        if not trust.is_trusted(content, given.named, given.trust):
            raise
        warnings.warn(str(error), stacklevel=2)


def trusted_config(content: dict[str, Any], given: Given, path: Path) -> TrainConfig:
    """The configuration in the content of a file, if all code that it names may be imported.

    Args:
        content: content with the key "config", and "signature" if the file is signed.
        given: names and objects that the user gave, as for `read_config`.
        path: path of the file, for messages.

    Raises:
        ConfigError: the file names code and was not signed by this user, or a value is out of its
            range.
    """
    trust.check(content, given.named, given.trust, path)
    for name in configs.CODE:
        text, part = content["config"].get(name), getattr(given, name)
        if isinstance(text, str) and references.is_text(text) and part is not None:
            references.bind(text, part)
    return configs.from_saved(content["config"])


def read_values(run_dir: Path) -> dict[str, Any]:
    """The flat values in the config.json of a run, unparsed; no code is imported."""
    return _section(run_dir / "config.json", "config")


def check_callbacks(run_dir: Path, given: Given, names: Sequence[str]) -> None:
    """Refuse the callbacks of a run from another user, unless they are named again or trusted.

    Raises:
        ConfigError: the names of the callbacks, and how to allow them.
    """
    path = run_dir / "config.json"
    content = json.loads(files.read_text(path))
    if {*names} & {*trust.callbacks_of(content)}:
        trust.check(content, given.named, given.trust, path, callbacks=True)


def read_run_options(run_dir: Path) -> dict[str, Any]:
    """The run options that a run was started with, which apply unless others are given."""
    return plain(_section(run_dir / "config.json", "run"), run_dir / "config.json")


def plain(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check options that were read from a run: each must be a value or a list of values.

    Raises:
        ConfigError: an option has a value that no run writes.
    """
    for name, value in options.items():
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in items):
            raise ConfigError(f"{path} is damaged: {name} is {value!r}")
    return options


def write_config(config: TrainConfig, run_options: dict[str, Any], run_dir: Path) -> None:
    """Write config.json, which contains everything needed to repeat the run."""
    content = {"config": configs.to_json(config), "run": shown(run_options)}
    write_description(run_dir, content, config.matmul_precision)


def write_description(path: Path, content: dict[str, Any], precision: str | None) -> None:
    """Write config.json: the configuration, and one entry for each session of the run.

    The versions and the device at the top level are those of the first session; every entry also
    has its own.
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
    """Convert options to JSON types."""
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
    """The arguments `identity` and `defaults` of `Checkpoints`, which exclude the run's length."""
    found = {
        "identity": configs.to_json(config),
        "defaults": configs.to_json(TrainConfig(algorithm=config.algorithm)) | configs.BEFORE,
    }
    for values in found.values():
        for may_change in ("total_timesteps", "anneal_timesteps"):
            values.pop(may_change, None)
    return found


def checkpoints_of(run_dir: Path, config: TrainConfig) -> "Checkpoints":
    """The checkpoints of a run; they are valid for its configuration with any length."""
    from ppo_jax.runs.checkpoint import Checkpoints

    run_dir = run_dir.absolute()
    return Checkpoints(run_dir / "checkpoints", **identity_of(config), folder=run_dir)
