"""Conversion of text records to arrays of token ids."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppo_jax.rlhf.chat import render_chat
from ppo_jax.rlhf.formats import (
    Conversation,
    DataError,
    Example,
    Preference,
    Prompt,
    Text,
)
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
        weight: [N, L] float32, 1 for the tokens to be predicted, the completion and its EOS; 0
            for prompt and padding.
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
        ids = _prompt_ids(example.prompt, tokenizer, example.where)
        if not ids:
            raise DataError(f"{example.where}: the prompt has no tokens to continue from")
        if len(ids) > max_prompt and not truncate:
            raise DataError(_too_long(example.where, "prompt", len(ids), max_prompt))
        rows.append(_last(ids, max_prompt, tokenizer))
    return _padded(rows, tokenizer, left=True)


def sft_arrays(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, truncate: bool = False
) -> Supervision:
    """Examples as right-padded rows that end with EOS.

    Prompt and completion are encoded separately, as they are when a policy samples a completion:
    no token spans both.

    Args:
        examples: the N examples.
        tokenizer: the tokenizer; its prefix begins every plain text.
        max_length: maximum number of tokens of a row, including EOS.
        truncate: whether longer rows are shortened instead of being refused. The end of the prompt
            is kept, at least half of max_length, and the beginning of the completion; EOS is cut
            off if the row is still too long.

    Returns:
        Supervision [N, L], where L is the length of the longest row.

    Raises:
        DataError: there are no examples, or one is too long.
    """
    rows, starts = [], []
    for example in examples:
        prompt, completions = _encoded(
            example.prompt, [example.completion], tokenizer, example.where
        )
        if truncate:
            prompt = _room_for(completions, prompt, max_length, tokenizer)
        rows += _joined(prompt, completions, max_length, truncate=truncate, where=example.where)
        # The first token of a row has no text before it from which it could be predicted.
        starts.append(max(len(prompt), 1))
    tokens, mask = _padded(rows, tokenizer)
    is_completion = np.arange(tokens.shape[1]) >= np.asarray(starts)[:, None]
    return Supervision(tokens, mask, (mask & is_completion).astype(np.float32))


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
        sides = [example.chosen, example.rejected]
        prompt, completions = _encoded(example.prompt, sides, tokenizer, example.where)
        if truncate:
            prompt = _room_for(completions, prompt, max_length, tokenizer)
        rows += _joined(prompt, completions, max_length, truncate=truncate, where=example.where)
    tokens, mask = _padded(rows, tokenizer)
    chosen, rejected = (Tokens(tokens[i::2], mask[i::2]) for i in (0, 1))
    return Pairs(chosen, rejected, np.array([e.margin for e in examples], np.float32))


def _encoded(
    prompt: Text, completions: Sequence[Text], tokenizer: Tokenizer, where: str
) -> tuple[list[int], list[list[int]]]:
    """The ids of a prompt, and of each of its completions with EOS at the end."""
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no EOS token, which every completion must end with")
    if isinstance(prompt, str):
        texts = completions
        ids = tokenizer.prefix + _encode(prompt, tokenizer, where)
    else:
        start = _chat(prompt, tokenizer, where, True) if prompt else ""
        whole = [_chat([*prompt, *c], tokenizer, where, False) for c in completions]
        if not all(text.startswith(start) for text in whole):
            raise DataError(
                f"{where}: the chat template renders the prompt differently when an answer "
                f"follows, so that the completion cannot be separated from the prompt"
            )
        texts = [text[len(start) :] for text in whole]
        ids = _encode(start, tokenizer, where)
    return ids, [_ended(_encode(str(t), tokenizer, where), tokenizer) for t in texts]


def _prompt_ids(prompt: Text, tokenizer: Tokenizer, where: str) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.prefix + _encode(prompt, tokenizer, where)
    if prompt and prompt[-1]["role"] == "assistant":
        raise DataError(f"{where}: a prompt must not end with the assistant's turn")
    return _encode(_chat(prompt, tokenizer, where, True), tokenizer, where) if prompt else []


def _ended(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """A completion with one EOS at its end; a chat template may have written it already."""
    eos = tokenizer.eos_id
    assert eos is not None
    last = len(ids) - 1 - ids[::-1].index(eos) if eos in ids else None
    if last is not None and not tokenizer.decode(ids[last + 1 :]).strip():
        return ids[: last + 1]
    return [*ids, eos]


def _encode(text: str, tokenizer: Tokenizer, where: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except TokenizerError as error:
        raise DataError(f"{where}: {error}") from error


def _chat(messages: Conversation, tokenizer: Tokenizer, where: str, prompt: bool) -> str:
    try:
        return render_chat(tokenizer, messages, add_generation_prompt=prompt)
    except TokenizerError as error:
        raise DataError(f"{where}: {error}") from error


def _last(ids: list[int], most: int, tokenizer: Tokenizer) -> list[int]:
    """The prefix and the last tokens of a prompt, `most` tokens in all."""
    if len(ids) <= most:
        return ids
    start = tokenizer.prefix if ids[: len(tokenizer.prefix)] == tokenizer.prefix else []
    return start + ids[len(ids) - most + len(start) :]


def _room_for(
    completions: Sequence[list[int]], prompt: list[int], max_length: int, tokenizer: Tokenizer
) -> list[int]:
    """A prompt shortened until its completions fit, but to no less than half of a row."""
    most = max_length - max(map(len, completions))
    return _last(prompt, max(most, max_length // 2), tokenizer)


def _joined(
    prompt: list[int],
    completions: Sequence[list[int]],
    max_length: int,
    *,
    truncate: bool,
    where: str,
) -> list[list[int]]:
    longest = len(prompt) + max(map(len, completions))
    if longest > max_length and not truncate:
        raise DataError(_too_long(where, "text", longest, max_length))
    return [(prompt + completion)[:max_length] for completion in completions]


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
