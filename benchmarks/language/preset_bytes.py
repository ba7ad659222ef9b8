"""Memory that the published presets of PPO on a language model need, counted without running them.

python -m benchmarks.language.preset_bytes     writes benchmarks/results/rlhf_presets.csv and prints
                                               the table of docs/rlhf.md
"""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.language.role_bytes import examples, readable, role_bytes
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.rlhf import algorithms, train
from ppo_jax.rlhf.decoder import Decoder, DecoderConfig
from ppo_jax.rlhf.policy import TokenInputs, make_policy

RESULTS = Path(__file__).parent.parent / "results" / "rlhf_presets.csv"
# Size of the published model in `role_bytes.examples`, and its longest prompt in tokens:
# DeepSpeed-Chat, run_1.3b.sh; Ouyang et al. 2022, appendix C (a context of 2,000 tokens); Huang et
# al. 2024, task.query_length; openai/lm-human-preferences, launch.py, query_length.
PUBLISHED = {
    "deepspeed_chat": ("1.3 B", 256),
    "instructgpt": ("1.3 B", 1000),
    "n_plus": ("1.3 B", 512),
    "lm_human_preferences": ("125 M", 64),
}
# Rows of a micro-batch in the column "with micro-batches".
MICRO = 4


def activation_bytes(
    config: DecoderConfig, prompt: int, length: int, remat: bool
) -> tuple[int, int]:
    """Bytes per response that the backward pass of actor and critic keeps from the forward pass.

    The arrays are those of automatic differentiation; the compiler may keep fewer. They are counted
    for one and two layers and extrapolated, because all layers are equal.

    Args:
        config: architecture of both models.
        prompt: P, number of columns of the prompts.
        length: L, number of tokens of the responses.
        remat: whether each block is recomputed in the backward pass.

    Returns:
        (bytes of everything but the layers, bytes of each layer).
    """

    def kept(layers: int, rows: int) -> int:
        decoder = Decoder(dataclasses.replace(config, num_layers=layers, remat=remat))
        policy = make_policy(decoder, decoder, length=length)
        tokens = jax.ShapeDtypeStruct((rows, 1, prompt + length), jnp.int32)
        actor = jax.eval_shape(decoder.init, jax.random.key(0))
        params = {"actor": actor, "critic": jax.eval_shape(decoder.with_score, actor)}

        def residuals(params: Any, tokens: jax.Array) -> Any:
            def outputs(params: Any) -> Any:
                dist, value = policy.apply(params, TokenInputs(tokens, jnp.ones_like(tokens)))
                return dist.log_prob_and_entropy(tokens[:, 0, -length:]), value

            return jax.tree.leaves(jax.vjp(outputs, params)[1])

        found = jax.eval_shape(residuals, params, tokens)
        return sum(x.size * x.dtype.itemsize for x in found)

    def per_row(layers: int) -> int:
        return (kept(layers, 128) - kept(layers, 64)) // 64

    one, two = per_row(1), per_row(2)
    return 2 * one - two, two - one


def row_of(name: str) -> dict[str, Any]:
    """The numbers of a preset, in bytes where the name does not state another unit."""
    size, prompt = PUBLISHED[name]
    config = examples()[size]
    fields = {kind: kind.__dataclass_fields__ for kind in (train.Config, algorithms.Config)}
    options, hyper = (
        kind(**{k: v for k, v in PRESETS[name].items() if k in known})
        for kind, known in fields.items()
    )
    responses, columns = options.num_prompts * options.group_size, prompt + options.max_new_tokens
    part = train.rollout_batch(options, Decoder(config), prompt)
    bytes_of = role_bytes(config, responses, columns)
    rows = responses // hyper.minibatches
    length, layers = options.max_new_tokens, config.num_layers
    rest, layer = activation_bytes(config, prompt, length, remat=False)
    least, block = activation_bytes(config, prompt, length, remat=True)
    micro = MICRO * (least + layers * block + layer)  # one layer at a time is recomputed
    cache = role_bytes(config, part, columns)["cache"]
    models = sum(bytes_of[role] for role in ("actor", "critic", "reference", "reward"))
    return {
        "preset": name,
        "model": size,
        "responses": responses,
        "columns": columns,
        "models": models,
        "cache_of_all": bytes_of["cache"],
        "rollout_batch": part,
        "cache_of_a_part": cache,
        "minibatch_rows": rows,
        "activations": rows * (rest + layers * layer),
        "micro_batches": rows // MICRO,
        "activations_micro_remat": micro,
        "total_micro_remat": models + max(cache, micro),  # rollout and update alternate
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/rlhf.md."""
    names = (
        "preset", "model", "responses x tokens", "four models", "cache, all at once",
        "cache, default parts", "activations of a minibatch", "with micro-batches and remat",
        "total",
    )  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        size = {k: readable(int(row[k])) for k in row if k not in ("preset", "model")}
        lines.append(
            f"| `{row['preset']}` | {row['model']} | {row['responses']} x {row['columns']} "
            f"| {size['models']} | {size['cache_of_all']} "
            f"| {size['cache_of_a_part']} ({row['rollout_batch']} responses) "
            f"| {size['activations']} ({row['minibatch_rows']} responses) "
            f"| {size['activations_micro_remat']} (`--micro-batches {row['micro_batches']}`) "
            f"| {size['total_micro_remat']} |"
        )
    return "\n".join(lines) + "\n"


def stored() -> list[dict[str, Any]]:
    """The rows of the result file."""
    with RESULTS.open(newline="") as file:
        return [*csv.DictReader(file)]


if __name__ == "__main__":
    rows = [row_of(name) for name in PRESETS]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(markdown(stored()), end="")
