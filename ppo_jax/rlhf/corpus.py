"""The default run's data: words that every CPython carries, and a rule that says which are good.

The rule is known, so that what a reward model learned of it, and what a policy made of that, can be
measured against it.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ppo_jax.rlhf.formats import DataError, Preference, Prompt
from ppo_jax.rlhf.tokenizer import CharTokenizer

VOWELS = "aeiou"
GOOD_LENGTH = 8


def words(shortest: int = 4, longest: int = 13) -> list[str]:
    """The distinct words of Python's language reference, which `help()` reads.

    About 2,700 of them, in alphabetical order; which ones, depends a little on Python's version.

    Args:
        shortest: letters at least.
        longest: letters at most.

    Returns:
        Words of the letters a to z.

    Raises:
        DataError: this Python came without its help texts.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python came without pydoc_data, whose words the default run learns from; "
            "give a file with one word a line: --data names.txt"
        ) from error
    text = "\n".join(topics.values())
    # A capital begins a word: SyntaxError is two.
    found = {word.lower() for word in re.findall("[A-Z]?[a-z]+", text)}
    return sorted(word for word in found if shortest <= len(word) <= longest)


def tokenizer_of(lines: Sequence[str]) -> CharTokenizer:
    """A tokenizer of the characters in lines."""
    return CharTokenizer("".join(lines))


def first_letters(lines: Sequence[str]) -> list[Prompt]:
    """A prompt for every line: its first character, so that they are as frequent as in the data."""
    return [Prompt(line[:1], f"line {i}") for i, line in enumerate(lines, 1)]


def gold_score(texts: Sequence[str]) -> np.ndarray:
    """What the rule says of texts.

    g = number of vowels − ½ |length − 8|

    Args:
        texts: [B] whole ones, their prompts included.

    Returns:
        [B] float32.
    """
    vowels = np.array([sum(c in VOWELS for c in text) for text in texts], np.float32)
    lengths = np.array([len(text) for text in texts], np.float32)
    return vowels - 0.5 * np.abs(lengths - GOOD_LENGTH)


def bradley_terry(key: jax.Array, score_a: ArrayLike, score_b: ArrayLike) -> jax.Array:
    """Which of two is preferred, by somebody who errs the more, the less they differ.

    P(a is preferred) = σ(s_a − s_b)

    Args:
        key: consumed.
        score_a: [N].
        score_b: [N].

    Returns:
        [N] bool, True where it is a.

    Source: Bradley & Terry 1952, Rank Analysis of Incomplete Block Designs.
    """
    return jax.random.bernoulli(key, jax.nn.sigmoid(jnp.asarray(score_a) - jnp.asarray(score_b)))


def noisy_preferences(
    key: jax.Array, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> list[Preference]:
    """Preferences between two completions of each prompt, by the rule and with Bradley-Terry noise.

    Args:
        key: consumed.
        prompts: [N].
        a: [N] completions.
        b: [N] completions.

    Returns:
        [N] Preference; its margin is 0, a judge does not say how sure he was.
    """
    scores = [gold_score([p + c for p, c in zip(prompts, side, strict=True)]) for side in (a, b)]
    first = np.asarray(bradley_terry(key, *scores))
    rows = zip(prompts, a, b, first, strict=True)
    return [
        Preference(prompt, *((x, y) if wins else (y, x)), where=f"pair {i}")
        for i, (prompt, x, y, wins) in enumerate(rows, 1)
    ]
