"""The records of data files: JSON lines, JSON arrays, Parquet, and plain text.

A record is a dictionary with the columns of one example. A line of a text file is a string.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the expected format and a remedy."""


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """The records of a file, each with its place.

    Args:
        path: file that ends in .jsonl, .json, .parquet or .txt, or in one of the text formats
            followed by .gz. A .json file may contain one array, or one object per line.

    Yields:
        (record, place of the record in the file, for messages).

    Raises:
        DataError: the file cannot be read or parsed, or Parquet is given without pyarrow.
    """
    if path.suffix == ".parquet":
        return _parquet(path)
    return _lines(path) if is_text(path) else _json(path)


def is_text(path: Path) -> bool:
    """Whether a file is plain text, one example per line."""
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix) == ".txt"


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line, its file and line number) for every line that is not blank."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield line.rstrip("\r\n"), f"{path}, line {number}"
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}") from error


def _json(path: Path) -> Iterator[tuple[Any, str]]:
    """The elements of a JSON array, or the values of JSON lines."""
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return
    if _begins_an_array(first[0]):
        yield from _array(path, [first[0], *(line for line, _ in lines)])
        return
    yield _parsed(*first), first[1]
    for line, where in lines:
        yield _parsed(line, where), where


def _begins_an_array(line: str) -> bool:
    """Whether a first line begins an array that continues, or that contains objects."""
    if not line.lstrip().startswith("["):
        return False
    try:
        return any(isinstance(x, dict) for x in json.loads(line))
    except (ValueError, RecursionError):
        return True


def _array(path: Path, lines: list[str]) -> Iterator[tuple[Any, str]]:
    for number, value in enumerate(_parsed("\n".join(lines), str(path)), 1):
        yield value, f"{path}, record {number}"


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); expected an object per line") from error


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet requires the package pyarrow, which is not installed; install it "
            "with: pip install 'ppo_jax[parquet]', or convert the file to JSON lines"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield record, f"{path}, row {number}"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a Parquet file that can be read: {reason}") from error
