"""Conversion of text records to arrays of token ids."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.rlhf.chat import assistant_parts, render_chat, shared_start
from ppo_jax.rlhf.formats import Conversation, DataError, Example, Preference, Prompt, Text
from ppo_jax.rlhf.tokenizer import Tokenizer, TokenizerError


class Tokens(NamedTuple):
    """Padded rows of token ids.

    Attributes:
        tokens: [N, L] int32 token ids, padded with the tokenizer's pad id.
        mask: [N, L] bool, True for tokens of the text and False for padding.
    """

    tokens: np.ndarray
    mask: np.ndarray


class Supervision(NamedTuple):
    """Right-padded rows of prompt and completion.

    Attributes:
        tokens: [N, L] int32 token ids.
        mask: [N, L] bool, True for tokens of the text and False for padding.
        weight: [N, L] float32, 1 for the tokens to be predicted, the completion and its EOS, or
            only the assistant's tokens in it; 0 for all others and for padding.
    """

    tokens: np.ndarray
    mask: np.ndarray
    weight: np.ndarray


class Pairs(NamedTuple):
    """Right-padded rows of prompt and completion, for both completions of each pair.

    Attributes:
        chosen: rows [N, L] with the preferred completion.
        rejected: rows [N, L] with the other completion.
        margin: [N] float32, the score difference that the preference demands.
    """

    chosen: Tokens
    rejected: Tokens
    margin: np.ndarray


class _Row(NamedTuple):
    """A tokenised text in two parts, which `prompt + completion` joins.

    Attributes:
        prompt: ids before the completion.
        completion: ids of the completion, with EOS at the end.
        counts: whether each id of the completion is to be predicted.
    """

    prompt: list[int]
    completion: list[int]
    counts: list[bool]


def prompt_arrays(
    examples: Sequence[Prompt], tokenizer: Tokenizer, max_prompt: int, truncate: bool = False
) -> Tokens:
    """Prompts as left-padded rows, which a policy continues on the right.

    Args:
        examples: the N prompts.
        tokenizer: the tokenizer; its prefix begins every plain text.
        max_prompt: maximum number of tokens of a prompt.
        truncate: whether longer prompts are shortened to their prefix and their last tokens
            instead of being refused.

    Returns:
        Tokens [N, P], where P is the length of the longest prompt.

    Raises:
        DataError: there are no prompts, one is empty, or one is too long.
    """
    rows = []
    for example in examples:
        ids = _prompt_ids(example, tokenizer)
        if not ids:
            raise DataError(f"{example.where}: the prompt has no tokens to continue from")
        if len(ids) > max_prompt and not truncate:
            raise DataError(_too_long(example.where, "prompt", len(ids), max_prompt))
        rows.append(_last(ids, max_prompt, tokenizer))
    return _padded(rows, tokenizer, left=True)


def sft_arrays(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
    truncate: bool = False,
    *,
    assistant_only: bool = False,
) -> Supervision:
    """Examples as right-padded rows that end with EOS.

    Prompt and completion are encoded together and separated where the prompt ends. A token that
    contains characters of both belongs to the completion.

    Args:
        examples: the N examples.
        tokenizer: the tokenizer; its prefix begins every plain text.
        max_length: maximum number of tokens of a row, including EOS.
        truncate: whether longer rows are shortened instead of being refused. The end of the prompt
            is kept, at least half of max_length, and the beginning of the completion; EOS is cut
            off if the row is still too long.
        assistant_only: whether only the assistant's turns are to be predicted, as marked by
            {% generation %} in the chat template or else by turns (`chat.assistant_parts`).

    Returns:
        Supervision [N, L], where L is the length of the longest row.

    Raises:
        DataError: there are no examples, one is too long, or assistant_only is set and an example
            is not a conversation.
    """
    rows, weights = [], []
    for example in examples:
        completions = [example.completion]
        made = _encoded(example, completions, tokenizer, assistant_only=assistant_only)
        if truncate:
            made = _fitted(made, max_length, tokenizer)
        rows += _joined(made, max_length, truncate=truncate, where=example.where)
        (row,) = made
        # The first token of a row has no text before it from which it could be predicted.
        weights.append([False, *(*[False] * len(row.prompt), *row.counts)[1:max_length]])
    tokens, mask = _padded(rows, tokenizer)
    weight = np.zeros(mask.shape, np.float32)
    weight[mask] = list(itertools.chain.from_iterable(weights))
    return Supervision(tokens, mask, weight)


def preference_arrays(
    examples: Sequence[Preference], tokenizer: Tokenizer, max_length: int, truncate: bool = False
) -> Pairs:
    """Preferences as two sets of right-padded rows that end with EOS.

    Args:
        examples: the N preferences.
        tokenizer: the tokenizer; its prefix begins every plain text.
        max_length: maximum number of tokens of a row, including EOS.
        truncate: whether longer rows are shortened instead of being refused, as in `sft_arrays`.

    Returns:
        Pairs [N, L], where L is the length of the longest row of both sets.

    Raises:
        DataError: there are no preferences, or one is too long.
    """
    rows = []
    for example in examples:
        made = _encoded(example, [example.chosen, example.rejected], tokenizer)
        if truncate:
            made = _fitted(made, max_length, tokenizer)
        rows += _joined(made, max_length, truncate=truncate, where=example.where)
    tokens, mask = _padded(rows, tokenizer)
    chosen, rejected = (Tokens(tokens[i::2], mask[i::2]) for i in (0, 1))
    return Pairs(chosen, rejected, np.array([e.margin for e in examples], np.float32))


def _encoded(
    example: Example | Preference,
    completions: Sequence[Text],
    tokenizer: Tokenizer,
    *,
    assistant_only: bool = False,
) -> list[_Row]:
    """A row for each completion of the prompt of an example."""
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no EOS token, which every completion must end with")
    if not isinstance(example.prompt, str):
        return [_chat_row(example, c, tokenizer, assistant_only) for c in completions]
    if assistant_only:
        raise DataError(
            f"{example.where}: assistant_only_loss requires conversations, and this is a text"
        )
    return [_text_row(example.prompt, str(c), tokenizer, example.where) for c in completions]


def _text_row(prompt: str, completion: str, tokenizer: Tokenizer, where: str) -> _Row:
    whole = _encode(prompt + completion, tokenizer, where)
    cut = _cut(prompt, whole, tokenizer, where)
    ended = _ended(whole[cut:], tokenizer)
    return _Row(tokenizer.prefix + whole[:cut], ended, [True] * len(ended))


def _chat_row(
    example: Example | Preference, completion: Text, tokenizer: Tokenizer, assistant_only: bool
) -> _Row:
    """The row of a conversation, whose prompt may be empty."""
    where, template = example.where, example.template
    assert not isinstance(completion, str)
    messages = [*example.prompt, *completion]
    start = _chat(example, tokenizer, prompt=True) if example.prompt else ""
    parts: Sequence[tuple[int, int]] = ()
    if assistant_only:
        text, parts = _in_place(where, assistant_parts, tokenizer, messages, template)
    else:
        text = _in_place(where, render_chat, tokenizer, messages, False, template)
    if not text.startswith(start):
        # Templates of reasoning models begin the answer with a tag that the whole text may lack.
        plain = _chat(example, tokenizer, prompt=False)
        if not text.startswith(plain):
            raise DataError(
                f"{where}: the chat template renders the prompt differently when an answer "
                f"follows, so that the completion cannot be separated from the prompt"
            )
        start = start[: shared_start(start, text)]
    whole = _encode(text, tokenizer, where)
    cut = _cut(start, whole, tokenizer, where)
    ended = _ended(whole[cut:], tokenizer)
    if not assistant_only:
        return _Row(whole[:cut], ended, [True] * len(ended))
    edges = [tuple(_cut(text[:x], whole, tokenizer, where) for x in part) for part in parts]
    counts = [any(a <= cut + i < b for a, b in edges) for i in range(len(ended))]
    if len(ended) > len(whole) - cut:  # an EOS that the template did not write
        counts[-1] = messages[-1]["role"] == "assistant"
    return _Row(whole[:cut], ended, counts)


def _cut(start: str, whole: list[int], tokenizer: Tokenizer, where: str) -> int:
    """The index of the first token that contains a character after the beginning `start`."""
    before = _encode(start, tokenizer, where) if start else []
    same = (a == b for a, b in zip(before, whole, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))


def _prompt_ids(example: Prompt, tokenizer: Tokenizer) -> list[int]:
    prompt, where = example.prompt, example.where
    if isinstance(prompt, str):
        return tokenizer.prefix + _encode(prompt, tokenizer, where)
    if prompt and prompt[-1]["role"] == "assistant":
        raise DataError(f"{where}: a prompt must not end with the assistant's turn")
    return _encode(_chat(example, tokenizer, prompt=True), tokenizer, where) if prompt else []


def _ended(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """A completion with one EOS at its end; a chat template may have written it already."""
    eos = tokenizer.eos_id
    assert eos is not None
    last = len(ids) - 1 - ids[::-1].index(eos) if eos in ids else None
    if last is not None and not tokenizer.decode(ids[last + 1 :]).strip():
        return ids[: last + 1]
    return [*ids, eos]


def _encode(text: str, tokenizer: Tokenizer, where: str) -> list[int]:
    ids: list[int] = _in_place(where, tokenizer.encode, text)
    return ids


def _chat(example: Example | Preference | Prompt, tokenizer: Tokenizer, *, prompt: bool) -> str:
    """The prompt of an example as text, with or without the header of the assistant's turn."""
    messages: Conversation = list(example.prompt)  # type: ignore[arg-type]
    text: str = _in_place(example.where, render_chat, tokenizer, messages, prompt, example.template)
    return text


def _in_place(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of the tokenizer, whose errors name the place of the example."""
    try:
        return function(*arguments)
    except TokenizerError as error:
        raise DataError(f"{where}: {error}") from error


def _last(ids: list[int], most: int, tokenizer: Tokenizer) -> list[int]:
    """The prefix and the last tokens of a prompt, `most` tokens in all."""
    if len(ids) <= most:
        return ids
    start = tokenizer.prefix if ids[: len(tokenizer.prefix)] == tokenizer.prefix else []
    return start + ids[len(ids) - most + len(start) :]


def _fitted(rows: Sequence[_Row], max_length: int, tokenizer: Tokenizer) -> list[_Row]:
    """Rows whose prompts are shortened until all fit, but to no less than half of a row."""
    most = max_length - max(len(row.completion) for row in rows)
    room = max(most, max_length // 2)
    return [row._replace(prompt=_last(row.prompt, room, tokenizer)) for row in rows]


def _joined(
    rows: Sequence[_Row], max_length: int, *, truncate: bool, where: str
) -> list[list[int]]:
    longest = max(len(row.prompt) + len(row.completion) for row in rows)
    if longest > max_length and not truncate:
        raise DataError(_too_long(where, "text", longest, max_length))
    return [(row.prompt + row.completion)[:max_length] for row in rows]


def _too_long(where: str, what: str, length: int, most: int) -> str:
    return (
        f"{where}: the {what} has {length} tokens, at most {most} fit; shorten it, pass "
        f"truncate, or use a model with a longer context"
    )


def _padded(rows: Sequence[list[int]], tokenizer: Tokenizer, left: bool = False) -> Tokens:
    if not rows:
        raise DataError("no examples were given")
    # A tokenizer without a pad token can use any id, because masks are made from lengths.
    fill = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    length = np.array([len(row) for row in rows])
    width = length.max()
    column = np.arange(width)
    mask = column >= (width - length)[:, None] if left else column < length[:, None]
    tokens = np.full(mask.shape, fill, np.int32)
    tokens[mask] = list(itertools.chain.from_iterable(rows))
    return Tokens(tokens, mask)
