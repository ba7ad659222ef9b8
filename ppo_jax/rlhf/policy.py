"""A language model as a policy: the state is the text so far, the action is the next token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.token_distribution import TokenDistribution
from ppo_jax.types import Params, PyTree


@struct.dataclass
class TokenInputs:
    """Inputs of a language policy: prompts, padded on the left, followed by their responses.

    In a Trajectory the first two axes are swapped, [1, M, P + L].

    Attributes:
        tokens: [M, 1, P + L] int, token ids.
        mask: [M, 1, P + L] mask, 1 for tokens of prompt and response and 0 for padding.
        row: [M] row of each prompt in the data, for reward functions; None if it is unknown, and in
            a Trajectory.
    """

    tokens: jax.Array
    mask: jax.Array
    row: jax.Array | None = None


class LanguagePolicy(NamedTuple):
    """An actor and a critic of token sequences as pure functions.

    apply(params, inputs) -> (dist [M, L], value [M, L]): the distribution of each token of the
        response, and the value of the text before it. The losses call it with the parameters that
        `join` returns.
    join(params, frozen) -> params with the top-level keys actor and critic: with adapters added to
        the frozen reference if the actor consists of adapters, and to the frozen critic if the
        critic does; unchanged otherwise.
    actor: the decoder that generates responses.
    critic: "separate" for a decoder, "shared" for a head on the actor, "none" for the value 0.
    length: L, the maximum number of tokens of a response.
    temperature: temperature τ of all probabilities, during sampling and in the losses.
    valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all ids.
    """

    apply: Callable[[Params, TokenInputs], tuple[TokenDistribution, jax.Array]]
    join: Callable[[Params, PyTree], Params]
    actor: Decoder
    critic: str
    length: int
    temperature: jax.Array | float
    valid_vocab: int | None = None

    def joined(self, frozen: PyTree) -> "LanguagePolicy":
        """The same policy with an `apply` that takes the trained parameters.

        Args:
            frozen: frozen arrays; `join` adds adapters to `frozen["reference"]` and, if the critic
                has adapters, to `frozen["critic"]`.
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
    adapters: Lora | None = None,
    critic_adapters: bool = False,
    valid_vocab: int | None = None,
) -> LanguagePolicy:
    """The policy of a decoder.

    Args:
        actor: the decoder that generates responses.
        critic: the decoder that computes values; or "shared" for a linear head on the actor's last
            hidden state; or "none".
        length: L, the maximum number of tokens of a response.
        temperature: temperature τ, which divides the logits.
        adapters: the adapters of the actor; None if it is trained entirely.
        critic_adapters: whether the critic also consists of such adapters and a score head.
        valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all
            ids.

    Returns:
        A LanguagePolicy. Its parameters are `actor`, those of the decoder or adapters, and
        `critic`, with a score head: those of a decoder, or the head alone.
    """
    kind = critic if isinstance(critic, str) else "separate"

    def apply(params: Params, inputs: TokenInputs) -> tuple[TokenDistribution, jax.Array]:
        # The last token of a response is never an input, because no token follows it.
        tokens, mask = inputs.tokens[:, 0, :-1], inputs.mask[:, 0, :-1]
        hidden = actor.hidden(params["actor"], tokens, mask, length)
        dist = actor.distribution(params["actor"], hidden, temperature, valid_vocab=valid_vocab)
        if isinstance(critic, Decoder):
            return dist, critic.values(params["critic"], tokens, mask, length)
        if critic == "shared":
            return dist, read_values(params["critic"], hidden)
        return dist, jnp.zeros(hidden.shape[:2], jnp.float32)

    def join(params: Params, frozen: PyTree) -> Params:
        if adapters is None:
            return params
        joined = {**params, "actor": adapters.attach(frozen["reference"], params["actor"])}
        if critic_adapters:
            joined["critic"] = adapters.attach(frozen["critic"], params["critic"])
        return joined

    return LanguagePolicy(apply, join, actor, kind, length, temperature, valid_vocab)


def read_values(critic: Params, hidden: jax.Array) -> jax.Array:
    """Values of the text up to each token, computed by a linear head.

    Args:
        critic: parameters of the head, {"score": {"kernel": [D, 1]}}.
        hidden: [..., D] hidden states of the actor.

    Returns:
        [...] float32 values.
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
    """log π(token | text before it) of the tokens of responses under any model.

    Args:
        decoder: architecture of the model, with the vocabulary of the tokens.
        params: parameters of the model.
        inputs: prompts and responses [M, 1, P + L].
        length: L, the maximum number of tokens of a response.
        temperature: temperature τ, which divides the logits.
        valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all
            ids.

    Returns:
        [M, L] float32, log-probabilities in nats.
    """
    tokens, mask = inputs.tokens[:, 0], inputs.mask[:, 0]
    hidden = decoder.hidden(params, tokens[:, :-1], mask[:, :-1], length)
    dist = decoder.distribution(params, hidden, temperature, valid_vocab=valid_vocab)
    return dist.log_prob(tokens[:, -length:])
