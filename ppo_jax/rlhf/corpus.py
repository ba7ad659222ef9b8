"""Data of the demo: English words that are part of every CPython, and a rule that scores them.

Because the rule is known, the accuracy of the reward model and the result of the policy can be
measured exactly.
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
    """The distinct words of Python's language reference, the text that `help()` shows.

    There are about 2,700 words; the exact list depends on the version of Python.

    Args:
        shortest: minimum number of letters.
        longest: maximum number of letters.

    Returns:
        Words of the letters a to z, in alphabetical order.

    Raises:
        DataError: this Python was installed without its help texts.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python was installed without pydoc_data, whose words the demo learns from by "
            "default; give a file with one word per line: --data names.txt"
        ) from error
    text = "\n".join(topics.values())
    # A capital letter begins a new word: SyntaxError becomes syntax and error.
    found = {word.lower() for word in re.findall("[A-Z]?[a-z]+", text)}
    return sorted(word for word in found if shortest <= len(word) <= longest)


def tokenizer_of(lines: Sequence[str]) -> CharTokenizer:
    """A tokenizer whose alphabet is the characters of the lines."""
    return CharTokenizer("".join(lines))


def first_letters(lines: Sequence[str]) -> list[Prompt]:
    """One prompt for each line, its first character, so that letters keep their frequencies."""
    return [Prompt(line[:1], f"line {i}") for i, line in enumerate(lines, 1)]


def gold_score(texts: Sequence[str]) -> np.ndarray:
    """Scores of texts by the gold rule.

    g = number of vowels − ½ |length − 8|

    Args:
        texts: [B] whole texts, including their prompts.

    Returns:
        [B] float32 scores.
    """
    vowels = np.array([sum(c in VOWELS for c in text) for text in texts], np.float32)
    lengths = np.array([len(text) for text in texts], np.float32)
    return vowels - 0.5 * np.abs(lengths - GOOD_LENGTH)


def bradley_terry(key: jax.Array, score_a: ArrayLike, score_b: ArrayLike) -> jax.Array:
    """Preferences of a noisy annotator, whose error rate grows as the scores approach each other.

    P(a is preferred) = σ(s_a − s_b)

    Args:
        key: PRNG key.
        score_a: [N] scores of the texts a.
        score_b: [N] scores of the texts b.

    Returns:
        [N] bool, True where a is preferred.

    Source: Bradley & Terry 1952, Rank Analysis of Incomplete Block Designs.
    """
    return jax.random.bernoulli(key, jax.nn.sigmoid(jnp.asarray(score_a) - jnp.asarray(score_b)))


def noisy_preferences(
    key: jax.Array, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> list[Preference]:
    """Preferences between two completions of each prompt: the gold rule with Bradley-Terry noise.

    Args:
        key: PRNG key.
        prompts: [N] texts before the completions.
        a: [N] first completions.
        b: [N] second completions.

    Returns:
        The N preferences, with margin 0, because the annotator does not report one.
    """
    scores = [gold_score([p + c for p, c in zip(prompts, side, strict=True)]) for side in (a, b)]
    first = np.asarray(bradley_terry(key, *scores))
    rows = zip(prompts, a, b, first, strict=True)
    return [
        Preference(prompt, *((x, y) if wins else (y, x)), where=f"pair {i}")
        for i, (prompt, x, y, wins) in enumerate(rows, 1)
    ]
