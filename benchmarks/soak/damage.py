"""Damaged bits, bytes and files in folders of every kind."""

import contextlib
import io
import random
import shutil
import signal
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.soak import folders
from benchmarks.soak.folders import Kind
from benchmarks.soak.outcome import Tally, digest

SECONDS = 60
DAMAGES = {"a bit": 0.45, "a byte": 0.25, "cut": 0.1, "emptied": 0.1, "deleted": 0.1}
# Files that are made anew from the others, or say nothing of a run.
UNREAD = (".lock",)


class Slow(Exception):
    """No answer in time."""


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def documented() -> tuple[type[BaseException], ...]:
    """The errors that are one line for a person."""
    from ppo_jax.config import ConfigError
    from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
    from ppo_jax.rlhf.formats import DataError
    from ppo_jax.rlhf.hf_io import ModelError
    from ppo_jax.rlhf.tokenizer import TokenizerError
    from ppo_jax.runs.checkpoint import CheckpointError
    from ppo_jax.runs.job import RunFailed

    return (
        ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment, RunFailed, ModelError,
        TokenizerError, DataError, folders.Refused, folders.Warned,
    )  # fmt: skip


def files_of(path: Path) -> list[Path]:
    """All files of a folder, relative to it."""
    found = (p for p in path.rglob("*") if p.is_file() and p.name not in UNREAD)
    return sorted(p.relative_to(path) for p in found)


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file.

    Args:
        path: of the file.
        rng: of the damage.

    Returns:
        What was done.
    """
    content, how = bytearray(path.read_bytes()), rng.choices([*DAMAGES], [*DAMAGES.values()])[0]
    if how == "deleted" or not content:
        path.unlink()
        return "deleted"
    place = rng.randrange(len(content))
    if how == "a bit":
        bit = rng.randrange(8)
        content[place] ^= 1 << bit
        how = f"bit {bit} of byte {place}"
    elif how == "a byte":
        content[place] ^= rng.randrange(1, 256)
        how = f"byte {place}"
    else:
        content = content[:place] if how == "cut" else bytearray()
        how = f"{how} to {len(content)} bytes"
    path.write_bytes(content)
    return how


def outcome_of(kind: Kind, path: Path, expected: dict[str, str]) -> tuple[str, str]:
    """(outcome, what was seen) of reading a damaged folder in every way.

    Args:
        kind: of the folder.
        path: the folder, which may be written to.
        expected: digests of the folder as it was.
    """
    refused = wrong = ""
    for name, reader in kind.readers.items():
        printed = io.StringIO()
        try:
            with (
                _limit(SECONDS),
                warnings.catch_warnings(record=True) as spoken,
                contextlib.redirect_stderr(printed),
            ):
                warnings.simplefilter("always")
                found = digest(reader(path))
        except documented() as error:
            refused = refused or f"{name}: {error}"
            continue
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return "traceback", f"{name}: {error!r} in {Path(where.filename).name}:{where.lineno}"
        if found == expected[name]:
            continue
        if spoken or printed.getvalue():
            refused = refused or f"{name}: {spoken[0].message if spoken else printed.getvalue()}"
        else:
            wrong = wrong or f"{name} returns something else"
    if wrong:
        return "wrong", wrong
    return ("refused", refused) if refused else ("survived", "")


def run(folder: Path, tries: int, seed: int, until: Any = None) -> list[Tally]:
    """Damage each kind of folder so many times.

    Args:
        folder: for the folders.
        tries: of all kinds together.
        seed: of the damages.
        until: names of kinds; None: all.
    """
    tallies, rng = [], random.Random(seed)
    kinds = [k for k in folders.KINDS if until is None or k.name in until]
    for k, kind in enumerate(kinds):
        count = tries // len(kinds) + (k < tries % len(kinds))
        tallies.append(_one_kind(kind, folder, count, rng))
    return tallies


def _one_kind(kind: Kind, folder: Path, tries: int, rng: random.Random) -> Tally:
    """Every file has its turn, so that large ones do not take all of the damage."""
    path, whole = folder / kind.name, folder / f"{kind.name}_whole"
    kind.make(path)
    tally = Tally(f"damage in the folder of a {kind.name}")
    shutil.copytree(path, whole)
    with warnings.catch_warnings(action="ignore"):
        expected = folders.digests(kind, path)
    shutil.rmtree(path)
    shutil.copytree(whole, path)
    outcome, seen = outcome_of(kind, path, expected)
    if outcome != "survived":
        raise SystemExit(f"error: the whole folder of a {kind.name} is {outcome}: {seen}")
    names: list[Path] = []
    for _ in range(tries):
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        names = names or rng.sample(files_of(whole), len(files_of(whole)))
        name = names.pop()
        done = damage(path / name, rng)
        outcome, seen = outcome_of(kind, path, expected)
        tally.count(outcome, f"{name}, {done}: {seen}")
    return tally.done()
