"""Tests of reading folders with damaged bits, bytes and files."""

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
# Files that are not damaged, because they contain no results.
UNREAD = (".lock",)


class Slow(Exception):
    """Reading the folder took too long."""


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
    """The documented errors, which the commands print as one line."""
    from ppo_jax.config import ConfigError
    from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
    from ppo_jax.rlhf.formats import DataError
    from ppo_jax.rlhf.hf_values import ModelError
    from ppo_jax.rlhf.tokenizer import TokenizerError
    from ppo_jax.runs.checkpoint import CheckpointError
    from ppo_jax.runs.job import RunFailed

    return (
        ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment, RunFailed, ModelError,
        TokenizerError, DataError, folders.Refused, folders.Warned,
    )  # fmt: skip


def files_of(path: Path) -> list[Path]:
    """The files in a folder that are damaged, as paths relative to it."""
    found = (p for p in path.rglob("*") if p.is_file() and p.name not in UNREAD)
    return sorted(p.relative_to(path) for p in found)


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in a random way.

    Args:
        path: path of the file.
        rng: random number generator.

    Returns:
        A description of the damage.
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
    """Read a damaged folder with all readers of its kind.

    Args:
        kind: kind of the folder.
        path: path of the folder, which readers may write to.
        expected: digests of the values that readers returned from the undamaged folder.

    Returns:
        (outcome, description): the outcome is "survived", "refused", "wrong" or "traceback".
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
    """Damage folders of each kind many times.

    Args:
        folder: parent of the folders.
        tries: number of damaged folders, over all kinds.
        seed: random seed of the damage.
        until: names of the only kinds to be tested; None for all kinds.
    """
    tallies, rng = [], random.Random(seed)
    kinds = [k for k in folders.KINDS if until is None or k.name in until]
    for k, kind in enumerate(kinds):
        count = tries // len(kinds) + (k < tries % len(kinds))
        tallies.append(_one_kind(kind, folder, count, rng))
    return tallies


def _one_kind(kind: Kind, folder: Path, tries: int, rng: random.Random) -> Tally:
    """Damage the files of one kind of folder in turns, so that each is damaged equally often."""
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
        raise SystemExit(f"error: the undamaged folder of a {kind.name} is {outcome}: {seen}")
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
