"""Saving and restoring a TrainState bit for bit (Orbax, with additional digests).

Orbax writes a step atomically but stores no digests, so that most single flipped bits would be read
back as wrong numbers. Each step therefore has a manifest STEP.json beside it with the SHA-256
digests of its files and of the manifest itself. The manifest is written last, after the step has
been read back from the disk. A step without a manifest, or with files that differ from it, is
damaged, and the previous step is used instead.

The file `.STEP.saving` exists while a step is being written or deleted. If a step has neither this
file nor a manifest, it was not left by a crash: the manifest was deleted later, or another program
wrote the folder. Such a step is never deleted.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ppo_jax.runs import files, manifest
from ppo_jax.runs.failures import CheckpointError as CheckpointError
from ppo_jax.runs.files import delete, write_json
from ppo_jax.types import PyTree

# Orbax also logs the errors that it raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# States up to this size are compared with what is read back. For larger states, which would need
# twice their memory, only the structure and the digests are checked.
COMPARED_BYTES = 2**26
# Orbax interprets some characters in a path as a pattern and then cannot read the path again.
PLAIN_PATH = re.compile(r"[\w./=,@:+~ -]+", re.ASCII)
LONGEST_PATH = 1000
# The metrics of the last rollout are part of a state, but no update reads them: those that older
# checkpoints lack are restored as 0.
METRIC = ".rollout.metrics["
# Other files that this module writes among the checkpoints, besides STEP/ and STEP.json.
SAVING = re.compile(r"\.(\d+)\.saving")
LEFTOVER = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?|\.\d+\.json\.tmp")
UNVERIFIED = re.compile(r"\d+\.unverified\d*(\.json)?")


class Checkpoints:
    """The checkpoints of one run: the most recent ones and the best one.

    Args:
        directory: folder of the checkpoints, an absolute path; created by the first save.
        identity: JSON value that a checkpoint must share with the run that restores it
            (environment, algorithm, network); other checkpoints are refused with a message.
        keep: number of most recent checkpoints to keep, in addition to the best.
        defaults: values for parts of the identity that older checkpoints lack, because the option
            did not exist when they were written.
        older: names of parts of the identity that only older checkpoints have, which are ignored.
        folder: folder whose manifest lists the checkpoints; None if there is no such manifest.
    """

    def __init__(
        self,
        directory: Path,
        identity: dict[str, Any],
        *,
        keep: int = 3,
        defaults: dict[str, Any] | None = None,
        older: tuple[str, ...] = (),
        folder: Path | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.identity = json.loads(json.dumps(identity))
        self.defaults = json.loads(json.dumps(defaults or {}))
        self.keep, self.older, self.folder = keep, older, folder

    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, oldest first."""
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if _is_step(p.stem))

    def latest(self) -> int | None:
        """Number of the latest checkpoint whose files are valid; None if there is none."""
        return next((step for step in self.steps()[::-1] if self._damage(step) is None), None)

    def best(self) -> int | None:
        """The step with the highest score (the latest of equal scores); None without scores."""
        scores = {step: self.score(step) for step in self.steps()}
        known = [(score, step) for step, score in scores.items() if score is not None]
        return max(known)[1] if known else None

    def score(self, step: int) -> float | None:
        """The score that a checkpoint was saved with; None if it has none."""
        found = self._manifest(step).get("score")
        return None if found is None else float(found)

    def save(self, step: int, state: PyTree, score: float | None = None, notes: Any = None) -> None:
        """Write a checkpoint, verify it, then delete those that are no longer needed.

        Args:
            step: number of updates made.
            state: the state to save, a TrainState.
            score: number by which the best checkpoint is chosen; None if there is no score.
            notes: JSON value to store in the manifest.

        Raises:
            OSError: the checkpoint cannot be written or differs when read back; earlier checkpoints
                are unchanged.
        """
        if not self.directory.parent.is_dir():
            raise OSError(f"the folder {self.directory.parent} does not exist any more")
        self._make_room(step)
        try:
            self._write(step, state, {"score": score} | ({"notes": notes} if notes else {}))
        except Exception as error:  # Orbax raises ValueError if the disk is full
            _ignore_late_writes()
            self.discard(step)
            self.clean()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(reason) from error
        kept = {*self.steps()[-self.keep :], self.best()}
        for old in set(self.steps()) - kept:
            self.discard(old)

    def _make_room(self, step: int) -> None:
        """Delete an earlier checkpoint of this step; rename files that this run did not write."""
        if self._is_foreign(step):
            kept = files.aside(self.directory / str(step))
            warnings.warn(
                f"{self.directory / str(step)} occupies the place of checkpoint {step} and has no "
                f"manifest; it is kept as {kept.name}",
                stacklevel=3,
            )
            (self.directory / str(step)).rename(kept)
        self.discard(step)

    def _is_foreign(self, step: int) -> bool:
        """Whether a path has the name of a step but was not written by this class."""
        there = os.path.lexists(self.directory / str(step))
        return there and step not in self.steps() and not self._saving(step).exists()

    def _write(self, step: int, state: PyTree, about: dict[str, Any]) -> None:
        self.directory.mkdir(exist_ok=True)
        self._announce(step)
        with self._manager() as manager:
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(_stored(state)))
            if not manager.save(step, args=arguments, force=True):
                raise OSError(f"Orbax did not save step {step}")
            found = _digests(self.directory / str(step), sync=True)
            self._read_back(step, state, manager)
        leaves = _describe(_flatten(state))
        content = about | {"identity": self.identity, "leaves": leaves, "files": found}
        content["sha256"] = _digest_of(content)
        if self.folder is not None:
            text = files.json_bytes(content)
            entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            manifest.note(self.folder, {self._listed(step): entry})
        write_json(self.directory / f"{step}.json", content)
        delete(self._saving(step))

    def _read_back(self, step: int, state: PyTree, manager: ocp.CheckpointManager) -> None:
        """Verify that a checkpoint can be read back unchanged.

        Raises:
            OSError: the first array that differs.
        """
        wanted, wrong = _stored(state), list[str]()
        if sum(x.size * x.dtype.itemsize for x in wanted.values()) <= COMPARED_BYTES:
            again = _flatten(self._read(step, state, manager))
            wrong = [name for name, x in wanted.items() if not _same(x, again[name])]
        else:
            with (
                _alone(),
                _plain_path(self.directory.absolute()) as path,
                ocp.StandardCheckpointer() as orbax,
            ):
                found = orbax.metadata(path / str(step) / "state").item_metadata.tree
            wrong = [n for n, x in wanted.items() if n not in found or found[n].shape != x.shape]
        if wrong:
            raise OSError(f"the checkpoint differs from the saved state when read back: {wrong[0]}")

    def try_saving(self) -> None:
        """Save and read a small test checkpoint before training, if the path is unusual.

        Raises:
            OSError: checkpoints cannot be saved in this folder.
        """
        path = str(self.directory.absolute())
        if not PLAIN_PATH.fullmatch(path) or len(os.fsencode(path)) > LONGEST_PATH:
            made = not self.directory.exists()
            trial = Checkpoints(self.directory, {})
            step = max([0, *(int(p.stem) for p in self.directory.glob("*") if _is_step(p.stem))])
            trial.keep = len(trial.steps()) + 1
            trial.save(step + 1, {"x": jnp.zeros(1)})
            trial.discard(step + 1)
            if made:
                self.directory.rmdir()

    def discard(self, step: int) -> None:
        """Delete a checkpoint, its manifest first, so that a partial deletion is never valid.

        A step that was not left by a crash and has no valid manifest is renamed instead, because
        another program may have written it.
        """
        saving = self._saving(step)
        if not os.path.lexists(saving) and not self._manifest(step):
            return self._set_aside(step) if step in self.steps() else None
        self._drop(step)
        with contextlib.suppress(OSError):  # a full disk
            self._announce(step)
        delete(self.directory / f"{step}.json")
        delete(self.directory / str(step))
        delete(saving)
        return None

    def orphans(self) -> list[int]:
        """Checkpoints without a manifest, oldest first, except those of a crash while saving."""
        found = {int(p.name) for p in self.directory.glob("*") if _is_step(p.name)}
        whole = {s for s in found if self._is_orbax(s)}
        saving = {s for s in whole if os.path.lexists(self._saving(s))}
        return sorted(whole - saving - set(self.steps()))

    def clean(self, after: int | None = None) -> None:
        """Delete the remains of a crash while saving; rename checkpoints later than `after`.

        Later checkpoints are damaged. No other file is changed.
        """
        for step in [s for s in self.steps() if after is not None and s > after]:
            self._set_aside(step)
        there = [*self.directory.glob("*"), *self.directory.glob(".*")]
        for path in there:
            unfinished = SAVING.fullmatch(path.name)
            if unfinished and int(unfinished[1]) in self.steps():
                delete(path)  # the process ended after writing the manifest
            elif unfinished:
                self.discard(int(unfinished[1]))
            elif LEFTOVER.fullmatch(path.name) or files.TEMPORARY.fullmatch(path.name):
                delete(path)

    def clear(self) -> None:
        """Delete all checkpoints of the run and no other files."""
        self.clean()
        for step in self.steps():
            if self._manifest(step) or self._is_orbax(step):
                self._announce(step)
                self.discard(step)
        for step in self.orphans():
            delete(self.directory / str(step))
        for path in self.directory.glob("*.unverified*"):
            if UNVERIFIED.fullmatch(path.name):
                delete(path)
        files.remove_empty(self.directory)

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that it is kept but not used."""
        self._drop(step)
        for path in (self.directory / f"{step}.json", self.directory / str(step)):
            if os.path.lexists(path):
                path.rename(files.aside(path))

    def _drop(self, step: int) -> None:
        """Remove a checkpoint from the manifest of the folder."""
        if self.folder is not None:
            with contextlib.suppress(OSError):  # a full disk
                manifest.note(self.folder, drop=[self._listed(step)])

    def _is_orbax(self, step: int) -> bool:
        """Whether the folder with the name of a step was written by Orbax."""
        return (self.directory / str(step) / "_CHECKPOINT_METADATA").is_file()

    def _announce(self, step: int) -> None:
        """Create the file that identifies a step as being written or deleted."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._saving(step), os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def _saving(self, step: int) -> Path:
        return self.directory / f".{step}.saving"

    def _listed(self, step: int) -> str:
        """The name under which the folder's manifest lists a checkpoint."""
        return f"{self.directory.name}/{step}.json"

    def notes(self, step: int) -> Any:
        """The notes stored with a checkpoint; None if there are none."""
        return self._manifest(step).get("notes")

    def restore(self, example: PyTree, step: int | None = None) -> tuple[int, PyTree]:
        """Restore the latest valid checkpoint, or a given one.

        Args:
            example: a TrainState of the same configuration, or its shapes (`jax.eval_shape`). A
                shape with a sharding is restored directly into the shards.
            step: number of the checkpoint, which must be valid; None for the latest valid one.

        Returns:
            (step, state)

        Raises:
            CheckpointError: there is no checkpoint, all are damaged, or they belong to a different
                configuration.
        """
        candidates = self.steps()[::-1] if step is None else [step]
        if files.leads_out(self.directory, self.directory.parent):
            raise CheckpointError(
                f"{self.directory} is a link that leads out of its folder, and is not followed"
            )
        if step is None:
            self._warn_of_orphans(candidates)
        if not candidates:
            raise CheckpointError(f"no checkpoint in {self.directory}")
        problems = []
        for candidate in candidates:
            damage = self._damage(candidate)
            if damage is None:
                self._check_identity(candidate, example)
                return candidate, self._read(candidate, example)
            problems.append(f"checkpoint {candidate}: {damage}")
            if step is None:
                warnings.warn(f"{problems[-1]}; trying the previous one", stacklevel=2)
        raise CheckpointError(
            f"no checkpoint in {self.directory} can be restored: {'; '.join(problems)}. "
            "Copy the directory back from a backup, or start again with --overwrite"
        )

    def _warn_of_orphans(self, steps: list[int]) -> None:
        """Warn of later checkpoints that cannot be used because their manifest is missing."""
        for orphan in (s for s in self.orphans() if s > max(steps, default=0)):
            older = f"checkpoint {steps[0]} is used" if steps else "there is no other"
            warnings.warn(
                f"{self.directory / f'{orphan}.json'} is missing, so that checkpoint {orphan} "
                f"cannot be verified: {older}. To use the later checkpoint, which is not deleted, "
                "copy that file back from a backup",
                stacklevel=3,
            )

    @contextlib.contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        """Orbax's checkpoint manager for the directory, with a path that Orbax can read."""
        settings = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, create=True)
        with (
            _alone(),
            _plain_path(self.directory.absolute()) as path,
            ocp.CheckpointManager(path, options=settings) as manager,
        ):
            yield manager

    def _manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a step; {} if it is missing or damaged."""
        try:
            content = json.loads(files.read_text(self.directory / f"{step}.json"))
            whole = content.pop("sha256") == _digest_of(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        return content if whole else {}

    def _damage(self, step: int) -> str | None:
        """A description of the damage to a step's files; None if there is no damage."""
        expected = self._manifest(step).get("files")
        if expected is None:
            return "its manifest is damaged"
        found = _digests(self.directory / str(step))
        wrong = sorted(n for n in expected if found.get(n) != expected[n])
        if not wrong:
            return None
        return f"{len(wrong)} of {len(expected)} files missing or damaged ({wrong[0]})"

    def _check_identity(self, step: int, example: PyTree) -> None:
        about = self._manifest(step)
        given = {k: v for k, v in about["identity"].items() if k not in self.older}
        theirs, ours = self.defaults | given, self.identity
        differing = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
        if differing:
            listed = ", ".join(
                f"{k} ({theirs.get(k)!r} there, {ours.get(k)!r} here)" for k in differing
            )
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is from a different configuration: {listed}"
            )
        stored, wanted = about["leaves"], _describe(_flatten(example))
        wanted = {k: x for k, x in wanted.items() if k in stored or METRIC not in k}
        differing = [k for k in sorted({*stored, *wanted}) if stored.get(k) != wanted.get(k)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} does not fit this program: {name} is "
                f"{stored.get(name)} there and {wanted.get(name)} here "
                f"({len(differing)} of {len(wanted)} arrays differ)"
            )

    def _read(
        self, step: int, example: PyTree, manager: ocp.CheckpointManager | None = None
    ) -> PyTree:
        stored = self._manifest(step)
        wanted = {k: _target(x) for k, x in _flatten(example).items()}
        target = {
            k: x for k, x in wanted.items() if x.size and (METRIC not in k or _has(stored, k))
        }
        try:
            with contextlib.nullcontext(manager) if manager else self._manager() as orbax:
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                leaves = orbax.restore(step, args=arguments)["state"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {error}"
            ) from error
        absent = {k: x for k, x in wanted.items() if k not in target}
        leaves |= {k: jnp.zeros(x.shape, x.dtype, device=x.sharding) for k, x in absent.items()}
        return jax.tree.unflatten(jax.tree.structure(example), [leaves[k] for k in wanted])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Make Orbax treat this process as the only one within the block.

    If there are several processes, one of them saves the whole state from a single device. Orbax
    would instead use all processes, each with its part of the arrays: the others would have to wait
    for the disk, and checkpoints would have a different format.
    """
    if jax.process_count() == 1:
        yield
        return
    kept = jax.process_count, jax.process_index
    jax.process_count, jax.process_index = (lambda *_: 1), (lambda *_: 0)
    try:
        yield
    finally:
        jax.process_count, jax.process_index = kept


@contextlib.contextmanager
def _plain_path(path: Path) -> Iterator[Path]:
    """A path that Orbax can read: the path itself, or a link to it from a temporary folder."""
    if PLAIN_PATH.fullmatch(str(path)):
        yield path
        return
    path.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ppo_jax-") as folder:
        link = Path(folder) / "checkpoints"
        link.symlink_to(path, target_is_directory=True)
        yield link


def _ignore_late_writes() -> None:
    """Suppress messages about the remaining writes of a failed save.

    The save itself reports the failure. Writes that end after Orbax has closed its event loop, or
    that also find the disk full, cannot report theirs, and Python prints a traceback for each,
    through the unraisable hook or the asyncio log.
    """
    if getattr(sys.unraisablehook, "func", None) is not _tell:
        sys.unraisablehook = functools.partial(_tell, sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(_is_no_late_write)  # adding it again has no effect


def _tell(hook: Callable[[Any], Any], about: Any) -> None:
    if not _is_late_write(about.exc_value):
        hook(about)


def _is_no_late_write(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _is_late_write(record.exc_info[1]))


def _is_late_write(error: BaseException | None) -> bool:
    closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return closed or full or "No space left on device" in str(error)  # TensorStore's ValueError


def _is_step(name: str) -> bool:
    """Whether a name is a step number as this module writes it."""
    return name.isascii() and name.isdecimal()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, in the tree's order, so that arrays have readable names in the file."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _stored(tree: PyTree) -> dict[str, Any]:
    """The leaves that Orbax writes: it refuses arrays without elements, whose shape is enough."""
    return {name: leaf for name, leaf in _flatten(tree).items() if leaf.size}


def _has(manifest: dict[str, Any], name: str) -> bool:
    """Whether a checkpoint has an array; one whose manifest is not written yet has all of them."""
    return name in manifest.get("leaves", {name})


def _describe(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def _target(x: Any) -> jax.ShapeDtypeStruct:
    """The array to restore: on the devices that its shape names, otherwise on the first one."""
    where = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else None
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where or first)


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same bits."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _digests(directory: Path, sync: bool = False) -> dict[str, str]:
    """SHA-256 digests of all regular files in a directory; `sync` first writes them to the disk."""
    found: dict[str, str] = {}
    if directory.is_symlink():
        return found
    for folder, _, names in os.walk(directory):
        for path in (Path(folder) / name for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                if sync:
                    os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(directory))] = digest
        if sync:
            files.sync_directory(Path(folder))
    return found
