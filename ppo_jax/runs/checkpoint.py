"""Saving and restoring one TrainState, bit for bit (Orbax, with digests of our own).

Orbax writes a step atomically but keeps no digests: most single flipped bits would come back as
wrong numbers. Each step therefore has a manifest of SHA-256 sums beside it, its own included,
written last; a step without one, or which differs from it, counts as damaged and the one before it
is used.
"""

import hashlib
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ppo_jax.types import PyTree

# Orbax logs what it then raises, too.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class CheckpointError(RuntimeError):
    """Nothing can be restored: where, why, and what to do."""


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
    """

    def __init__(
        self,
        directory: Path,
        identity: dict[str, Any],
        *,
        keep: int = 3,
        defaults: dict[str, Any] | None = None,
        older: tuple[str, ...] = (),
    ) -> None:
        self.directory = Path(directory)
        self.identity = json.loads(json.dumps(identity))
        self.defaults = json.loads(json.dumps(defaults or {}))
        self.keep, self.older = keep, older

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if p.stem.isdigit())

    def best(self) -> int | None:
        """The step with the highest score, the later of equals."""
        scores = {step: self._manifest(step).get("score") for step in self.steps()}
        known = [(score, step) for step, score in scores.items() if score is not None]
        return max(known)[1] if known else None

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Write a checkpoint, then delete those no longer needed.

        Args:
            step: number of updates made.
            state: a TrainState.
            score: what "best" goes by; None if there is nothing to judge by.

        Raises:
            OSError: the disk refused; earlier checkpoints are untouched.
        """
        self.discard(step)
        try:
            self._write(step, state, score)
        except Exception as error:  # a full disk is a ValueError to Orbax
            self.discard(step)
            self.clean()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(reason) from error
        kept = {*self.steps()[-self.keep :], self.best()}
        for old in set(self.steps()) - kept:
            self.discard(old)

    def _write(self, step: int, state: PyTree, score: float | None) -> None:
        with self._manager() as manager:
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(_flatten(state)))
            if not manager.save(step, args=arguments, force=True):
                raise OSError(f"Orbax did not save step {step}")
        manifest = {
            "score": score,
            "identity": self.identity,
            "leaves": _describe(_flatten(state)),
            "files": _digests(self.directory / str(step)),
        }
        path = self.directory / f"{step}.json"
        write_json(path, manifest | {"sha256": _digest_of(manifest)})

    def discard(self, step: int) -> None:
        """Delete a checkpoint, its manifest first so that it never looks complete."""
        delete(self.directory / f"{step}.json")
        delete(self.directory / str(step))

    def orphans(self) -> list[int]:
        """Steps without a manifest, oldest first: of a crash while saving, or deleted by hand."""
        found = {int(p.name) for p in self.directory.glob("*") if p.is_dir() and p.name.isdigit()}
        return sorted(found - set(self.steps()))

    def clean(self, after: int | None = None) -> None:
        """Delete what a crash while saving left behind, and all that is later than `after`."""
        later = [s for s in self.steps() if after is not None and s > after]
        for step in later + self.orphans():
            self.discard(step)
        for temporary in [*self.directory.glob("*-tmp*"), *self.directory.glob(".*.tmp")]:
            delete(temporary)

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

    def _manager(self) -> ocp.CheckpointManager:
        settings = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, create=True)
        return ocp.CheckpointManager(self.directory.absolute(), options=settings)

    def _manifest(self, step: int) -> dict[str, Any]:
        """What was written about a step; {} if that is damaged itself."""
        try:
            manifest = json.loads((self.directory / f"{step}.json").read_text())
            whole = manifest.pop("sha256") == _digest_of(manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return manifest if whole else {}

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
        manifest = self._manifest(step)
        given = {k: v for k, v in manifest["identity"].items() if k not in self.older}
        theirs, ours = self.defaults | given, self.identity
        differing = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
        if differing:
            listed = ", ".join(
                f"{k} ({theirs.get(k)!r} there, {ours.get(k)!r} here)" for k in differing
            )
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is of another configuration: {listed}"
            )
        stored, wanted = manifest["leaves"], _describe(_flatten(example))
        differing = [k for k in sorted({*stored, *wanted}) if stored.get(k) != wanted.get(k)]
        if differing:
            name = differing[0]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} does not fit this program: {name} is "
                f"{stored.get(name)} there and {wanted.get(name)} here "
                f"({len(differing)} of {len(wanted)} arrays differ)"
            )

    def _read(self, step: int, example: PyTree) -> PyTree:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _flatten(example)
        )
        try:
            with self._manager() as manager:
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
                leaves = manager.restore(step, args=arguments)["state"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {error}"
            ) from error
        return jax.tree.unflatten(
            jax.tree.structure(example), [leaves[k] for k in _flatten(example)]
        )


def write_json(path: Path, content: Any) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def delete(path: Path) -> None:
    """A file, a link or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, in the tree's order: readable names in the file, no empty nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _describe(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def _digests(directory: Path) -> dict[str, str]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
