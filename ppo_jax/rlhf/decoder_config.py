"""What a decoder-only language model is made of: the numbers that config.json holds."""

import dataclasses

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
ACTIVATIONS = ("silu", "gelu", "gelu_new", "relu")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of the first training.

    Attributes:
        kind: "llama3" or "linear".
        factor: what the slow frequencies ("linear": all of them) are divided by.
        low_freq_factor: wavelengths above original_max_positions / this are slow.
        high_freq_factor: wavelengths below original_max_positions / this are left alone.
        original_max_positions: the context of the first training.

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
    """A decoder of one of four families; hashable, so that jit can take it as static.

    gpt2 has learned positions, LayerNorm and biases; the others have rotary positions, RMSNorm and
    a gated MLP. qwen2 adds biases to q, k and v, mistral usually a sliding window.

    Attributes:
        family: "gpt2", "llama", "mistral" or "qwen2".
        vocab_size: V, rows of the embedding.
        hidden_size: D.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads, which divide num_heads.
        head_dim: size of a head.
        intermediate_size: width of the MLP.
        max_positions: the longest context; for gpt2 the rows of its position table.
        norm_eps: ε of the norms.
        tied: whether the head is the transposed embedding.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched; None if they are not.
        sliding_window: keys a query can see, itself included; None is all before it.
        window_from: the first layer with the window.
        activation: of the MLP: "silu", "gelu" (exact), "gelu_new" (tanh) or "relu".
        attention_bias: biases on q, k, v and o, in a family that has none by itself.
        mlp_bias: biases in the MLP, likewise.
        bos_id, pad_id: special tokens; None where there is none.
        eos_ids: tokens that end a text.
        dtype: of the computation, "float32" or "bfloat16"; norms, softmax and logits are float32.
        remat: recompute each block in the backward pass rather than keep its activations.
        init_std: standard deviation of fresh weights.
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

    def __post_init__(self) -> None:
        """Refuse what no model can be.

        Raises:
            ValueError: names the field, what it was and what it can be.
        """
        for name, allowed in (
            ("family", FAMILIES),
            ("activation", ACTIVATIONS),
            ("dtype", DTYPES),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; there are: {', '.join(allowed)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}, which must divide num_heads "
                f"{self.num_heads}: each key head serves equally many query heads"
            )
        if self.family != "gpt2" and self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}; rotary positions turn pairs, so it must be even"
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to q, k and v have biases."""
        return self.family in ("gpt2", "qwen2") or self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether the projection after attention has a bias."""
        return self.family == "gpt2" or self.attention_bias

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, None if it sees everything before it."""
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
        vocab_size: V.
        hidden_size: D.
        num_layers: blocks.
        num_heads: query heads, D / num_heads wide.
        num_kv_heads: key and value heads.
        **fields: any other field of DecoderConfig.
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
