"""manifest.json: the digest of each file in a folder, so that damage is found and named.

A file and its digest are two writes, and the process may die between them. The digest goes first:
for that moment the manifest holds the file's new and its earlier content (or that there was none),
and either is whole. The next write of the manifest drops the earlier one.

A file that grows is known by a part of it: so many bytes from its beginning.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ppo_jax.config import ConfigError
from ppo_jax.runs import files

NAME = "manifest.json"
FORMAT = "ppo_jax manifest"
# What may be deleted without a word: it is made of the rest.
FIGURES = (".png", ".pdf", ".svg", ".html", ".csv", ".md", ".tex")

DAMAGED = (
    "{} is damaged, so that the files beside it cannot be verified; copy it back from a backup, or "
    "delete it to use them as they are"
)

# {"bytes": length, "sha256": digest of these bytes}; with "grows" more may follow.
Entry = dict[str, Any]


class Damaged(ConfigError):
    """A file differs from its digest: which, and what to do."""


def read(folder: Path) -> dict[str, Entry]:
    """Name -> entry; nothing where there is no manifest of this program.

    Raises:
        Damaged: the manifest itself is damaged.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(files.read_text(path))
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and {"format", "files", "sha256"} - content.keys():
        return {}  # somebody else's
    if not isinstance(content, dict) or content.pop("sha256") != _digest_of(content):
        raise Damaged(DAMAGED.format(path))
    entries = content["files"]
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise Damaged(DAMAGED.format(path))
    return entries


def has_one(folder: Path) -> bool:
    """Whether there is a manifest of this program, damaged or not."""
    try:
        return bool(read(folder))
    except Damaged:
        return True


@contextlib.contextmanager
def replacing(
    folder: Path,
    name: str,
    *,
    grows: bool = False,
    grown: dict[str, Entry] | None = None,
    of: str | None = None,
) -> Iterator[BinaryIO]:
    """As `files.replacing`, with the digest in the folder's manifest.

    Args:
        folder: with the manifest.
        name: of the file, with the folders that lead to it.
        grows: whether more will be added to it.
        grown: entries of other files, as for `note`.
        of: as for `write_json`.
    """

    def announce(finished: Path) -> None:
        entry = entry_of(finished)
        entry |= ({"grows": True} if grows else {}) | ({"of": of} if of else {})
        note(folder, {name: entry}, grown=grown)

    with files.replacing(folder / name, announce) as file:
        yield file


def write(folder: Path, name: str, content: bytes) -> None:
    """A file and its digest."""
    with replacing(folder, name) as file:
        file.write(content)


def write_json(
    folder: Path,
    name: str,
    content: Any,
    *,
    grown: dict[str, Entry] | None = None,
    of: str | None = None,
) -> None:
    """A file of JSON and its digest.

    Args:
        folder: with the manifest.
        name: of the file.
        content: of it.
        grown: as for `note`.
        of: what the file makes of the folder, so that it is known even where the file is damaged.
    """
    text = files.json_bytes(content)
    with replacing(folder, name, grown=grown, of=of) as file:
        file.write(text)


def note(
    folder: Path,
    new: dict[str, Entry] | None = None,
    *,
    grown: dict[str, Entry] | None = None,
    drop: Collection[str] = (),
) -> None:
    """Write the manifest: files that will be written, have grown, or will go.

    Args:
        folder: with the manifest.
        new: name -> entry of what will take the place of what is there.
        grown: name -> entry of what is there already.
        drop: names that are to be listed no more.

    Raises:
        OSError: the disk refused; the manifest is as before.
    """
    with _locked(folder):
        try:
            earlier = read(folder)
        except Damaged:
            earlier = {}  # said by whoever read the folder
        entries = {n: _settled(folder / n, e) for n, e in earlier.items() if n not in drop}
        for name, entry in (new or {}).items():
            entries[name] = entry | _before(folder / name, entry, earlier.get(name))
        entries |= grown or {}
        if entries != earlier:
            content = {"format": FORMAT, "files": entries}
            files.write_json(folder / NAME, content | {"sha256": _digest_of(content)})


def settle(folder: Path) -> None:
    """Drop what a finished write has replaced; a folder that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        if has_one(folder):
            note(folder)


def entry_of(path: Path) -> Entry:
    """The entry of a file that is there.

    Raises:
        OSError: it cannot be read.
    """
    return {"bytes": path.stat().st_size, "sha256": files.digest(path)}


def wrong(folder: Path, entries: dict[str, Entry], name: str) -> str:
    """What is wrong with a file that is listed: "gone", "damaged", or "" if it is whole."""
    entry, path = entries.get(name), folder / name
    if entry is None:
        return ""
    if not os.path.lexists(path):
        return "" if None in entry.get("or", ()) else "gone"
    whole = any(_matches(path, e, entry) for e in (entry, *entry.get("or", ())) if e)
    return "" if whole else "damaged"


def require(folder: Path, *names: str) -> None:
    """Refuse a folder in which a file that is needed differs from its digest.

    Raises:
        Damaged: which, and what to do.
    """
    try:
        entries = read(folder)
    except Damaged:
        return  # said by `look`
    for name in names:
        if what := wrong(folder, entries, name):
            raise Damaged(
                f"{folder / name} is {what}: {NAME} there has its digest. Copy it back from a "
                f"backup; or delete {folder / NAME} to use the folder as it is, if you changed "
                "the file yourself"
            )


def look(folder: Path, mark: str = "config.json") -> dict[str, str]:
    """Warn of all files of a folder that are gone or damaged; those of checkpoints warn themselves.

    Args:
        folder: of a run or a sweep.
        mark: the file that makes it one; where it says its format, there has to be a manifest.

    Returns:
        Name -> "gone" or "damaged".
    """
    try:
        entries = read(folder)
    except Damaged as error:
        warnings.warn(str(error), stacklevel=2)
        return {}
    if not entries and _is_expected(folder / mark):
        warnings.warn(
            f"{folder / NAME} is gone: the files beside it cannot be verified", stacklevel=2
        )
    found = {name: wrong(folder, entries, name) for name in entries}
    found = {name: what for name, what in found.items() if what and not _may_be(name, what, folder)}
    for name, what in found.items():
        differs = "" if what == "gone" else f": it differs from its digest in {NAME}"
        warnings.warn(f"{folder / name} is {what}{differs}", stacklevel=2)
    return found


def _is_expected(mark: Path) -> bool:
    """Whether a folder is of a version that writes a manifest."""
    try:
        content = json.loads(files.read_text(mark))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" in content


def _may_be(name: str, what: str, folder: Path) -> bool:
    """Whether nothing has to be said: it is a figure, or the checkpoints say so themselves."""
    if name.startswith("checkpoints/"):
        return what == "damaged" or (folder / name).with_suffix("").is_dir()
    return what == "gone" and (name.endswith(FIGURES) or name.startswith("policy."))


def _before(path: Path, entry: Entry, listed: Entry | None) -> dict[str, Any]:
    """What else a file may be while it is replaced: {} or {"or": [...]}."""
    if not os.path.lexists(path):
        return {"or": [None]}
    if _matches(path, entry, entry):
        return {}
    known = [] if listed is None else [_plain(listed), *listed.get("or", ())]
    there = [e for e in known if e and _matches(path, e, listed)]
    if listed is None:
        with contextlib.suppress(OSError):
            there = [entry_of(path)]
    # Of a damaged file neither: it stays damaged until it is replaced.
    return {"or": there or known}


def _is_entry(entry: Any) -> bool:
    """Whether a part of a file has the form of an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("or", []), list):
        return False
    several = [entry, *(e for e in entry.get("or", []) if e is not None)]
    return all(
        isinstance(e, dict) and type(e.get("bytes")) is int and isinstance(e.get("sha256"), str)
        for e in several
    )


def _settled(path: Path, entry: Entry) -> Entry:
    """An entry without what came before, once the file is in its place."""
    return _plain(entry) if "or" in entry and _matches(path, entry, entry) else entry


def _plain(entry: Entry) -> Entry:
    return {name: value for name, value in entry.items() if name != "or"}


def _matches(path: Path, entry: Entry, kind: Entry | None) -> bool:
    """Whether a file has these bytes; one that grows may have more after them."""
    grows = entry.get("grows", False) or bool(kind and kind.get("grows"))
    try:
        with files.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < entry["bytes"] or (size > entry["bytes"] and not grows):
                return False
            return _digest_prefix(file, entry["bytes"]) == entry["sha256"]
    except (OSError, KeyError, TypeError):
        return False


def _digest_prefix(file: BinaryIO, length: int) -> str:
    found = hashlib.sha256()
    while length and (part := file.read(min(length, 2**20))):
        found.update(part)
        length -= len(part)
    return found.hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time: `export` may write into a run that is being trained."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
