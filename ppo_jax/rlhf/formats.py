"""Reading of text datasets, in TRL's formats, ShareGPT's, or as plain lines, into examples.

A record has these columns, for each purpose:

- sft: prompt and completion; or messages; or text; or a preference, of which the chosen completion
  is used.
- preference: chosen and rejected, with prompt or with a common beginning; optionally margin.
- prompt: prompt; or messages, up to the last answer; or a preference, of which the prompt is used.

Every text is a string or a conversation [{"role": ..., "content": ...}, ...]; `text` is a string.
A conversation may be written as ShareGPT does, [{"from": ..., "value": ...}, ...], and `messages`
may be named `conversations`. A string beside a conversation is one message: a prompt is the user's,
a completion the assistant's. The columns tools, documents and chat_template_kwargs are arguments
of the chat template.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ppo_jax.config.options import did_you_mean
from ppo_jax.rlhf.records import DataError as DataError
from ppo_jax.rlhf.records import is_text, records

Conversation: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Conversation
NOTHING: Mapping[str, Any] = MappingProxyType({})

# The names of roles in ShareGPT's format, and those of chat templates.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_response": "tool",
    "observation": "tool",
}


class Example(NamedTuple):
    """A training example of fine-tuning: a prompt, which may be empty, and its completion.

    Attributes:
        prompt: text before the completion.
        completion: text to be predicted.
        where: place of the example in its file, for messages.
        template: arguments of the chat template by name, such as tools.
    """

    prompt: Text
    completion: Text
    where: str = ""
    template: Mapping[str, Any] = NOTHING


class Preference(NamedTuple):
    """Two completions of one prompt, of which `chosen` was preferred, by an optional margin.

    Attributes:
        prompt: text before both completions.
        chosen: the preferred completion.
        rejected: the other completion.
        margin: the score difference that the preference demands.
        where: place of the example in its file, for messages.
        template: arguments of the chat template by name, such as tools.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float = 0.0
    where: str = ""
    template: Mapping[str, Any] = NOTHING


class Prompt(NamedTuple):
    """A prompt that a policy responds to.

    Attributes:
        prompt: text before the response.
        where: place of the example in its file, for messages.
        template: arguments of the chat template by name, such as tools.
        columns: the other columns of the record, which reward functions may read.
    """

    prompt: Text
    where: str = ""
    template: Mapping[str, Any] = NOTHING
    columns: Mapping[str, Any] = NOTHING


def read(path: str | Path, kind: str, template: Mapping[str, Any] = NOTHING) -> list[Any]:
    """The examples of a file.

    Args:
        path: a .jsonl, .json, .parquet or .txt file; all but .parquet may be compressed (.gz).
        kind: kind of the examples, "sft", "preference" or "prompt".
        template: arguments of the chat template for every example; those of a record replace them.

    Returns:
        One Example, Preference or Prompt for each record.

    Raises:
        DataError: the file cannot be read, is empty, or has a record in another format.
    """
    if kind not in _PARSERS:
        raise DataError(f"unknown kind of data {kind!r}: {did_you_mean(kind, _PARSERS)}")
    path = Path(path)
    if is_text(path) and kind == "preference":
        raise DataError(f"{path}: a .txt file holds no preferences; {_EXPECTED[kind]}")
    parse = _line if is_text(path) else _record
    examples = [parse(record, kind, where) for record, where in records(path)]
    if not examples:
        raise DataError(f"{path} has no examples; {_EXPECTED[kind]}")
    if not template:
        return examples
    return [x._replace(template={**template, **x.template}) for x in examples]


def from_lines(lines: Sequence[str], kind: str = "sft") -> list[Any]:
    """Examples of plain texts: `Example` with an empty prompt, or `Prompt`.

    Args:
        lines: the texts, one for each example.
        kind: kind of the examples, "sft" or "prompt".

    Raises:
        DataError: there are no texts.
    """
    if not lines:
        raise DataError("no examples were given")
    return [_line(line, kind, f"line {i}") for i, line in enumerate(lines, 1)]


def common_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The common beginning of two texts, the prompt of a preference without an explicit one.

    A space at its end is left to the completions, because tokenizers expect words to begin with
    their space. The last message of a conversation is never part of the prompt.

    Args:
        chosen: the preferred text, a string or a conversation.
        rejected: the other text, of the same type.

    Returns:
        (prompt, rest of chosen, rest of rejected).

    Source: TRL, extract_prompt.
    """
    pairs = [a == b for a, b in zip(chosen, rejected, strict=False)]
    length = pairs.index(False) if False in pairs else len(pairs)
    if not isinstance(chosen, str):
        length = min(length, len(chosen) - 1, len(rejected) - 1)
    elif chosen[:length].endswith(" "):
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def arguments(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of a chat template from words NAME=VALUE.

    Args:
        words: the words; a value that is JSON, such as false or 3, is read as JSON.

    Raises:
        DataError: a word has no equals sign, or its name is not an identifier.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise DataError(
                f"chat_template_kwargs is {word!r}; it must be NAME=VALUE, such as "
                "enable_thinking=false"
            )
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _line(line: str, kind: str, where: str) -> Any:
    return Prompt(line, where) if kind == "prompt" else Example("", line, where)


def _record(record: Any, kind: str, where: str) -> Any:
    if not isinstance(record, dict):
        raise DataError(f"{where}: a {type(record).__name__}; {_EXPECTED[kind]}")
    found = _PARSERS[kind](record, where)
    if found is None:
        raise DataError(f"{where}: the keys are {', '.join(record) or 'none'}; {_EXPECTED[kind]}")
    template = _template(record, where)
    return found._replace(template=template) if template else found


def _template(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of the chat template in a record."""
    extra = _from_text(record.get("chat_template_kwargs"))
    if extra is not None and not isinstance(extra, dict):
        raise DataError(f"{where}: chat_template_kwargs must be an object, not {_shown(extra)}")
    # Datasets in Arrow's format store an absent argument as null.
    found = {k: v for k, v in (extra or {}).items() if v is not None}
    for name in ("tools", "documents"):
        value = _from_text(record.get(name))
        if value and not isinstance(value, list):
            raise DataError(f"{where}: {name} must be a list, not {_shown(value)}")
        if value:
            found[name] = value
    return found


def _from_text(value: Any) -> Any:
    """A value that may be written as JSON text, as many datasets do for tools."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _example(record: dict[str, Any], where: str) -> Example | None:
    if _has(record, "prompt", "completion"):
        prompt, completion = _texts(record, ("prompt", "completion"), where)
        return Example(prompt, completion, where)
    messages = _messages(record, where)
    if messages is not None:
        return Example([], messages, where)
    if "text" in record:
        if isinstance(record["text"], list):
            raise DataError(f"{where}: text must be a string; use messages for a conversation")
        (text,) = _texts(record, ("text",), where)
        return Example("", text, where)
    preference = _preference(record, where)
    return preference and Example(preference.prompt, preference.chosen, where)


def _preference(record: dict[str, Any], where: str) -> Preference | None:
    if "chosen" not in record or "rejected" not in record:
        return None
    margin = _margin(record.get("margin"), where)
    chosen, rejected = _texts(record, ("chosen", "rejected"), where)
    prompt = None if record.get("prompt") is None else _text(record, "prompt", where)
    if prompt is None and "conversations" in record:  # LLaMA-Factory's name of the prompt
        prompt = _messages(record, where)
    if isinstance(prompt, list) and isinstance(chosen, str):
        chosen, rejected = (_as_messages("assistant", x) for x in (chosen, rejected))
    if isinstance(prompt, str) == isinstance(chosen, str) and prompt is not None:
        return Preference(prompt, *_without(prompt, chosen, rejected), margin, where)
    # Both conversations contain the prompt, which may be repeated as a string (UltraFeedback).
    common, chosen, rejected = common_prompt(chosen, rejected)
    if not common and isinstance(prompt, str) and prompt:
        common = _as_messages("user", prompt)
    return Preference(common, chosen, rejected, margin, where)


def _without(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text]:
    """Two completions without the conversation of the prompt, which some datasets repeat."""
    count = len(prompt)
    repeated = not isinstance(prompt, str) and all(x[:count] == prompt for x in (chosen, rejected))
    return (chosen[count:], rejected[count:]) if repeated else (chosen, rejected)


def _prompt(record: dict[str, Any], where: str) -> Prompt | None:
    found = _prompt_of(record, where)
    if found is None:
        return None
    columns = {k: v for k, v in record.items() if k != "prompt"}
    return Prompt(found, where, columns=columns or NOTHING)


def _prompt_of(record: dict[str, Any], where: str) -> Text | None:
    in_pair = isinstance(record.get("chosen"), list | dict) and "rejected" in record
    if record.get("prompt") is not None and not in_pair:
        return _text(record, "prompt", where)
    messages = None if in_pair else _messages(record, where)
    if messages is not None:
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise DataError(f"{where}: all messages are the assistant's, so there is no prompt")
        return messages
    preference = _preference(record, where)
    return preference and preference.prompt


def _margin(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value or 0.0, int | float):
            raise ValueError
        margin = float(value or 0.0)
        # Losses are computed in float32.
        if not math.isfinite(margin) or abs(margin) > 3e38:
            raise ValueError
    except (OverflowError, ValueError) as error:
        raise DataError(f"{where}: margin must be a finite number, not {_shown(value)}") from error
    return margin


def _has(record: Mapping[str, Any], *names: str) -> bool:
    return all(record.get(name) is not None for name in names)


def _texts(record: dict[str, Any], keys: Sequence[str], where: str) -> tuple[Any, ...]:
    """The values of the columns, all strings or all conversations."""
    values = tuple(_text(record, key, where) for key in keys)
    if all(isinstance(value, str) for value in values):
        return values
    roles = ("user" if key == "prompt" else "assistant" for key in keys)
    return tuple(
        _as_messages(role, value) if isinstance(value, str) else value
        for role, value in zip(roles, values, strict=True)
    )


def _as_messages(role: str, text: str) -> Conversation:
    """A string as a conversation of one message, or of none if it is empty."""
    return [{"role": role, "content": text}] if text else []


def _text(record: dict[str, Any], key: str, where: str) -> Text:
    value = record[key]
    return value if isinstance(value, str) else _conversation(value, key, where)


def _messages(record: dict[str, Any], where: str) -> Conversation | None:
    """The whole conversation of a record; None if it has none."""
    key = next((k for k in ("messages", "conversations") if _has(record, k)), None)
    if key is None:
        return None
    messages = _conversation(record[key], key, where)
    system = record.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _conversation(value: Any, key: str, where: str) -> Conversation:
    turns = [value] if isinstance(value, dict) else value
    found = [_message(x) for x in turns] if isinstance(turns, list) else []
    messages = [x for x in found if x is not None]
    if not found or len(messages) < len(found):
        raise DataError(
            f"{where}: {key} must be a string or a list of "
            f'{{"role": "...", "content": "..."}}, not {_shown(value)}'
        )
    return messages


def _message(turn: Any) -> dict[str, Any] | None:
    """A message with role and content; None for anything else."""
    if not isinstance(turn, dict):
        return None
    # Arrow stores a field that other messages have as null.
    message = {k: v for k, v in turn.items() if v is not None or k == "content"}
    for theirs, ours in (("from", "role"), ("value", "content")):
        if ours not in message and theirs in message:
            message[ours] = message.pop(theirs)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        return None
    if isinstance(content, list):
        content = _joined_parts(content)
    if content is None and "tool_calls" in message:
        content = ""
    if not isinstance(content, str):
        return None
    return {**message, "role": ROLES.get(role, role), "content": content}


def _joined_parts(parts: list[Any]) -> str | None:
    """The text of a content in parts, [{"type": "text", "text": ...}, ...]; None for images."""
    texts = [x.get("text") if isinstance(x, dict) else None for x in parts]
    return "".join(map(str, texts)) if all(isinstance(x, str) for x in texts) else None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a {type(value).__name__} with too many digits"
    return text if len(text) <= 60 else text[:59] + "…"


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
