"""Saving and restoring one TrainState, bit for bit (Orbax, with digests of our own).

Orbax writes a step atomically but keeps no digests: most single flipped bits would come back as
wrong numbers. Each step therefore has a manifest of SHA-256 sums beside it, its own included,
written last, after the step was read back from the disk; a step without one, or which differs from
it, counts as damaged and the one before it is used.

While a step is written or deleted a file `.STEP.saving` says so. Without it, a step that has no
manifest is not what a crash left: somebody deleted the manifest, or the folder is somebody else's.
Such a step is never deleted.
"""

import contextlib
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

# Orbax logs what it then raises, too.
logging.getLogger("absl").setLevel(logging.CRITICAL)
# States up to this size are compared with what is read back; of larger ones, which would need their
# memory twice, the structure and the digests are.
COMPARED_BYTES = 2**26
# Orbax takes some characters of a path for a pattern and cannot read what it wrote there.
PLAIN_PATH = re.compile(r"[\w./=,@:+~ -]+", re.ASCII)
LONGEST_PATH = 1000
# What else is ours among the checkpoints, besides STEP/ and STEP.json.
SAVING = re.compile(r"\.(\d+)\.saving")
LEFTOVER = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?|\.\d+\.json\.tmp")
UNVERIFIED = re.compile(r"\d+\.unverified\d*(\.json)?")


class Checkpoints:
    """The checkpoints of one run: the last few and the best.

    Args:
        directory: absolute; created when something is saved.
        identity: JSON that a checkpoint must share with the run that restores it (environment,
            algorithm, network), so that one from elsewhere is refused by name.
        keep: how many of the latest to keep, beside the best.
        defaults: what a checkpoint was made with that says nothing of it, because the option is
            younger than the checkpoint.
        older: names of an identity that checkpoints have no longer, and that do not count.
        folder: whose manifest lists the checkpoints; None: none does.
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
        """Complete checkpoints, oldest first."""
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if _is_step(p.stem))

    def best(self) -> int | None:
        """The step with the highest score, the later of equals."""
        scores = {step: self._manifest(step).get("score") for step in self.steps()}
        known = [(score, step) for step, score in scores.items() if score is not None]
        return max(known)[1] if known else None

    def save(self, step: int, state: PyTree, score: float | None = None, notes: Any = None) -> None:
        """Write a checkpoint, read it back, then delete those no longer needed.

        Args:
            step: number of updates made.
            state: a TrainState.
            score: what "best" goes by; None if there is nothing to judge by.
            notes: JSON to keep with it.

        Raises:
            OSError: the disk refused, or gave back something else; earlier checkpoints are
                untouched.
        """
        if not self.directory.parent.is_dir():
            raise OSError(f"the folder {self.directory.parent} is gone")
        self._make_room(step)
        try:
            self._write(step, state, {"score": score} | ({"notes": notes} if notes else {}))
        except Exception as error:  # a full disk is a ValueError to Orbax
            _ignore_late_writes()
            self.discard(step)
            self.clean()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(reason) from error
        kept = {*self.steps()[-self.keep :], self.best()}
        for old in set(self.steps()) - kept:
            self.discard(old)

    def _make_room(self, step: int) -> None:
        """Nothing is left of an earlier checkpoint of this step; what is not ours is moved."""
        if self._is_foreign(step):
            kept = files.aside(self.directory / str(step))
            warnings.warn(
                f"{self.directory / str(step)} is in the way of checkpoint {step} and has no "
                f"manifest; it is kept as {kept.name}",
                stacklevel=3,
            )
            (self.directory / str(step)).rename(kept)
        self.discard(step)

    def _is_foreign(self, step: int) -> bool:
        """Whether something has the name of a step that is neither a checkpoint nor half of one."""
        there = os.path.lexists(self.directory / str(step))
        return there and step not in self.steps() and not self._saving(step).exists()

    def _write(self, step: int, state: PyTree, about: dict[str, Any]) -> None:
        self.directory.mkdir(exist_ok=True)
        self._announce(step)
        with self._manager() as manager:
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(_flatten(state)))
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
        """Refuse a checkpoint that does not come back as it was.

        Raises:
            OSError: what differs.
        """
        wanted, wrong = _flatten(state), list[str]()
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
            raise OSError(f"the checkpoint came back otherwise than it was written: {wrong[0]}")

    def rehearse(self) -> None:
        """Save and read something small where the path is unusual, before anything is trained.

        Raises:
            OSError: nothing can be saved there.
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
        """Delete a checkpoint, its manifest first so that it never looks complete.

        What was not left by a crash and has no whole manifest is set aside: it need not be ours.
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
        """Checkpoints whose manifest is gone, oldest first; not those of a crash while saving."""
        found = {int(p.name) for p in self.directory.glob("*") if _is_step(p.name)}
        whole = {s for s in found if self._is_orbax(s)}
        saving = {s for s in whole if os.path.lexists(self._saving(s))}
        return sorted(whole - saving - set(self.steps()))

    def clean(self, after: int | None = None) -> None:
        """Delete what a crash while saving left behind; move aside what is later than `after`,
        which is damaged. Nothing else is touched."""
        for step in [s for s in self.steps() if after is not None and s > after]:
            self._set_aside(step)
        there = [*self.directory.glob("*"), *self.directory.glob(".*")]
        for path in there:
            unfinished = SAVING.fullmatch(path.name)
            if unfinished and int(unfinished[1]) in self.steps():
                delete(path)  # killed between the manifest and this
            elif unfinished:
                self.discard(int(unfinished[1]))
            elif LEFTOVER.fullmatch(path.name) or files.TEMPORARY.fullmatch(path.name):
                delete(path)

    def clear(self) -> None:
        """Delete all checkpoints of the run; what is not ours stays."""
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
        """Take a damaged checkpoint out of the count, and keep it."""
        self._drop(step)
        for path in (self.directory / f"{step}.json", self.directory / str(step)):
            if os.path.lexists(path):
                path.rename(files.aside(path))

    def _drop(self, step: int) -> None:
        """The folder's manifest lists a checkpoint no more."""
        if self.folder is not None:
            with contextlib.suppress(OSError):  # a full disk
                manifest.note(self.folder, drop=[self._listed(step)])

    def _is_orbax(self, step: int) -> bool:
        """Whether Orbax wrote what has the name of a step."""
        return (self.directory / str(step) / "_CHECKPOINT_METADATA").is_file()

    def _announce(self, step: int) -> None:
        """Say that a step without a manifest is our doing, until that file is deleted."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._saving(step), os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    def _saving(self, step: int) -> Path:
        return self.directory / f".{step}.saving"

    def _listed(self, step: int) -> str:
        """The name of a checkpoint in the manifest of its folder."""
        return f"{self.directory.name}/{step}.json"

    def notes(self, step: int) -> Any:
        """What was kept with a checkpoint; None if nothing was."""
        return self._manifest(step).get("notes")

    def restore(self, example: PyTree, step: int | None = None) -> tuple[int, PyTree]:
        """The latest checkpoint that is whole, or a given one.

        Args:
            example: a TrainState of the same configuration, or its shapes (`jax.eval_shape`).
            step: a particular step; damage is then an error.

        Returns:
            (step, state)

        Raises:
            CheckpointError: there is none, all are damaged, or they are another run's.
        """
        candidates = self.steps()[::-1] if step is None else [step]
        if files.leads_out(self.directory, self.directory.parent):
            raise CheckpointError(f"{self.directory} is a link out of its folder: not followed")
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
                warnings.warn(f"{problems[-1]}; trying the one before", stacklevel=2)
        raise CheckpointError(
            f"nothing to restore in {self.directory}: {'; '.join(problems)}. "
            "Copy the directory back from a backup, or start again with --overwrite"
        )

    def _warn_of_orphans(self, steps: list[int]) -> None:
        """Say that a later checkpoint cannot be used."""
        for orphan in (s for s in self.orphans() if s > max(steps, default=0)):
            older = f"checkpoint {steps[0]} is used" if steps else "there is no other"
            warnings.warn(
                f"{self.directory / f'{orphan}.json'} is gone, so that checkpoint {orphan} cannot "
                f"be verified: {older}. Copy that file back from a backup to use the later one, "
                "which is not deleted",
                stacklevel=3,
            )

    @contextlib.contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        """Orbax's manager of the directory, by a path that it can read."""
        settings = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, create=True)
        with (
            _alone(),
            _plain_path(self.directory.absolute()) as path,
            ocp.CheckpointManager(path, options=settings) as manager,
        ):
            yield manager

    def _manifest(self, step: int) -> dict[str, Any]:
        """What was written about a step; {} if that is damaged itself."""
        try:
            content = json.loads(files.read_text(self.directory / f"{step}.json"))
            whole = content.pop("sha256") == _digest_of(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        return content if whole else {}

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None."""
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
                f"checkpoint {step} in {self.directory} is of another configuration: {listed}"
            )
        stored, wanted = about["leaves"], _describe(_flatten(example))
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
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _flatten(example)
        )
        try:
            with contextlib.nullcontext(manager) if manager else self._manager() as orbax:
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                leaves = orbax.restore(step, args=arguments)["state"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {error}"
            ) from error
        return jax.tree.unflatten(
            jax.tree.structure(example), [leaves[k] for k in _flatten(example)]
        )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Orbax takes this process for the only one during a block.

    Of several processes one saves, with the whole state on a device of its own. Orbax has all of
    them take part, with arrays that each has a part of: the others would have to wait for the disk,
    and a checkpoint would look different.
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
    """A path without the characters that Orbax takes for a pattern: where it has some, a link that
    leads to it from a temporary folder."""
    if PLAIN_PATH.fullmatch(str(path)):
        yield path
        return
    path.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ppo_jax-") as folder:
        link = Path(folder) / "checkpoints"
        link.symlink_to(path, target_is_directory=True)
        yield link


def _ignore_late_writes() -> None:
    """Nothing more is printed of a save that failed.

    Writes that end after Orbax has closed its event loop have nobody to tell, and Python prints a
    traceback of each, by either of two ways.
    """
    if getattr(sys.unraisablehook, "func", None) is not _tell:
        sys.unraisablehook = functools.partial(_tell, sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(_is_no_late_write)  # added twice it is there once


def _tell(hook: Callable[[Any], Any], about: Any) -> None:
    if not _is_closed_loop(about.exc_value):
        hook(about)


def _is_no_late_write(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _is_closed_loop(record.exc_info[1]))


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _is_step(name: str) -> bool:
    """Whether a name is a number as we write it."""
    return name.isascii() and name.isdecimal()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, in the tree's order: readable names in the file, no empty nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _describe(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same bits."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _digests(directory: Path, sync: bool = False) -> dict[str, str]:
    """SHA-256 of each regular file in a directory; with `sync` they are on the disk before."""
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
