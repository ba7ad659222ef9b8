"""Sources of rewards: frozen reward models, Python functions, and weighted sums of both."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rlhf.reward_functions import Call, PromptTable, RewardFunction, checked
from ppo_jax.rlhf.sharding import gather
from ppo_jax.types import Params, PyTree


class Scores(NamedTuple):
    """Scores of B responses by several rewards.

    Attributes:
        total: [B] weighted sum of the scores.
        parts: name of a reward -> its scores [B], NaN where it gives none.
    """

    total: jax.Array
    parts: dict[str, jax.Array]


class Reward(NamedTuple):
    """A function that scores responses, with its arrays.

    Attributes:
        frozen: arrays of the reward, which training does not change.
        score: scoring function, (frozen, inputs [B, 1, P + L], length L) -> [B] float32, or Scores
            if the reward has names.
        names: names of the rewards in the sum that are logged separately.
    """

    frozen: PyTree
    score: Callable[[PyTree, TokenInputs, int], Any]
    names: tuple[str, ...] = ()


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


def from_function(
    function: RewardFunction,
    tokenizer: Any,
    table: PromptTable | None = None,
    *,
    name: str = "the reward function",
    optional: bool = False,
    mesh: Any = None,
) -> Reward:
    """A Python function of texts as a reward, called from within the compiled program.

    Args:
        function: scoring function, (prompts, completions, columns as keyword arguments) -> one
            finite number for each response; see `reward_functions.Call`.
        tokenizer: tokenizer that decodes tokens to text.
        table: the prompts as they are in the data, with their columns; None for decoded prompts
            without columns.
        name: name of the function in messages.
        optional: whether the function may return None for a response that it does not score.
        mesh: device mesh that the responses are distributed over, from which they are gathered on
            one device that calls the function; None for one device.

    Raises:
        ValueError: the function requires an argument that is not a column of the data.
        RuntimeError: raised during training, if the function raises an exception, or returns the
            wrong number of scores or one that is not finite.
    """
    call = Call(function, name, None if table is None else table.common or [])

    def on_host(tokens: Any, mask: Any, rows: Any, length: int) -> np.ndarray:
        tokens, mask = np.asarray(tokens), np.asarray(mask)
        decoded, responses = texts_of(tokens, mask, length, tokenizer)
        prompts, columns = list[Any](decoded), dict[str, list[Any]]()
        if table is not None and len(rows):
            places = np.asarray(rows).tolist()
            prompts, columns = [table[i].prompt for i in places], table.values(places)
        ids = _kept(tokens[:, -length:], mask[:, -length:])
        try:
            scores = list(call(prompts, responses, ids, columns))
            found = checked(scores, responses, name, optional)
        except Exception as error:
            own = isinstance(error, ValueError) and str(error).startswith(f"{name} returned")
            text = str(error) if own else f"{name} failed: {type(error).__name__}: {error}"
            raise ValueError(text) from error
        return found

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        shape = jax.ShapeDtypeStruct((inputs.tokens.shape[0],), jnp.float32)
        inputs = gather(inputs, mesh)
        rows = jnp.zeros((0,), jnp.int32) if inputs.row is None else inputs.row
        on_device = functools.partial(on_host, length=length)
        # Several devices have no common order of calls; the data between updates determines it.
        scores = io_callback(
            on_device,
            shape,
            inputs.tokens[:, 0],
            inputs.mask[:, 0],
            rows,
            ordered=mesh is None,
        )
        return gather(scores, mesh)

    return Reward((), score)


def weighted(
    rewards: Sequence[Reward], weights: Sequence[float], names: Sequence[str] = ()
) -> Reward:
    """The weighted sum of rewards, Σ w_i r_i; a score that is NaN counts as 0.

    Args:
        rewards: one or more rewards.
        weights: one weight for each reward.
        names: one name for each reward, under which its scores are logged; without names only the
            sum is logged.

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

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> Any:
        parts = zip(rewards, frozen["parts"], strict=True)
        scores = jnp.stack([reward.score(part, inputs, length) for reward, part in parts])
        given = jnp.where(jnp.isnan(scores), 0.0, scores)
        total = jnp.einsum("i,ib->b", frozen["weights"], given)
        return Scores(total, dict(zip(names, scores, strict=True))) if names else total

    return Reward(frozen, score, tuple(names))


def continuation(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """The text that a response adds to its prompt.

    Many tokenizers drop the space before the first word of a text, so that a response must be
    decoded together with its prompt.

    Args:
        tokenizer: tokenizer that decodes tokens to text.
        prompt: ids of the prompt.
        response: ids of the response.
    """
    start, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *response])
    if whole.startswith(start):
        return str(whole[len(start) :])
    return str(tokenizer.decode(response))  # the last character of the prompt was incomplete


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
    prompts = _kept(tokens[:, :-length], mask[:, :-length])
    responses = _kept(tokens[:, -length:], mask[:, -length:])
    texts = [continuation(tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
    return [tokenizer.decode(p) for p in prompts], texts


def _kept(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The ids of each row where the mask is not 0."""
    return [row[keep > 0].tolist() for row, keep in zip(tokens, mask, strict=True)]
