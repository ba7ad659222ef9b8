"""What both contestants are measured on: one dataclass, named instances, JSON."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Size:
    """A decoder and one update of PPO on it, in words that both contestants can translate.

    Actor, critic, reference and reward are four models of the same shape, with random weights;
    the head is not tied to the embedding for llama, and is for gpt2.

    Attributes:
        name: key in SIZES.
        family: "llama" or "gpt2".
        vocab_size: tokens.
        hidden_size: of a state.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        intermediate_size: of the MLP.
        max_positions: the longest context.
        activation: of the MLP, in the words of config.json.
        episodes: prompts, and responses, of an update.
        prompt_length: tokens of each prompt; there is no padding.
        response_length: places of each response.
        epochs: passes over the responses of an update.
        minibatches: parts of each pass, one step of Adam each.
        learning_rate: of Adam, constant.
        kl_coef: β, in the rewards.
        missing_eos_penalty: subtracted from the score of a response without an end.
        clip_eps: range of the ratio, and of the values.
        value_coef: weight of the value loss.
        gae_lambda: trace decay.
        dtype: of activations and products, and of the frozen models.
        micro_batches: parts of a minibatch whose gradients are accumulated.
        remat: whether blocks are computed again in the backward pass.
        shared_critic: whether the critic is a head on the actor instead of a model of its own.
    """

    name: str
    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    max_positions: int
    activation: str
    episodes: int
    prompt_length: int
    response_length: int
    epochs: int
    minibatches: int
    learning_rate: float = 1e-5
    kl_coef: float = 0.05
    missing_eos_penalty: float = 1.0
    clip_eps: float = 0.2
    value_coef: float = 0.1
    gae_lambda: float = 0.95
    dtype: str = "float32"
    micro_batches: int = 1
    remat: bool = False
    shared_critic: bool = False

    @property
    def steps_per_update(self) -> int:
        """Episodes of an update; what a worker counts."""
        return self.episodes

    @property
    def tokens_per_update(self) -> int:
        """Places of all responses; both contestants fill them all, also those behind an end."""
        return self.episodes * self.response_length

    @property
    def eos_id(self) -> int:
        """The token that ends a response: the last of the vocabulary, as in GPT-2's."""
        return self.vocab_size - 1

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Size":
        """The size `to_json` wrote."""
        return cls(**json.loads(text))


_ALL = (
    # The models and updates of `python -m ppo_jax.rlhf`.
    Size(
        "small",
        family="llama",
        vocab_size=30,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=176,
        max_positions=512,
        activation="silu",
        episodes=512,
        prompt_length=2,
        response_length=14,
        epochs=4,
        minibatches=2,
    ),
    # GPT-2, 124 million parameters each.
    Size(
        "gpt2",
        family="gpt2",
        vocab_size=50257,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        intermediate_size=3072,
        max_positions=1024,
        activation="gelu_new",
        episodes=16,
        prompt_length=16,
        response_length=32,
        epochs=1,
        minibatches=1,
    ),
)
SIZES: dict[str, Size] = {each.name: each for each in _ALL}
