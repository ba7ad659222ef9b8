"""KL divergence from the starting model after fine-tuning and PPO with the default learning rates.

python -m benchmarks.language.defaults

A character-level model (94 k parameters) is trained on the words of Python's documentation. It is
then fine-tuned on the words of at least eight letters, or trained by PPO with the number of vowels
as the reward, both with the default options and with two learning rates: the default, and the one
that was the default before. Results: language_defaults.csv.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.table import RESULTS, Row, replace
from ppo_jax.rlhf import algorithms, corpus, rewards, supervised, train
from ppo_jax.rlhf.data import prompt_arrays, sft_arrays
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.formats import from_lines
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.types import Params

LENGTH = 14  # maximum number of tokens of a response
RESPONSES = 512  # number of responses with which the KL divergence is estimated
UPDATES = {"sft": 200, "ppo": 10}
RATES = {"sft": (supervised.Config.learning_rate, 1e-3), "ppo": (1e-5, 3e-4)}


def fine_tuned(decoder: Decoder, params: Params, lines: list[str], **options: Any) -> Params:
    """Parameters after supervised fine-tuning on lines of text."""
    tokenizer = corpus.tokenizer_of(corpus.words())
    rows = supervised.text_rows(*sft_arrays(from_lines(lines), tokenizer, 64))
    rows = jax.tree.map(jnp.asarray, rows)
    config = supervised.Config(**options)
    step = supervised.make_step(supervised.make_text_loss(decoder), config)

    @jax.jit
    def run(state: Any) -> Any:
        body = lambda state, _: (step(state, {"rows": rows})[0], None)
        return jax.lax.scan(body, state, None, config.updates)[0]

    state = run(supervised.init(jax.random.key(0), params, config))
    found: Params = state.learner.params
    return found


def programs(decoder: Decoder, start: Params, rate: float) -> train.LanguageProgram:
    """PPO from a model, with the number of vowels as the reward."""
    tokenizer = corpus.tokenizer_of(corpus.words())
    vowels = jnp.asarray([tokenizer.ids[c] for c in corpus.VOWELS])

    def score(frozen: Any, inputs: Any, length: int) -> jax.Array:
        tokens, mask = inputs.tokens[:, 0, -length:], inputs.mask[:, 0, -length:]
        return jnp.sum(jnp.isin(tokens, vowels) & (mask > 0), axis=1).astype(jnp.float32)

    models = train.Models(
        decoder, start, decoder, decoder.with_score(start), start, Reward((), score)
    )
    prompts = prompt_arrays(corpus.first_letters(corpus.words()), tokenizer, 8)
    return train.build(
        models,
        *prompts,
        train.Config(max_new_tokens=LENGTH, updates=UPDATES["ppo"]),
        hyper=algorithms.Config(learning_rate=rate),
        eos_id=tokenizer.eos_id,
    )


def divergence(program: train.LanguageProgram, params: Params) -> tuple[float, float]:
    """(KL per response in nats, mean number of vowels) of a policy, from its own responses."""
    rows = np.arange(RESPONSES) * 5 % len(program.frozen["prompts"])
    prompts = (program.frozen["prompts"][rows], program.frozen["prompt_mask"][rows])
    said = jax.jit(program.respond)(jax.random.key(1), params, program.frozen, prompts)
    kl = rewards.sequence_kl(said.log_prob - said.ref_log_prob, said.mask)
    return float(jnp.mean(kl)), float(jnp.mean(said.raw_score))


def measure() -> list[Row]:
    """Rows of the table, one for each stage and learning rate."""
    words = corpus.words()
    decoder = Decoder(small(corpus.tokenizer_of(words).vocab_size, tied=False))
    blank = decoder.init(jax.random.key(0))
    start = fine_tuned(decoder, blank, words, updates=500, learning_rate=3e-3)
    long = [word for word in words if len(word) >= 8]
    found = []
    for stage, rates in RATES.items():
        for rate in rates:
            program = programs(decoder, start, float(rate))
            state = program.init(jax.random.key(0))
            params = state.learner.params
            if stage == "sft":
                options = {"updates": UPDATES["sft"], "learning_rate": rate}
                params = {**params, "actor": fine_tuned(decoder, start, long, **options)}
            else:
                step = jax.jit(program.step)
                for _ in range(UPDATES["ppo"]):
                    state, _ = step(state, program.frozen)
                params = state.learner.params
            kl, score = divergence(program, params)
            found.append(
                {
                    "stage": stage,
                    "learning_rate": float(rate),
                    "updates": UPDATES[stage],
                    "kl_per_response": f"{kl:.3f}",
                    "vowels": f"{score:.2f}",
                }
            )
            print(*found[-1].values(), sep=" | ", flush=True)
    return found


def main() -> None:
    """Measure and write the CSV file."""
    path = RESULTS / "language_defaults.csv"
    stages = [*UPDATES]
    place = lambda row: (stages.index(row["stage"]), float(row["learning_rate"]))
    replace(path, measure(), ("stage", "learning_rate"), place)


if __name__ == "__main__":
    main()
