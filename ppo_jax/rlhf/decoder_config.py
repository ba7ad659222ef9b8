"""Architecture of a decoder-only language model: the values stored in config.json."""

import dataclasses
import math
from typing import Any, NamedTuple


class Family(NamedTuple):
    """The parts of a block that are the same in all models of a family.

    Attributes:
        learned_positions: whether the model has a table of positions, LayerNorm, and an MLP without
            a gate and with biases, instead of rotary positions, RMSNorm and a gated MLP.
        qkv_bias: whether q, k and v always have biases.
        norms: place of the norms of attention and MLP: "before" each of them, "after" each of them
            (before the sum with the residual stream), or "both".
        unit_offset: whether norms multiply by 1 + w instead of w.
        scaled_embedding: whether embeddings are multiplied by √D.
        qk_norm: the RMSNorm of queries and keys: of each "head", of "all" heads together, or
            "none".
    """

    learned_positions: bool = False
    qkv_bias: bool = False
    norms: str = "before"
    unit_offset: bool = False
    scaled_embedding: bool = False
    qk_norm: str = "none"


FAMILIES = {
    "gpt2": Family(learned_positions=True, qkv_bias=True),
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "gemma2": Family(norms="both", unit_offset=True, scaled_embedding=True),
    "gemma3_text": Family(norms="both", unit_offset=True, scaled_embedding=True, qk_norm="head"),
    "phi3": Family(),
    "smollm3": Family(),
    "olmo2": Family(norms="after", qk_norm="all"),
}
ACTIVATIONS = ("silu", "gelu", "gelu_new", "relu")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("plain", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than the one of the original training.

    Attributes:
        kind: scaling method, "linear", "llama3", "yarn" or "longrope".
        factor: divisor of the low frequencies; of all frequencies for "linear". For "longrope" the
            ratio of the longest context to the original one.
        low_freq_factor: bound of low frequencies in "llama3", those with a wavelength above
            original_max_positions / low_freq_factor.
        high_freq_factor: bound of unchanged frequencies in "llama3", those with a wavelength below
            original_max_positions / high_freq_factor.
        original_max_positions: context length of the original training, in tokens.
        beta_fast: number of rotations in the original context above which "yarn" does not change a
            frequency.
        beta_slow: number of rotations below which "yarn" divides a frequency by the factor.
        truncate: whether "yarn" rounds the bounds between these ranges to whole dimensions.
        attention_factor: number that cosines and sines are multiplied by; None for the default of
            the method.
        short_factors: divisors of the frequencies in "longrope", in contexts that are not longer
            than the original one.
        long_factors: divisors of the frequencies in longer contexts, which are stored but not used.

    Source: Grattafiori et al. 2024, The Llama 3 Herd of Models; Chen et al. 2023, Extending Context
    Window of Large Language Models via Positional Interpolation; Peng et al. 2023, YaRN; Ding et
    al. 2024, LongRoPE.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def amplitude(self) -> float:
        """The number that cosines and sines are multiplied by.

        yarn: 0.1 ln(factor) + 1; longrope: √(1 + ln(factor) / ln(C)) for the original context C; 1
        for the other methods and for factors of at most 1.

        Source: Peng et al. 2023, YaRN, section 3.4; Ding et al. 2024, LongRoPE, section 3.2.
        """
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn" and self.factor > 1:
            return 0.1 * math.log(self.factor) + 1.0
        if self.kind == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_positions))
        return 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder of one of the families; hashable, so that it can be a static argument of jit.

    The fixed parts of a family are those of `FAMILIES`; the fields describe the rest.

    Attributes:
        family: name of the family, a key of `FAMILIES`.
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
        local_rope_theta: base of the unscaled rotary frequencies of layers with a sliding window;
            None if they have the frequencies of the other layers.
        partial_rotary_factor: fraction of each head that is rotated.
        unrotated_layers: indices of the layers without rotary positions.
        sliding_window: number of keys that a query attends to, including its own; None for all
            keys up to its own.
        full_layers: indices of the layers without the sliding window.
        query_pre_attn_scalar: number whose square root divides the attention scores; None for
            head_dim.
        attention_softcap: bound c of the attention scores s, which become c tanh(s / c); None for
            no bound.
        logit_softcap: bound of the logits in the same way; None for no bound.
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
    local_rope_theta: float | None = None
    partial_rotary_factor: float = 1.0
    unrotated_layers: tuple[int, ...] = ()
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    query_pre_attn_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
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
        if self.rotary and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim):
            raise ValueError(
                f"head_dim is {self.head_dim}, of which {self.rotary_dim} elements are rotated; "
                "their number must be even, because rotary positions rotate pairs of elements"
            )
        scaling = self.rope_scaling
        if scaling and scaling.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                if 2 * len(getattr(scaling, name)) != self.rotary_dim:
                    raise ValueError(
                        f"{name} of longrope has {len(getattr(scaling, name))} numbers; it must "
                        f"have {self.rotary_dim // 2}, one for each rotary frequency"
                    )

    @property
    def structure(self) -> Family:
        """The parts that are the same in all models of the family."""
        return FAMILIES[self.family]

    @property
    def rotary(self) -> bool:
        """Whether the model has rotary positions."""
        return not self.structure.learned_positions

    @property
    def rotary_dim(self) -> int:
        """The number of elements of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.structure.qkv_bias or self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.structure.learned_positions or self.attention_bias

    @property
    def context(self) -> int:
        """The longest context in tokens that is computed.

        With longrope it is the original context, because the frequencies of longer texts differ.
        """
        scaling = self.rope_scaling
        if scaling and scaling.kind == "longrope":
            return min(self.max_positions, scaling.original_max_positions)
        return self.max_positions

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer; None if the layer attends to all earlier tokens."""
        return None if layer in self.full_layers else self.sliding_window

    def rotation(self, layer: int) -> str:
        """The rotary frequencies of a layer: "none", "local" or "global"."""
        if not self.rotary or layer in self.unrotated_layers:
            return "none"
        local = self.local_rope_theta is not None and self.window(layer) is not None
        return "local" if local else "global"

    def architecture(self) -> "DecoderConfig":
        """The config without special tokens, dtype and other values that change no parameter."""
        plain: dict[str, Any] = {"bos_id": None, "eos_ids": (), "pad_id": None, "init_std": 0.02}
        plain |= {"dtype": "float32", "remat": False, "attention": "plain"}
        return dataclasses.replace(self, **plain)


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
