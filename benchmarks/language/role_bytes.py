"""Bytes that the four models of PPO on a language model need, counted from the config alone.

python -m benchmarks.language.role_bytes     prints the table of docs/rlhf.md
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from ppo_jax.rlhf.decoder import Decoder, DecoderConfig, small

BYTES = {"float32": 4, "bfloat16": 2}
# Rows generated at a time and columns of the cache: those of the default run, and of the others.
SMALL, LARGE = (512, 32), (64, 1024)


def num_params(config: DecoderConfig, scoring: bool = False) -> int:
    """Numbers in a model, with its head, or with a score head in place of that."""
    decoder = Decoder(config)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    if scoring:
        params = jax.eval_shape(decoder.with_score, params)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def role_bytes(
    config: DecoderConfig, batch: int, length: int, param_dtype: str = "float32"
) -> dict[str, int]:
    """Bytes of each role, without activations.

    A trained model of n parameters holds itself, its gradient and Adam's two moments, all in the
    dtype of the parameters: 4 n numbers. A frozen one holds n. The cache holds keys and values of
    `length` columns: 2 · layers · B · K · length · head_dim.

    Args:
        config: of all four models; its dtype is that of the cache.
        batch: B, rows generated at a time.
        length: columns of the cache, prompt and response.
        param_dtype: "float32" or "bfloat16".

    Returns:
        actor, critic (both trained), reference, reward (both frozen), cache; and logits, what
        [B, length, V] in float32 would take if they were kept, which they are not.

    Source: Kingma & Ba 2015, Adam (the moments); Rajbhandari et al. 2020, ZeRO, section 3.1.
    """
    size = BYTES[param_dtype]
    policy, scorer = size * num_params(config), size * num_params(config, scoring=True)
    columns = config.num_layers * batch * config.num_kv_heads * length * config.head_dim
    return {
        "actor": 4 * policy,
        "critic": 4 * scorer,
        "reference": policy,
        "reward": scorer,
        "cache": 2 * BYTES[config.dtype] * columns,
        "logits": 4 * batch * length * config.vocab_size,
    }


def table(rows: Mapping[str, dict[str, int]]) -> str:
    """A Markdown table of `role_bytes` by name, in units that fit."""
    roles = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(roles) + " |", "|---" * (len(roles) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(readable(row[role]) for role in roles) + " |")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The table of docs/rlhf.md, in float32."""
    sizes = {name: SMALL if name == "94 k" else LARGE for name in examples()}
    return table({name: role_bytes(c, *sizes[name]) for name, c in examples().items()})


def readable(count: int) -> str:
    """Bytes in the largest unit of a thousand that leaves a digit before the point."""
    if count < 1000:
        return f"{count} B"
    power = min(4, int(np.log10(count) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def examples() -> dict[str, DecoderConfig]:
    """Four sizes: `small`, GPT-2, the same grown to 1.3 billion parameters, and LLaMA 7B."""
    gpt2: dict = {"family": "gpt2", "vocab_size": 50_257, "activation": "gelu_new"}
    return {
        "94 k": small(29),
        "125 M": DecoderConfig(**gpt2, **_wide(768, 12, 12, 3072), max_positions=1024),
        "1.3 B": DecoderConfig(**gpt2, **_wide(2048, 24, 32, 8192), max_positions=2048),
        "7 B": DecoderConfig(
            family="llama",
            vocab_size=32_000,
            **_wide(4096, 32, 32, 11_008),
            max_positions=4096,
            tied=False,
        ),
    }


def _wide(size: int, layers: int, heads: int, inner: int) -> dict:
    return {
        "hidden_size": size,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size // heads,
        "intermediate_size": inner,
    }


if __name__ == "__main__":
    print(markdown(), end="")
