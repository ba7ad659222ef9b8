"""The models and updates that both contestants are measured on."""

import dataclasses
import json

# "ppo" trains actor and critic, "sft" the actor on texts, "reward" a reward model on pairs of them.
TASKS = ("ppo", "sft", "reward")


@dataclasses.dataclass(frozen=True)
class Size:
    """A decoder and one update of it, described independently of the implementation.

    Actor, critic, reference and reward are four models of the same shape with random weights. The
    head is tied to the embedding for gpt2 and separate for llama.

    Attributes:
        name: name of the size, a key of SIZES.
        family: model family, "llama" or "gpt2".
        vocab_size: number of tokens in the vocabulary.
        hidden_size: size of the hidden states.
        num_layers: number of blocks.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads.
        intermediate_size: width of the MLP.
        max_positions: longest context in tokens.
        activation: activation of the MLP, by its name in config.json.
        episodes: number of prompts in an update, with one response each; in supervised training
            the number of texts, or pairs of texts, of a gradient step.
        prompt_length: number of tokens of each prompt; there is no padding.
        response_length: number of generated tokens of each response.
        epochs: number of passes over the responses of an update.
        minibatches: number of minibatches per epoch, with one step of Adam each.
        learning_rate: learning rate of Adam, which is constant.
        kl_coef: coefficient β of the KL penalty in the rewards.
        missing_eos_penalty: penalty subtracted from the score of a response without EOS.
        clip_eps: clip range of the ratio and of the values.
        value_coef: coefficient of the value loss.
        gae_lambda: λ of generalised advantage estimation.
        dtype: dtype of activations, products and frozen models.
        micro_batches: number of parts of a minibatch whose gradients are accumulated.
        remat: whether blocks are computed again in the backward pass.
        shared_critic: whether the critic is a head on the actor instead of a separate model.
        attention: implementation of attention, a value of DecoderConfig.attention.
        task: kind of training, one of TASKS.
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
    attention: str = "plain"
    task: str = "ppo"

    @property
    def steps_per_update(self) -> int:
        """The number of episodes in an update, the unit that a worker counts."""
        return self.episodes

    @property
    def tokens_per_update(self) -> int:
        """The number of tokens in an update: the generated ones, because generation does not stop
        at EOS, and in supervised training all tokens of the texts."""
        return self.episodes * self.tokens_per_episode

    @property
    def tokens_per_episode(self) -> int:
        """The number of tokens of a response, a text or a pair of texts."""
        texts = {"ppo": 0, "sft": 1, "reward": 2}[self.task]
        return texts * self.text_length or self.response_length

    @property
    def text_length(self) -> int:
        """The number of tokens of a text: a prompt and its response."""
        return self.prompt_length + self.response_length

    @property
    def eos_id(self) -> int:
        """The id of EOS, the last of the vocabulary as in GPT-2."""
        return self.vocab_size - 1

    def to_json(self) -> str:
        """The size as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Size":
        """The size that a line of JSON from `to_json` describes."""
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
    # GPT-2, with 124 million parameters in each model.
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
# Supervised training of the same models: as many texts per step as a minibatch of PPO has.
_SUPERVISED = tuple(
    dataclasses.replace(
        each,
        name=f"{each.name}-{task}",
        task=task,
        episodes=each.episodes // each.minibatches // (2 if task == "reward" else 1),
    )
    for each in _ALL
    for task in ("sft", "reward")
)
SIZES: dict[str, Size] = {each.name: each for each in (*_ALL, *_SUPERVISED)}
