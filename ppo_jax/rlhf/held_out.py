"""Held-out data: the examples that a stage is evaluated on and never trained on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.rlhf.formats import NOTHING as NO_ARGUMENTS
from ppo_jax.rlhf.formats import read

# The fields of examples by which two of them are compared.
FIELDS = ("prompt", "completion", "chosen", "rejected")
# Text for summary.json where an evaluation uses the data of training.
NOTHING = "the prompts of training, because none are held out"


class HeldOut(NamedTuple):
    """The held-out examples.

    Attributes:
        examples: records of `formats.read`; empty if nothing is held out.
        about: their number and origin, as summary.json states it.
    """

    examples: list[Any]
    about: str


def read_both(
    data: Path,
    kind: str,
    *,
    eval_data: Path | None,
    fraction: float,
    template: Mapping[str, Any] = NO_ARGUMENTS,
) -> tuple[list[Any], HeldOut]:
    """The training examples and the held-out examples of a stage.

    Args:
        data: file of the training data.
        kind: kind of the records, "sft", "preference" or "prompt".
        eval_data: file of the held-out data; None for a part of the training data.
        fraction: fraction of the training data that is held out if there is no other file.
        template: arguments of the chat template for every example.

    Raises:
        DataError: a file cannot be read.
    """
    examples = read(data, kind, template)
    if eval_data is None and not fraction and kind == "prompt":
        return examples, HeldOut([], "")  # in the order of the file, as in older runs
    if eval_data is None:
        return split(examples, fraction)
    held_out = read(eval_data, kind, template)
    seen = {whole(x) for x in examples}
    common = sum(whole(x) in seen for x in held_out)
    about = f"{len(held_out):,} examples of {eval_data.name}"
    if common:
        about += f", {common:,} of which are in the training data"
        warnings.warn(
            f"{common:,} of the {len(held_out):,} examples of {eval_data} are also in {data}: for "
            "them, an evaluation does not measure generalisation",
            stacklevel=2,
        )
    return examples, HeldOut(held_out, about)


def split(examples: Sequence[Any], fraction: float) -> tuple[list[Any], HeldOut]:
    """A random split into training examples and held-out examples, which have no example in common.

    Examples with the same prompt stay together if there are enough prompts to hold out some of
    them; otherwise only equal examples do. At least one example is held out if `fraction` is above
    0 and there are two that differ.

    Args:
        examples: records of `formats.read`.
        fraction: fraction of the examples that is held out.

    Returns:
        (training examples in random order, held-out examples). The order does not depend on the
        seed of a run, so that runs with different seeds are evaluated on the same data.
    """
    by_prompt = _groups(examples, prompt_of)
    apart = len(by_prompt) * fraction >= 1
    groups = by_prompt if apart else _groups(examples, whole)
    order = np.random.default_rng(0).permutation(len(groups))  # files are often sorted
    shuffled = [groups[i] for i in order]
    wanted = max(int(len(examples) * fraction), 1) if fraction else 0
    held_out: list[Any] = []
    while len(held_out) < wanted and len(shuffled) > 1:
        held_out = shuffled.pop() + held_out
    training = [x for group in shuffled for x in group]
    if not held_out:
        return training, HeldOut([], "")
    about = f"{len(held_out):,} of {len(examples):,} examples, held out from training"
    shared = "" if apart else "; their prompts may be those of training examples"
    return training, HeldOut(held_out, about + shared)


def _groups(examples: Sequence[Any], key: Callable[[Any], bytes]) -> list[list[Any]]:
    """The examples with equal keys, in the order of the first of each."""
    groups: dict[bytes, list[Any]] = {}
    for example in examples:
        groups.setdefault(key(example), []).append(example)
    return list(groups.values())


def prompt_of(example: Any) -> bytes:
    """A digest of the prompt of an example; of the whole example if its prompt is empty."""
    return _digest([example.prompt]) if example.prompt else whole(example)


def whole(example: Any) -> bytes:
    """A digest of all texts of an example."""
    return _digest([getattr(example, name, None) for name in FIELDS])


def _digest(texts: list[Any]) -> bytes:
    text = json.dumps(texts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
