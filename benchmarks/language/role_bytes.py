"""Memory of the four models of PPO on a language model, computed from the config.

python -m benchmarks.language.role_bytes     prints the table of docs/rlhf.md
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from ppo_jax.rlhf.decoder import Decoder, DecoderConfig, small

BYTES = {"float32": 4, "bfloat16": 2}
# (rows generated at a time, columns of the cache) of the demo and of the larger examples.
SMALL, LARGE = (512, 32), (64, 1024)


def num_params(config: DecoderConfig, scoring: bool = False) -> int:
    """The number of parameters of a model with a head, or with a score head instead."""
    decoder = Decoder(config)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    if scoring:
        params = jax.eval_shape(decoder.with_score, params)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def role_bytes(
    config: DecoderConfig, batch: int, length: int, param_dtype: str = "float32"
) -> dict[str, int]:
    """Bytes of each model, without activations.

    A trained model of n parameters needs 4 n numbers in the dtype of the parameters: the
    parameters, their gradient, and the first and second moments of Adam. A frozen model needs n.
    The cache contains keys and values of `length` columns: 2 · layers · B · K · length · head_dim.

    Args:
        config: architecture of all four models; its dtype is that of the cache.
        batch: B, the number of rows generated at a time.
        length: number of columns of the cache, for prompt and response.
        param_dtype: dtype of the parameters, "float32" or "bfloat16".

    Returns:
        Bytes by name: actor and critic, which are trained; reference and reward, which are frozen;
        cache; and logits, the size of [B, length, V] in float32, which are never stored as a whole.

    Source: Kingma & Ba 2015, Adam; Rajbhandari et al. 2020, ZeRO, section 3.1.
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
    """A Markdown table of results of `role_bytes` by name, in suitable units."""
    roles = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(roles) + " |", "|---" * (len(roles) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(readable(row[role]) for role in roles) + " |")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The table of docs/rlhf.md, with parameters in float32."""
    sizes = {name: SMALL if name == "94 k" else LARGE for name in examples()}
    return table({name: role_bytes(c, *sizes[name]) for name, c in examples().items()})


def readable(count: int) -> str:
    """A number of bytes in the largest unit for which the number is at least 1."""
    if count < 1000:
        return f"{count} B"
    power = min(4, int(np.log10(count) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def examples() -> dict[str, DecoderConfig]:
    """Four sizes: `small`, GPT-2, a GPT-2 with 1.3 billion parameters, and LLaMA 7B."""
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
