"""Where rewards come from: frozen models, functions of Python, or several of them with weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.types import Params, PyTree

# (prompts, responses) -> one number each
RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class Reward(NamedTuple):
    """Something that says how good a response is.

    Attributes:
        frozen: its arrays, which nothing changes.
        score: (frozen, inputs [B, 1, P + L], length L) -> [B] float32.
    """

    frozen: PyTree
    score: Callable[[PyTree, TokenInputs, int], jax.Array]


def from_model(
    decoder: Decoder, params: Params, mean: float = 0.0, deviation: float = 1.0
) -> Reward:
    """A reward model: what its head says of the last token of the response.

    r = (v(x, y) − μ) / σ

    Args:
        decoder: of the model.
        params: with a head `score`.
        mean: μ, what the model says of the reference's responses on average.
        deviation: σ of what it says of them.

    Source: Ziegler et al. 2019, section 2.1 (the reward normalised to mean 0 and variance 1).
    """
    frozen = {"params": params, "mean": jnp.float32(mean), "deviation": jnp.float32(deviation)}

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        raw = decoder.score(frozen["params"], inputs.tokens[:, 0], inputs.mask[:, 0])
        return (raw - frozen["mean"]) / frozen["deviation"]

    return Reward(frozen, score)


def from_function(function: RewardFunction, tokenizer: Any) -> Reward:
    """A function of prompts and responses as text, called from within the compiled program.

    Args:
        function: (prompts, responses) -> one finite number for each.
        tokenizer: whose `decode` makes text of tokens.

    Raises:
        RuntimeError: while running, if the function gives another count of numbers or one that is
            not finite.
    """

    def on_host(tokens: Any, mask: Any, length: int) -> np.ndarray:
        prompts, responses = texts_of(np.asarray(tokens), np.asarray(mask), length, tokenizer)
        try:
            scores = [float(x) for x in function(prompts, responses)]
        except Exception as error:
            raise ValueError(f"a reward failed: {type(error).__name__}: {error}") from error
        if len(scores) != len(prompts):
            raise ValueError(f"a reward for {len(prompts)} responses gave {len(scores)} numbers")
        bad = next((i for i, x in enumerate(scores) if not math.isfinite(x)), None)
        if bad is not None:
            raise ValueError(f"a reward is {scores[bad]} for the response {responses[bad]!r}")
        return np.asarray(scores, np.float32)

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        shape = jax.ShapeDtypeStruct((inputs.tokens.shape[0],), jnp.float32)

        def call(tokens: Any, mask: Any) -> np.ndarray:
            return on_host(tokens, mask, length)

        return io_callback(call, shape, inputs.tokens[:, 0], inputs.mask[:, 0], ordered=True)

    return Reward((), score)


def weighted(rewards: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """Σ w_i r_i.

    Args:
        rewards: one or more.
        weights: as many.

    Raises:
        ValueError: their numbers differ.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(
            f"{len(rewards)} rewards and {len(weights)} weights; one of each is needed"
        )
    frozen = {
        "weights": jnp.asarray(weights, jnp.float32),
        "parts": tuple(reward.frozen for reward in rewards),
    }

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        parts = zip(rewards, frozen["parts"], strict=True)
        scores = [reward.score(part, inputs, length) for reward, part in parts]
        return jnp.einsum("i,ib->b", frozen["weights"], jnp.stack(scores))

    return Reward(frozen, score)


def texts_of(
    tokens: np.ndarray, mask: np.ndarray, length: int, tokenizer: Any
) -> tuple[list[str], list[str]]:
    """Prompts and responses as text.

    Args:
        tokens: [B, P + L].
        mask: [B, P + L].
        length: L.
        tokenizer: whose `decode` makes text of tokens.
    """
    decode = tokenizer.decode
    kept = [row[keep > 0] for row, keep in zip(tokens[:, :-length], mask[:, :-length], strict=True)]
    prompts = [decode(row.tolist()) for row in kept]
    kept = [row[keep > 0] for row, keep in zip(tokens[:, -length:], mask[:, -length:], strict=True)]
    return prompts, [decode(row.tolist()) for row in kept]
