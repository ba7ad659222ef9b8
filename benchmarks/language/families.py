"""The largest differences between our decoders and transformers, for a model of each family.

python -m benchmarks.language.families                   compare all models
python -m benchmarks.language.families --table           print the committed results

The folders and arrays are those of `tests/golden/llm`, made by transformers 5.23 and 5.24 in
float32 on a CPU.
"""

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_io import load_model, to_tensors
from ppo_jax.types import Params

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/llm"
RESULTS = ROOT / "benchmarks/results/language_families.csv"
COLUMNS = ("model", "family", "logits", "log_probs", "gradient_norm", "greedy_tokens")
NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        golden: folder with arrays.npz, newer.npz and a folder for each model.
        table: whether the committed results are printed instead.
    """

    golden: Path = GOLDEN
    table: bool = False


def cases(folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The names of the language models and their arrays."""
    for file in ("arrays.npz", "newer.npz"):
        with np.load(folder / file) as arrays:
            for name in sorted({key.split("/")[0] for key in arrays.files}):
                found = {
                    k.split("/", 1)[1]: arrays[k] for k in arrays.files if k.startswith(f"{name}/")
                }
                if "greedy_tokens" in found and (folder / name).is_dir():
                    yield name, found


def compare(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """One row of the table.

    Args:
        folder: folder of the model.
        arrays: results of transformers for it.
    """
    decoder, params = load_model(folder)
    apply, found = jax.jit(decoder.apply), 0.0
    for side in ("", "left_", "right_"):
        tokens = arrays[f"{side}input_ids"]
        mask = arrays[f"{side}attention_mask"] if side else np.ones_like(tokens)
        logits = np.where(mask[..., None] > 0, apply(params, tokens, mask), 0)
        found = max(found, float(np.abs(logits - arrays[f"{side}logits"]).max()))
    log_prob, norm = _loss(decoder, params, arrays["input_ids"])
    return {
        "model": folder.name,
        "family": json.loads((folder / "config.json").read_text())["model_type"],
        "logits": f"{found:.1e}",
        "log_probs": f"{np.abs(log_prob - arrays['token_logprobs']).max():.1e}",
        "gradient_norm": f"{abs(norm / arrays['grad_global_norm'] - 1):.1e}",
        "greedy_tokens": _greedy(decoder, params, arrays),
    }


def _loss(decoder: Decoder, params: Params, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-probabilities of the tokens, and the norm of the gradient of their mean."""

    def loss(params: Params) -> Any:
        hidden = decoder.hidden(params, tokens)[:, :-1]
        log_prob = decoder.distribution(params, hidden).log_prob(tokens[:, 1:])
        return -log_prob.mean(), log_prob

    gradient, log_prob = jax.jit(jax.grad(loss, has_aux=True))(params)
    squares = [np.sum(x.astype(np.float64) ** 2) for x in to_tensors(decoder, gradient).values()]
    return np.asarray(log_prob), float(np.sqrt(sum(squares)))


def _greedy(decoder: Decoder, params: Params, arrays: dict[str, np.ndarray]) -> str:
    """The number of equal tokens among those of generation with and without left padding."""

    def write(params: Params, prompt: np.ndarray, mask: np.ndarray) -> Any:
        return generate(
            jax.random.key(0),
            params,
            prompt,
            mask,
            decoder=decoder,
            max_new_tokens=NEW_TOKENS,
            temperature=0.0,
            eos_id=None,
        ).tokens

    run, same, total = jax.jit(write), 0, 0
    for side in ("", "left_"):
        prompt = arrays[f"{side}input_ids"]
        mask = arrays[f"{side}attention_mask"] if side else np.ones_like(prompt)
        expected = arrays[f"{side}greedy_tokens"]
        same += int((np.asarray(run(params, prompt, mask)) == expected).sum())
        total += expected.size
    return f"{same} of {total}"


def markdown() -> str:
    """The committed results as a table of the documentation."""
    with RESULTS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [
        "| model | `model_type` | logits | log-probabilities | gradient norm, relative "
        "| equal greedy tokens |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row[column] for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def main(options: Options) -> None:
    """Compare all models and write the results, or print the committed ones."""
    if not options.table:
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for name, arrays in cases(options.golden):
                writer.writerow(compare(options.golden / name, arrays))
                file.flush()
    print(markdown())


if __name__ == "__main__":
    main(tyro.cli(Options))
