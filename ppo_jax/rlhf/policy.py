"""A language model as a policy: the state is what has been read, the action the next token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.rlhf import lora
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.token_distribution import TokenDistribution
from ppo_jax.types import Params, PyTree


@struct.dataclass
class TokenInputs:
    """What a policy of tokens reads: a prompt, padded on its left, and the response to it.

    In a Trajectory the first two axes are the other way round, [1, M, P + L].

    Attributes:
        tokens: [M, 1, P + L].
        mask: [M, 1, P + L] 1 for what was written, by a person or by the sampler; 0 for padding.
    """

    tokens: jax.Array
    mask: jax.Array


class LanguagePolicy(NamedTuple):
    """An actor and a critic of token sequences as pure functions.

    apply(params, inputs) -> (dist [M, L], value [M, L]): of each token of the response and of the
        text before it. What the losses call, with the parameters that `join` makes.
    join(params, frozen) -> params with top-level keys actor and critic: adapters laid over the
        frozen reference, if the actor is no more than adapters; else the parameters themselves.
    actor: the decoder that writes.
    critic: "separate", a decoder of its own; "shared", a head on the actor; "none", 0.
    length: L, tokens of the longest response.
    temperature: of all probabilities, when sampling and afterwards.
    valid_vocab: ids from here on are in no tokenizer, and impossible; None admits all.
    """

    apply: Callable[[Params, TokenInputs], tuple[TokenDistribution, jax.Array]]
    join: Callable[[Params, PyTree], Params]
    actor: Decoder
    critic: str
    length: int
    temperature: jax.Array | float
    valid_vocab: int | None = None

    def joined(self, frozen: PyTree) -> "LanguagePolicy":
        """The same policy with `apply` taking the parameters that are trained.

        Args:
            frozen: what `join` lays adapters over.
        """

        def apply(params: Params, inputs: TokenInputs) -> tuple[TokenDistribution, jax.Array]:
            return self.apply(self.join(params, frozen), inputs)

        return self._replace(apply=apply)


def make_policy(
    actor: Decoder,
    critic: Decoder | str = "shared",
    *,
    length: int,
    temperature: jax.Array | float = 1.0,
    lora_scale: float | None = None,
    valid_vocab: int | None = None,
) -> LanguagePolicy:
    """The policy of a decoder.

    Args:
        actor: the decoder that writes.
        critic: the decoder that judges; or "shared", a linear head on the actor's last hidden
            state; or "none".
        length: L, tokens of the longest response.
        temperature: the logits are divided by it.
        lora_scale: α/r, where the actor's parameters are adapters over the reference.
        valid_vocab: ids from here on are in no tokenizer, and impossible; None admits all.

    Returns:
        LanguagePolicy. Parameters: `actor` as the decoder has them or adapters; `critic` with a
        head `score`, all of a decoder or nothing else.
    """
    kind = critic if isinstance(critic, str) else "separate"

    def apply(params: Params, inputs: TokenInputs) -> tuple[TokenDistribution, jax.Array]:
        # The last token of a response is never read: nothing is written after it.
        tokens, mask = inputs.tokens[:, 0, :-1], inputs.mask[:, 0, :-1]
        hidden = actor.hidden(params["actor"], tokens, mask)[:, -length:]
        dist = TokenDistribution(
            hidden, actor.head(params["actor"]), temperature, valid_vocab=valid_vocab
        )
        if isinstance(critic, Decoder):
            return dist, critic.values(params["critic"], tokens, mask)[:, -length:]
        if critic == "shared":
            return dist, read_values(params["critic"], hidden)
        return dist, jnp.zeros(hidden.shape[:2], jnp.float32)

    def join(params: Params, frozen: PyTree) -> Params:
        if lora_scale is None:
            return params
        merged = lora.merge(frozen["reference"], params["actor"], lora_scale)
        return {**params, "actor": merged}

    return LanguagePolicy(apply, join, actor, kind, length, temperature, valid_vocab)


def read_values(critic: Params, hidden: jax.Array) -> jax.Array:
    """V of the text up to each token, by a linear head.

    Args:
        critic: {"score": {"kernel": [D, 1]}}.
        hidden: [..., D] of the actor.

    Returns:
        [...] float32.
    """
    return (hidden.astype(jnp.float32) @ critic["score"]["kernel"])[..., 0]


def log_prob_of(
    decoder: Decoder,
    params: Params,
    inputs: TokenInputs,
    length: int,
    *,
    temperature: Any = 1.0,
    valid_vocab: int | None = None,
) -> jax.Array:
    """log π(token | text before it) of a response under any model.

    Args:
        decoder: whose vocabulary the tokens are of.
        params: of it.
        inputs: TokenInputs [M, 1, P + L].
        length: L.
        temperature: τ, of all probabilities.
        valid_vocab: ids from here on are impossible.

    Returns:
        [M, L].
    """
    tokens, mask = inputs.tokens[:, 0], inputs.mask[:, 0]
    hidden = decoder.hidden(params, tokens[:, :-1], mask[:, :-1])[:, -length:]
    dist = TokenDistribution(hidden, decoder.head(params), temperature, valid_vocab=valid_vocab)
    return dist.log_prob(tokens[:, -length:])
