"""Files of a run: written atomically, and never through a link that leads out of the folder.

A folder from an untrusted source may contain links, pipes and devices in place of any file.
Writing therefore creates a new file with an unpredictable name and renames it to its final name;
this replaces a link and does not change the file that the link refers to. Reading accepts regular
files only.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ppo_jax.config import ConfigError

# Name of a file that is being written; a crash may leave such a file behind.
TEMPORARY = re.compile(r"\.ppo_jax-[0-9a-f]{16}\.tmp")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_name() -> str:
    """A random name for a file or folder while it is being written."""
    return f".ppo_jax-{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces another one once it is complete and on the disk.

    Args:
        path: the final path of the file. A link at this path is replaced, not followed.
        before: a function called with the path of the complete temporary file just before it is
            renamed.

    Raises:
        OSError: the file cannot be written; the previous file is unchanged.
    """
    temporary = path.with_name(temporary_name())
    try:
        with os.fdopen(os.open(temporary, _NEW, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: after a power failure it is either complete or unchanged."""
    with replacing(path) as file:
        file.write(content)


def json_bytes(content: Any) -> bytes:
    """The JSON text of a value as bytes.

    Raises:
        ValueError: a number in the content is not finite.
    """
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, atomically as `write_bytes` does."""
    write_bytes(path, json_bytes(content))


def sync_directory(path: Path) -> None:
    """Write a directory's entries to the disk, on file systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: the file does not exist, or is a link out of its folder, a pipe, a device or a
            folder.
    """
    if leads_out(path, path.parent):
        raise OSError(errno.ELOOP, "it is a link that leads out of its folder, and is not followed")
    # O_NONBLOCK: opening a pipe without a writer must not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """The text of a regular file.

    Raises:
        OSError: the file cannot be opened; see `opened`.
        ValueError: the file is not valid UTF-8.
    """
    with opened(path) as file:
        return file.read().decode()


def digest(path: Path) -> str:
    """The SHA-256 digest of a regular file in hexadecimal digits.

    Raises:
        OSError: the file cannot be opened; see `opened`.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is a link to a target outside a folder."""
    if not path.is_symlink():
        return False
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a cycle of links
        return True


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that has links out of it, or special files, in place of the named files.

    Args:
        folder: path of the folder; it may itself be a link.
        names: names of the files and folders to check; folders are checked recursively.

    Raises:
        ConfigError: a file is a link out of the folder, a pipe, a device or a socket.
    """
    left = [folder / name for name in names]
    while left:
        path = left.pop()
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(mode):
            left += path.iterdir()
        elif stat.S_ISLNK(mode) and leads_out(path, folder):
            raise ConfigError(
                f"{path} is a link out of the folder (to {path.readlink()}), and files outside the "
                "folder are never written, read or deleted; replace the link by the file itself, "
                "or delete the link"
            )
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise ConfigError(f"{path} is neither a file nor a folder; delete it")


def delete(path: Path) -> None:
    """Delete a file, a link or a directory; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_empty(path: Path) -> None:
    """Delete a directory if it is empty."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            path.rmdir()


def aside(path: Path) -> Path:
    """An unused name beside a path, under which an untrusted file is kept."""
    names = (f"{path.stem}.unverified{n}{path.suffix}" for n in ("", *map(str, range(2, 10_000))))
    return next(p for name in names if not os.path.lexists(p := path.with_name(name)))
