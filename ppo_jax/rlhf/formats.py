"""Reading of text datasets, in TRL's JSONL formats or as plain lines, into records.

A JSONL file has one JSON object per line. Its keys are, for each purpose:

- sft: prompt and completion; or text; or messages; or a preference, of which the chosen completion
  is used.
- preference: chosen and rejected, with prompt or with a common beginning; optionally margin.
- prompt: prompt; or messages, up to the last answer; or a preference, of which the prompt is used.

Every text is a string or a conversation [{"role": ..., "content": ...}, ...]; `text` is a string.
A .txt file has one text per line, and blank lines are skipped. A file whose name ends in .gz is
decompressed.
"""

import gzip
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ppo_jax.config.options import did_you_mean

Conversation: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Conversation


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the expected format and a remedy."""


class Example(NamedTuple):
    """A training example of fine-tuning: a prompt, which may be empty, and its completion."""

    prompt: Text
    completion: Text
    where: str = ""


class Preference(NamedTuple):
    """Two completions of one prompt, of which `chosen` was preferred, by an optional margin."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float = 0.0
    where: str = ""


class Prompt(NamedTuple):
    """A prompt that a policy responds to."""

    prompt: Text
    where: str = ""


def read(path: str | Path, kind: str) -> list[Any]:
    """The records of a file.

    Args:
        path: a .jsonl, .txt, .jsonl.gz or .txt.gz file.
        kind: kind of the records, "sft", "preference" or "prompt".

    Returns:
        One Example, Preference or Prompt for each line.

    Raises:
        DataError: the file cannot be read, is empty, or has a line in another format.
    """
    if kind not in _PARSERS:
        raise DataError(f"unknown kind of data {kind!r}: {did_you_mean(kind, _PARSERS)}")
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".txt" and kind == "preference":
        raise DataError(f"{path}: a .txt file holds no preferences; {_EXPECTED[kind]}")
    parse = _line if suffix == ".txt" else _json_line
    records = [parse(line, kind, where) for line, where in _lines(path)]
    if not records:
        raise DataError(f"{path} has no examples; {_EXPECTED[kind]}")
    return records


def from_lines(lines: Sequence[str], kind: str = "sft") -> list[Any]:
    """Records of plain texts: `Example` with an empty prompt, or `Prompt`.

    Args:
        lines: the texts, one for each record.
        kind: kind of the records, "sft" or "prompt".

    Raises:
        DataError: there are no texts.
    """
    if not lines:
        raise DataError("no examples were given")
    return [_line(line, kind, f"line {i}") for i, line in enumerate(lines, 1)]


def common_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The common beginning of two texts, the prompt of a preference without an explicit one.

    A space at its end is left to the completions, because tokenizers expect words to begin with
    their space.

    Args:
        chosen: the preferred text, a string or a conversation.
        rejected: the other text, of the same type.

    Returns:
        (prompt, rest of chosen, rest of rejected).

    Source: TRL, extract_prompt.
    """
    same = (a == b for a, b in zip(chosen, rejected, strict=False))
    length = sum(1 for _ in itertools.takewhile(bool, same))
    if isinstance(chosen, str) and chosen[:length].endswith(" "):
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


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
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _line(line: str, kind: str, where: str) -> Any:
    return Prompt(line, where) if kind == "prompt" else Example("", line, where)


def _json_line(line: str, kind: str, where: str) -> Any:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); {_EXPECTED[kind]}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}; {_EXPECTED[kind]}")
    found = _PARSERS[kind](record, where)
    if found is None:
        raise DataError(f"{where}: the keys are {', '.join(record) or 'none'}; {_EXPECTED[kind]}")
    return found


def _example(record: dict[str, Any], where: str) -> Example | None:
    if "prompt" in record and "completion" in record:
        prompt, completion = _texts(record, ("prompt", "completion"), where)
        return Example(prompt, completion, where)
    if "messages" in record:
        return Example([], _conversation(record["messages"], "messages", where), where)
    if "text" in record:
        (text,) = _texts(record, ("text",), where)
        if not isinstance(text, str):
            raise DataError(f"{where}: text must be a string; use messages for a conversation")
        return Example("", text, where)
    preference = _preference(record, where)
    return preference and Example(preference.prompt, preference.chosen, where)


def _preference(record: dict[str, Any], where: str) -> Preference | None:
    if "chosen" not in record or "rejected" not in record:
        return None
    margin = record.get("margin") or 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise DataError(f"{where}: margin must be a finite number, not {margin!r}")
    if record.get("prompt") is not None:
        prompt, chosen, rejected = _texts(record, ("prompt", "chosen", "rejected"), where)
    else:
        prompt, chosen, rejected = common_prompt(*_texts(record, ("chosen", "rejected"), where))
    return Preference(prompt, chosen, rejected, float(margin), where)


def _prompt(record: dict[str, Any], where: str) -> Prompt | None:
    if record.get("prompt") is not None:
        (prompt,) = _texts(record, ("prompt",), where)
        return Prompt(prompt, where)
    if "messages" in record:
        messages = _conversation(record["messages"], "messages", where)
        answered = messages[-1]["role"] == "assistant"
        return Prompt(messages[:-1] if answered else messages, where)
    preference = _preference(record, where)
    return preference and Prompt(preference.prompt, where)


def _texts(record: dict[str, Any], keys: Sequence[str], where: str) -> tuple[Any, ...]:
    """The values of the keys, all of them strings or all of them conversations."""
    values = tuple(record[key] for key in keys)
    if all(isinstance(value, str) for value in values):
        return values
    if any(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {', '.join(keys)} must be all strings or all conversations")
    return tuple(_conversation(record[key], key, where) for key in keys)


def _conversation(value: Any, key: str, where: str) -> Conversation:
    def is_message(x: Any) -> bool:
        return isinstance(x, dict) and all(isinstance(x.get(k), str) for k in ("role", "content"))

    if not isinstance(value, list) or not value or not all(map(is_message, value)):
        raise DataError(
            f"{where}: {key} must be a string or a list of "
            f'{{"role": "...", "content": "..."}}, not {str(value)[:60]}'
        )
    return value


_PARSERS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "sft": _example,
    "preference": _preference,
    "prompt": _prompt,
}
_EXPECTED = {
    "sft": (
        'expected an object per line, {"prompt": ..., "completion": ...}, {"text": ...} or '
        '{"messages": [...]}, or a .txt file with one text per line'
    ),
    "preference": (
        'expected an object per line, {"prompt": ..., "chosen": ..., "rejected": ...}; the prompt '
        "may be left out if chosen and rejected both begin with it"
    ),
    "prompt": (
        'expected an object per line, {"prompt": ...}, or a .txt file with one prompt per line'
    ),
}
