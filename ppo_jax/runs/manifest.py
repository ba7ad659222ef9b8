"""manifest.json: the digest of each file in a folder, so that damaged files are found and named.

A file and its digest are two writes, and the process may be killed between them. The digest is
written first: until the second write, the manifest lists both the new content of the file and the
previous one (or that there was no file), and either is valid. The next write of the manifest drops
the previous content.

For a file that grows, the manifest lists the length and the digest of its first bytes.
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
# Files that may be deleted without a warning, because they are derived from other files.
FIGURES = (".png", ".pdf", ".svg", ".html", ".csv", ".md", ".tex")

DAMAGED = (
    "{} is damaged, so that the files beside it cannot be verified; copy it back from a backup, or "
    "delete it to use them as they are"
)

# {"bytes": length, "sha256": digest of these bytes}; with "grows", more bytes may follow.
Entry = dict[str, Any]


class Damaged(ConfigError):
    """A file differs from its digest; the message names the file and a remedy."""


def read(folder: Path) -> dict[str, Entry]:
    """The entries of a manifest, name -> entry; {} if there is no manifest of this program.

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
        return {}  # written by another program
    if not isinstance(content, dict) or content.pop("sha256") != _digest_of(content):
        raise Damaged(DAMAGED.format(path))
    entries = content["files"]
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise Damaged(DAMAGED.format(path))
    return entries


def has_one(folder: Path) -> bool:
    """Whether the folder has a manifest of this program, valid or damaged."""
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
    """Replace a file as `files.replacing` does, and add its digest to the folder's manifest.

    Args:
        folder: folder that contains the manifest.
        name: path of the file relative to the folder.
        grows: whether more content will be appended to the file.
        grown: entries of other files that have grown, as for `note`.
        of: format of the folder that the file identifies, as for `write_json`.
    """

    def announce(finished: Path) -> None:
        entry = entry_of(finished)
        entry |= ({"grows": True} if grows else {}) | ({"of": of} if of else {})
        note(folder, {name: entry}, grown=grown)

    with files.replacing(folder / name, announce) as file:
        yield file


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file and its digest."""
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
    """Write a JSON file and its digest.

    Args:
        folder: folder that contains the manifest.
        name: name of the file.
        content: JSON value to write.
        grown: entries of other files that have grown, as for `note`.
        of: format of the folder that this file identifies; with it, the folder is recognised even
            if the file is damaged.
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
    """Write the manifest for files that are about to be written, have grown or will be deleted.

    Args:
        folder: folder that contains the manifest.
        new: name -> entry of content that is about to replace a file.
        grown: name -> entry of content that has already been written.
        drop: names to remove from the manifest.

    Raises:
        OSError: the manifest cannot be written and is unchanged.
    """
    with _locked(folder):
        try:
            earlier = read(folder)
        except Damaged:
            earlier = {}  # the function that read the folder has already reported this
        entries = {n: _settled(folder / n, e) for n, e in earlier.items() if n not in drop}
        for name, entry in (new or {}).items():
            entries[name] = entry | _before(folder / name, entry, earlier.get(name))
        entries |= grown or {}
        if entries != earlier:
            content = {"format": FORMAT, "files": entries}
            files.write_json(folder / NAME, content | {"sha256": _digest_of(content)})


def settle(folder: Path) -> None:
    """Drop the entries of replaced content; a folder that is not writable is left unchanged."""
    with contextlib.suppress(OSError):
        if has_one(folder):
            note(folder)


def entry_of(path: Path) -> Entry:
    """The entry of an existing file.

    Raises:
        OSError: the file cannot be read.
    """
    return {"bytes": path.stat().st_size, "sha256": files.digest(path)}


def wrong(folder: Path, entries: dict[str, Entry], name: str) -> str:
    """The state of a listed file: "missing", "damaged", or "" if it is valid."""
    entry, path = entries.get(name), folder / name
    if entry is None:
        return ""
    if not os.path.lexists(path):
        return "" if None in entry.get("or", ()) else "missing"
    whole = any(_matches(path, e, entry) for e in (entry, *entry.get("or", ())) if e)
    return "" if whole else "damaged"


def require(folder: Path, *names: str) -> None:
    """Refuse a folder in which a required file differs from its digest.

    Raises:
        Damaged: the name of the file, and a remedy.
    """
    try:
        entries = read(folder)
    except Damaged:
        return  # reported by `look`
    for name in names:
        if what := wrong(folder, entries, name):
            raise Damaged(
                f"{folder / name} is {what}: it does not match its digest in {NAME}. Copy the file "
                f"back from a backup; or, if you changed it yourself, delete {folder / NAME} to "
                "use the folder as it is"
            )


def look(folder: Path, mark: str = "config.json") -> dict[str, str]:
    """Warn of all missing or damaged files in a folder; checkpoints have warnings of their own.

    Args:
        folder: folder of a run or a sweep.
        mark: name of the identifying file; if that file contains a format, a manifest must exist.

    Returns:
        Name -> "missing" or "damaged".
    """
    try:
        entries = read(folder)
    except Damaged as error:
        warnings.warn(str(error), stacklevel=2)
        return {}
    if not entries and _is_expected(folder / mark):
        warnings.warn(
            f"{folder / NAME} is missing: the files beside it cannot be verified", stacklevel=2
        )
    found = {name: wrong(folder, entries, name) for name in entries}
    found = {name: what for name, what in found.items() if what and not _may_be(name, what, folder)}
    for name, what in found.items():
        differs = "" if what == "missing" else f": it differs from its digest in {NAME}"
        warnings.warn(f"{folder / name} is {what}{differs}", stacklevel=2)
    return found


def _is_expected(mark: Path) -> bool:
    """Whether a folder was written by a version that writes manifests."""
    try:
        content = json.loads(files.read_text(mark))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format" in content


def _may_be(name: str, what: str, folder: Path) -> bool:
    """Whether no warning is needed: for a figure, or a checkpoint, which has its own warning."""
    if name.startswith("checkpoints/"):
        return what == "damaged" or (folder / name).with_suffix("").is_dir()
    return what == "missing" and (name.endswith(FIGURES) or name.startswith("policy."))


def _before(path: Path, entry: Entry, listed: Entry | None) -> dict[str, Any]:
    """Alternative entries of a file while it is being replaced: {} or {"or": [...]}."""
    if not os.path.lexists(path):
        return {"or": [None]}
    if _matches(path, entry, entry):
        return {}
    known = [] if listed is None else [_plain(listed), *listed.get("or", ())]
    there = [e for e in known if e and _matches(path, e, listed)]
    if listed is None:
        with contextlib.suppress(OSError):
            there = [entry_of(path)]
    # If the current content is damaged, it matches no entry and stays damaged until it is replaced.
    return {"or": there or known}


def _is_entry(entry: Any) -> bool:
    """Whether a value has the form of an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("or", []), list):
        return False
    several = [entry, *(e for e in entry.get("or", []) if e is not None)]
    return all(
        isinstance(e, dict) and type(e.get("bytes")) is int and isinstance(e.get("sha256"), str)
        for e in several
    )


def _settled(path: Path, entry: Entry) -> Entry:
    """An entry without the previous content, once the file has been replaced."""
    return _plain(entry) if "or" in entry and _matches(path, entry, entry) else entry


def _plain(entry: Entry) -> Entry:
    return {name: value for name, value in entry.items() if name != "or"}


def _matches(path: Path, entry: Entry, kind: Entry | None) -> bool:
    """Whether a file has the listed bytes; a growing file may have more bytes after them."""
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
    """Allow one writer at a time: `export` may write into a run that is being trained."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
