"""Sources of rewards: frozen reward models, Python functions, and weighted sums of both."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rlhf.sharding import gather
from ppo_jax.types import Params, PyTree

# (prompts, responses) -> one score for each response
RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class Reward(NamedTuple):
    """A function that scores responses, with its arrays.

    Attributes:
        frozen: arrays of the reward, which training does not change.
        score: scoring function, (frozen, inputs [B, 1, P + L], length L) -> [B] float32.
    """

    frozen: PyTree
    score: Callable[[PyTree, TokenInputs, int], jax.Array]


def from_model(
    decoder: Decoder, params: Params, mean: float = 0.0, deviation: float = 1.0
) -> Reward:
    """A reward model, the normalised output of its score head at the last token of the response.

    r = (v(x, y) − μ) / σ

    Args:
        decoder: architecture of the model.
        params: parameters of the model, with a score head.
        mean: μ, mean of the model's scores on responses of the reference.
        deviation: σ, standard deviation of these scores.

    Source: Ziegler et al. 2019, section 2.1 (the reward normalised to mean 0 and variance 1).
    """
    frozen = {"params": params, "mean": jnp.float32(mean), "deviation": jnp.float32(deviation)}

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        raw = decoder.score(frozen["params"], inputs.tokens[:, 0], inputs.mask[:, 0])
        return (raw - frozen["mean"]) / frozen["deviation"]

    return Reward(frozen, score)


def from_function(function: RewardFunction, tokenizer: Any, mesh: Any = None) -> Reward:
    """A Python function of texts as a reward, called from within the compiled program.

    Args:
        function: scoring function, (prompts, responses) -> one finite number for each response.
        tokenizer: tokenizer that decodes tokens to text.
        mesh: device mesh that the responses are distributed over, from which they are gathered on
            one device that calls the function; None for one device.

    Raises:
        RuntimeError: raised during training, if the function raises an exception, or returns the
            wrong number of scores or one that is not finite.
    """

    def on_host(tokens: Any, mask: Any, length: int) -> np.ndarray:
        prompts, responses = texts_of(np.asarray(tokens), np.asarray(mask), length, tokenizer)
        try:
            scores = [float(x) for x in function(prompts, responses)]
        except Exception as error:
            raise ValueError(
                f"the reward function failed: {type(error).__name__}: {error}"
            ) from error
        if len(scores) != len(prompts):
            raise ValueError(
                f"the reward function returned {len(scores)} scores for {len(prompts)} responses"
            )
        bad = next((i for i, x in enumerate(scores) if not math.isfinite(x)), None)
        if bad is not None:
            raise ValueError(
                f"the reward function returned {scores[bad]} for the response {responses[bad]!r}"
            )
        return np.asarray(scores, np.float32)

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        shape = jax.ShapeDtypeStruct((inputs.tokens.shape[0],), jnp.float32)

        def call(tokens: Any, mask: Any) -> np.ndarray:
            return on_host(tokens, mask, length)

        inputs = gather(inputs, mesh)
        # Several devices have no common order of calls; the data between updates determines it.
        scores = io_callback(
            call, shape, inputs.tokens[:, 0], inputs.mask[:, 0], ordered=mesh is None
        )
        return gather(scores, mesh)

    return Reward((), score)


def weighted(rewards: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """The weighted sum of rewards, Σ w_i r_i.

    Args:
        rewards: one or more rewards.
        weights: one weight for each reward.

    Raises:
        ValueError: there are no rewards, or the numbers of rewards and weights differ.
    """
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(
            f"there are {len(rewards)} rewards and {len(weights)} weights; give one weight for "
            "each reward, and at least one reward"
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
    """Decode prompts and responses to text.

    Args:
        tokens: [B, P + L] token ids of prompts and responses.
        mask: [B, P + L] mask, nonzero for tokens and 0 for padding.
        length: L, the maximum number of tokens of a response.
        tokenizer: tokenizer that decodes tokens to text.

    Returns:
        (B prompts, B responses).
    """
    decode = tokenizer.decode
    kept = [row[keep > 0] for row, keep in zip(tokens[:, :-length], mask[:, :-length], strict=True)]
    prompts = [decode(row.tolist()) for row in kept]
    kept = [row[keep > 0] for row, keep in zip(tokens[:, -length:], mask[:, -length:], strict=True)]
    return prompts, [decode(row.tolist()) for row in kept]
