"""Architecture of a decoder-only language model: the values stored in config.json."""

import dataclasses

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
ACTIVATIONS = ("silu", "gelu", "gelu_new", "relu")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("plain", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than the one of the original training.

    Attributes:
        kind: scaling method, "llama3" or "linear".
        factor: divisor of the low frequencies; of all frequencies for "linear".
        low_freq_factor: a wavelength above original_max_positions / low_freq_factor belongs to a
            low frequency.
        high_freq_factor: a wavelength below original_max_positions / high_freq_factor stays
            unchanged.
        original_max_positions: context length of the original training, in tokens.

    Source: Grattafiori et al. 2024, The Llama 3 Herd of Models; Chen et al. 2023, Extending Context
    Window of Large Language Models via Positional Interpolation.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder of one of four families; hashable, so that it can be a static argument of jit.

    gpt2 has learned positions, LayerNorm and biases; the others have rotary positions, RMSNorm and
    a gated MLP. qwen2 adds biases to q, k and v; mistral usually has a sliding window.

    Attributes:
        family: name of the family, "gpt2", "llama", "mistral" or "qwen2".
        vocab_size: V, number of rows of the embedding.
        hidden_size: D, size of the hidden states.
        num_layers: number of blocks.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads, which divides num_heads.
        head_dim: size of one head.
        intermediate_size: width of the MLP.
        max_positions: longest context in tokens; for gpt2 the number of rows of its position table.
        norm_eps: ε of the norms.
        tied: whether the head is the transposed embedding.
        rope_theta: base of the rotary frequencies.
        rope_scaling: scaling of the rotary frequencies; None for unscaled ones.
        sliding_window: number of keys that a query attends to, including its own; None for all
            keys up to its own.
        window_from: index of the first layer with the sliding window.
        activation: activation of the MLP: "silu", "gelu" (exact), "gelu_new" (tanh) or "relu".
        attention_bias: whether q, k, v and o have biases in a family that has none by default.
        mlp_bias: whether the MLP has biases in a family that has none by default.
        bos_id, pad_id: ids of special tokens; None for a token that the model does not have.
        eos_ids: ids of the tokens that end a text.
        dtype: dtype of the computation, "float32" or "bfloat16"; norms, softmax and logits are
            float32.
        remat: whether each block is recomputed in the backward pass, which saves the memory of its
            activations.
        init_std: standard deviation of fresh weights.
        attention: implementation of attention over more than one query per row: "plain", "xla" or
            "cudnn", see `attention.attend`.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int = 1024
    norm_eps: float = 1e-5
    tied: bool = True
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    window_from: int = 0
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    dtype: str = "float32"
    remat: bool = False
    init_std: float = 0.02
    attention: str = "plain"

    def __post_init__(self) -> None:
        """Refuse values that no model can have.

        Raises:
            ValueError: a field has an impossible value; the message names the field, its value and
                the allowed ones.
        """
        for name, allowed in (
            ("family", FAMILIES),
            ("activation", ACTIVATIONS),
            ("dtype", DTYPES),
            ("attention", ATTENTIONS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of: {', '.join(allowed)}")
        if self.attention == "cudnn" and (self.dtype != "bfloat16" or self.head_dim % 8):
            raise ValueError(
                "attention is 'cudnn', which needs dtype bfloat16 and a head_dim divisible by 8, "
                f"but dtype is {self.dtype} and head_dim is {self.head_dim}; use 'plain'"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}, which must divide num_heads "
                f"{self.num_heads}: each key head serves the same number of query heads"
            )
        if self.family != "gpt2" and self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}; it must be even, because rotary positions rotate "
                "pairs of elements"
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.family in ("gpt2", "qwen2") or self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.family == "gpt2" or self.attention_bias

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer; None if the layer attends to all earlier tokens."""
        return self.sliding_window if layer >= self.window_from else None


def small(
    vocab_size: int,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    *,
    num_kv_heads: int = 2,
    **fields,
) -> DecoderConfig:
    """A LLaMA for one or two CPU cores; about 94,000 parameters with a vocabulary of 29.

    Args:
        vocab_size: V, number of rows of the embedding.
        hidden_size: D, size of the hidden states.
        num_layers: number of blocks.
        num_heads: number of query heads, each of size D / num_heads.
        num_kv_heads: number of key and value heads.
        **fields: values of any other fields of DecoderConfig.

    Returns:
        The config of family "llama".
    """
    defaults: dict = {
        "head_dim": hidden_size // num_heads,
        "intermediate_size": 8 * ((8 * hidden_size // 3 + 7) // 8),
        "max_positions": 512,
    }
    return DecoderConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        **(defaults | fields),
    )
