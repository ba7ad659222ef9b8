"""Files of a run: written whole or not at all, and never through a link out of their folder.

A folder from somebody else may hold links, pipes and devices in the place of any file. Writing
therefore makes a new file of a name that nobody can know before and moves it into place, which
replaces a link and leaves what it points to alone; reading takes regular files only.
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

# A file that is being written; a crash may leave one.
TEMPORARY = re.compile(r"\.ppo_jax-[0-9a-f]{16}\.tmp")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_name() -> str:
    """The name of a file or folder that is being written."""
    return f".ppo_jax-{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of another once it is whole and on the disk.

    Args:
        path: where it goes. A link there is replaced, not followed.
        before: called with the finished file just before it takes its place.

    Raises:
        OSError: the disk refused; what was there before is untouched.
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
    """Write a file so that it is there whole or not at all, also after a power cut."""
    with replacing(path) as file:
        file.write(content)


def json_bytes(content: Any) -> bytes:
    """How JSON is written.

    Raises:
        ValueError: a number in it is not finite.
    """
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """JSON, as `write_bytes`."""
    write_bytes(path, json_bytes(content))


def sync_directory(path: Path) -> None:
    """Let the names in a directory survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def opened(path: Path) -> BinaryIO:
    """A regular file, to be read.

    Raises:
        OSError: there is none; or it is a link out of its folder, a pipe, a device or a folder.
    """
    if leads_out(path, path.parent):
        raise OSError(errno.ELOOP, "it is a link out of its folder, which is not followed")
    # A pipe without a writer must not make anybody wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """The text of a regular file.

    Raises:
        OSError: as `opened`.
        ValueError: it is not UTF-8.
    """
    with opened(path) as file:
        return file.read().decode()


def digest(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        OSError: as `opened`.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is a link to something that is not in a folder."""
    if not path.is_symlink():
        return False
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which something that will be written, read or deleted lies elsewhere.

    Args:
        folder: itself may be a link.
        names: of the files and folders in it that count; folders with all that is in them.

    Raises:
        ConfigError: one is a link out of the folder, a pipe, a device or a socket.
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
                f"{path} is a link out of the folder (to {path.readlink()}), and nothing outside "
                "is written, read or deleted; put the file itself there, or delete the link"
            )
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise ConfigError(f"{path} is neither a file nor a folder; delete it")


def delete(path: Path) -> None:
    """A file, a link or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_empty(path: Path) -> None:
    """A directory with nothing in it; one that holds something stays."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            path.rmdir()


def aside(path: Path) -> Path:
    """A name beside a path that is not taken yet, for what cannot be trusted any more."""
    names = (f"{path.stem}.unverified{n}{path.suffix}" for n in ("", *map(str, range(2, 10_000))))
    return next(p for name in names if not os.path.lexists(p := path.with_name(name)))
