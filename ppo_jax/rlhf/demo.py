"""All stages of RLHF on a small example: fine-tuning, preferences, a reward model, PPO.

A character-level decoder is fine-tuned on words, noisy preferences between its samples are drawn
with a known gold rule, a reward model is trained on them, and PPO optimises the reward. The result
is compared with the optimal objective of any policy, J* = β log E_ref exp(r / β).
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ppo_jax import precision
from ppo_jax.config import commands
from ppo_jax.config.rlhf import Demo as DemoConfig
from ppo_jax.rlhf import algorithms, held_out, optimum, stages, supervised, train
from ppo_jax.rlhf.corpus import first_letters, gold_score, noisy_preferences, tokenizer_of, words
from ppo_jax.rlhf.data import preference_arrays, prompt_arrays, sft_arrays
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.folder import RunOptions, flat, open_directory, run
from ppo_jax.rlhf.formats import DataError, Prompt, from_lines, read
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.rollout import Responses, kl_of, shape_scores
from ppo_jax.rlhf.scoring import Reward, from_model
from ppo_jax.rlhf.stages import HeldOutRows, Language
from ppo_jax.runs import provenance, terminal
from ppo_jax.runs.checkpoint import write_json
from ppo_jax.runs.job import Job
from ppo_jax.runs.signals import Signals
from ppo_jax.types import Params, TrainState

LENGTH = 14  # maximum number of tokens of a response, including EOS
WIDTH = 512  # number of words that are sampled at a time
NORMALISATION = 2048  # number of sampled words that determine the reward model's mean and scale
UNSEEN = 2000  # number of pairs that the accuracy of the reward model is measured on
HELD_OUT = 0.05  # fraction of the texts and of the pairs that is held out for evaluations
KEPT = "between_stages.json"
# Folded into the seed, for the PRNG key of the samples that are compared.
PREFERENCES = 0x9F3E


class _Story(NamedTuple):
    """The values that all stages of a demo share.

    Attributes:
        path: folder of the demo, with a folder for each stage in it.
        config: sizes and hyperparameters.
        lines: training texts.
        language: the character tokenizer.
        decoder: architecture of all four models.
        options: options of the run of each stage.
        signals: handlers of the signals that stop a stage.
    """

    path: Path
    config: DemoConfig
    lines: list[str]
    language: Language
    decoder: Decoder
    options: RunOptions
    signals: Signals


class _Stopped(Exception):
    """Raised when a signal stopped a stage after saving it; its argument is the exit code."""


def demo(config: DemoConfig, options: RunOptions) -> int:
    """Run all stages, or resume them where they were stopped.

    Args:
        config: sizes and hyperparameters.
        options: options of the run; `resume` is the folder of an earlier demo.

    Returns:
        Exit code: 0, or 128 + the number of the signal that stopped the demo.
    """
    started = time.perf_counter()
    lines = words() if config.data is None else _lines_of(config.data)
    with open_directory("demo", options, flat(config)) as directory, Signals() as signals:
        tokenizer = tokenizer_of(lines)
        decoder = Decoder(small(tokenizer.vocab_size, eos_ids=(tokenizer.eos_id,), tied=False))
        story = _Story(
            directory.path, config, lines, Language(tokenizer), decoder, options, signals
        )
        try:
            found = precision.apply(config.matmul_precision, _tell)(story)
        except _Stopped as stopped:
            again = commands.command("rlhf", "demo", "--resume", directory.path)
            terminal.say(f"stopped; continue with: {again}")
            return int(stopped.args[0])
        found |= {
            "seconds": round(time.perf_counter() - started, 1),
            "seed": config.seed,
            **provenance.record(config.matmul_precision),
        }
        write_json(directory.path / "summary.json", found)
        _print(found, directory.path)
    return signals.exit_code


def _lines_of(path: Path) -> list[str]:
    """The training texts in a file.

    Raises:
        DataError: the file cannot be read, is empty, or contains conversations.
    """
    found = [x.completion for x in read(path, "sft")]
    lines = [line for line in found if isinstance(line, str)]
    if len(lines) < len(found):
        raise DataError(f"{path}: the demo needs plain text with one training example per line")
    return lines


def _tell(story: _Story) -> dict[str, Any]:
    """Run the stages one after the other; returns the content of summary.json."""
    params = _fine_tune(story)
    reward, learned = _learn_preferences(story, params)
    models = train.Models(
        actor=story.decoder,
        actor_params=params,
        critic=story.decoder,
        critic_params=stages.zero_head(reward.frozen["params"]),
        reference_params=params,
        reward=reward,
    )
    return learned | _optimise(story, models)


def _fine_tune(story: _Story) -> Params:
    """Parameters of a decoder that is fine-tuned on the training texts."""
    some = story.lines[:: max(1, len(story.lines) // 6)][:6]
    terminal.say(
        f"1. supervised fine-tuning on {len(story.lines):,} lines such as {', '.join(some)}"
    )
    config = supervised.Config(
        updates=story.config.sft_updates, learning_rate=3e-3, length_buckets=1
    )
    training, others = held_out.split(from_lines(story.lines), HELD_OUT)
    rows, unseen = (
        supervised.text_rows(*sft_arrays(x, story.language.tokenizer, 512))
        for x in (training, others.examples)
    )
    key = jax.random.key(story.config.seed)
    stage = stages.fine_tuning(
        story.decoder,
        story.decoder.init(key),
        rows,
        config,
        held_out=HeldOutRows(unseen, others.about),
        seed=story.config.seed,
        language=story.language,
    )
    return _run(story, stage, dataclasses.asdict(config)).learner.params


def _learn_preferences(story: _Story, params: Params) -> tuple[Reward, dict[str, Any]]:
    """A reward model trained on noisy preferences between samples and normalised on others."""
    config, tokenizer = story.config, story.language.tokenizer
    key = jax.random.fold_in(jax.random.key(config.seed), PREFERENCES)
    count = config.preferences
    write_key, preference_key = jax.random.split(key)
    samples = 2 * count + NORMALISATION
    texts = _kept(story, "texts", lambda: _write(story, params, write_key, samples))
    pairs = _pairs(preference_key, texts[: 2 * count])
    agreement = _in_gold_order(pairs)
    terminal.say(
        f"2. training a reward model on {count:,} preference pairs, of which {agreement:.0%} "
        "agree with the gold rule"
    )
    steps = supervised.Config(updates=config.reward_updates, learning_rate=1e-3, length_buckets=1)
    training, others = held_out.split(pairs, HELD_OUT)
    rows, unseen = (
        supervised.preference_rows(*preference_arrays(x, tokenizer, 512))
        for x in (training, others.examples)
    )
    stage = stages.reward_model(
        story.decoder,
        story.decoder.with_score(params, jax.random.key(config.seed + 1)),
        rows,
        steps,
        held_out=HeldOutRows(unseen, others.about),
        center=0.0,
        seed=config.seed,
        language=story.language,
    )
    state = _run(story, stage, dataclasses.asdict(steps))

    def moments() -> list[float]:
        scores = _scores(story, state.learner.params, texts[2 * count :])
        return [float(scores.mean()), float(scores.std())]

    mean, deviation = _kept(story, "normalisation", moments)
    stages.write_normalisation(story.path / "reward" / "model", mean, deviation)
    write_key, preference_key = jax.random.split(jax.random.fold_in(key, 1))
    further = _pairs(preference_key, _write(story, params, write_key, 2 * UNSEEN))
    learned = _accuracy(story, state.learner.params, further)
    return from_model(story.decoder, state.learner.params, mean, deviation), learned


def _kept(story: _Story, name: str, make: Callable[[], Any]) -> Any:
    """A result of one stage that is part of the data of another one.

    A resumed demo reads it from the file `KEPT`. Computed again on other devices or cores, it could
    differ by rounding, and the checkpoints of the next stage would belong to other data.

    Raises:
        DataError: the file is damaged.
    """
    path = story.path / KEPT
    try:
        values = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); start the demo again") from error
    if name not in values:
        values[name] = make()
        write_json(path, values)
    return values[name]


def _optimise(story: _Story, models: train.Models) -> dict[str, Any]:
    """Optimise the reward with PPO and compare the result with the optimum."""
    demo, tokenizer = story.config, story.language.tokenizer
    terminal.say(
        f"3. optimising the reward with PPO: {demo.updates} updates of {demo.responses} responses"
    )
    config = train.Config(
        updates=demo.updates,
        num_prompts=demo.responses,
        max_new_tokens=LENGTH,
        kl_coef=demo.kl_coef,
        reward_clip=5.0,
        missing_eos_penalty=1.0,
    )
    hyper = algorithms.Config(learning_rate=demo.learning_rate)
    prompts = prompt_arrays(first_letters(story.lines), tokenizer, 8)
    program = train.build(models, *prompts, config, hyper=hyper, eos_id=tokenizer.eos_id)
    stage = stages.optimisation(
        program, models, config, seed=demo.seed, language=story.language, eval_responses=4096
    )
    state = _run(story, stage, dataclasses.asdict(config) | dataclasses.asdict(hyper))
    return _beside_the_optimum(story, program, state, story.lines)


def _run(story: _Story, job: Job, identity: dict[str, Any]) -> TrainState:
    """Run a stage in its folder, or resume it where it was stopped.

    Raises:
        _Stopped: a signal stopped the stage.
    """
    path, kind = story.path / job.name, job.name
    resumed = (path / "config.json").exists()
    where: dict[str, Any] = {"resume": path} if resumed else {"run_dir": path, "resume": None}
    options = dataclasses.replace(story.options, **{"run_dir": None, "overwrite": False} | where)
    settled = {"seed": story.config.seed, "matmul_precision": story.config.matmul_precision}
    config = flat(identity) | settled
    with open_directory(kind, options, config) as directory:
        result = run(
            job, kind, config, directory, options=options, signals=story.signals, resume=""
        )
    if result.exit_code:
        raise _Stopped(result.exit_code)
    return result.state


def _write(story: _Story, params: Params, key: jax.Array, count: int) -> list[str]:
    """Words sampled from the model."""
    tokenizer = story.language.tokenizer
    prompt = jnp.full((WIDTH, 1), tokenizer.bos_id)

    @jax.jit
    def draw(key: jax.Array, params: Params) -> Any:
        return generate(
            key,
            params,
            prompt,
            None,
            decoder=story.decoder,
            max_new_tokens=LENGTH + 1,
            eos_id=tokenizer.eos_id,
        )

    texts: list[str] = []
    for part in jax.random.split(key, -(-count // WIDTH)):
        written = jax.tree.map(np.asarray, draw(part, params))
        rows = zip(written.tokens, written.mask, strict=True)
        texts += [tokenizer.decode(row[keep].tolist()) for row, keep in rows]
    return texts[:count]


def _pairs(key: jax.Array, texts: list[str]) -> list[Any]:
    """Noisy preferences between the first and the second half of the words."""
    half = len(texts) // 2
    return noisy_preferences(key, [""] * half, texts[:half], texts[half:])


def _accuracy(story: _Story, params: Params, pairs: Sequence[Any]) -> dict[str, float]:
    """Accuracy of the reward model on pairs that it was not trained on."""
    chosen, rejected = ([getattr(p, side) for p in pairs] for side in ("chosen", "rejected"))
    preferred = _scores(story, params, chosen) > _scores(story, params, rejected)
    gold = gold_score(chosen) - gold_score(rejected)
    return {
        "reward_accuracy_noisy": float(np.mean(preferred)),
        "reward_accuracy_gold": float(np.mean((preferred == (gold > 0))[gold != 0])),
    }


def _in_gold_order(pairs: Sequence[Any]) -> float:
    """The fraction of preferences that agree with the gold rule."""
    return float(
        np.mean(gold_score([p.chosen for p in pairs]) >= gold_score([p.rejected for p in pairs]))
    )


def _scores(story: _Story, params: Params, texts: list[str]) -> np.ndarray:
    """[B] scores of words by a reward model."""
    rows = sft_arrays(from_lines(texts), story.language.tokenizer, 512)
    score = jax.jit(story.decoder.score)
    parts = range(0, len(texts), 2 * WIDTH)
    found = [
        score(params, rows.tokens[i : i + 2 * WIDTH], rows.mask[i : i + 2 * WIDTH]) for i in parts
    ]
    return np.concatenate([np.asarray(x) for x in found])


def _beside_the_optimum(
    story: _Story, program: train.LanguageProgram, state: TrainState, lines: list[str]
) -> dict[str, Any]:
    """Objectives J of reference and policy, the optimal J*, and scores by the gold rule."""
    tokenizer, beta = story.language.tokenizer, story.config.kl_coef
    respond = jax.jit(program.respond)
    letters, counts = np.unique([line[0] for line in lines], return_counts=True)
    share = counts / counts.sum()
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []
    best: list[dict[str, float]] = []
    reference = {**state.learner.params, "actor": program.frozen["reference"]}
    for k, letter in enumerate(letters):
        key = jax.random.fold_in(jax.random.key(story.config.seed + 2), k)
        prompt = prompt_arrays([Prompt(str(letter))] * story.config.reference_samples, tokenizer, 8)
        for params, found in ((reference, before), (state.learner.params, after)):
            responses = respond(key, params, program.frozen, tuple(map(jnp.asarray, prompt)))
            score = shape_scores((), responses, program.settings)
            found.append(_result(story, responses, score, beta))
            if params is reference:
                best.append(
                    {k: float(v[0]) for k, v in optimum.optimal_moments(score[None], beta).items()}
                )

    def mean(found: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.dot(share, [x[name] for x in found])) for name in found[0]}

    result = {"reference": mean(before), "policy": mean(after), "optimum": mean(best)}
    share_of = result["policy"]["objective"] / result["optimum"]["objective"]
    return {"share_of_optimum": share_of, **result}


def _result(story: _Story, responses: Responses, score: jax.Array, beta: float) -> dict[str, float]:
    """Mean objective, score, KL, gold score and EOS rate of the responses to one letter."""
    texts = stages.describe(responses, LENGTH, story.language.tokenizer)
    gold = gold_score([x["prompt"] + x["response"] for x in texts])
    kl = kl_of(responses)
    return {
        "objective": optimum.objective(score, kl, beta)[0],
        "score": float(jnp.mean(score)),
        "kl": float(jnp.mean(kl)),
        "gold": float(np.mean(gold)),
        "eos_rate": float(jnp.mean(responses.ended)),
        "log_prob_gap": float(responses.gap),
    }


def _print(found: dict[str, Any], path: Path) -> None:
    """Print the result as a table."""
    table = Table(title="Reference, policy and optimum")
    for column in ("", "score", "KL, nats", "J = score - beta KL", "gold score", "EOS rate"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("reference", "policy", "optimum"):
        row = found[name]
        more = (f"{row['gold']:.2f}", f"{row['eos_rate']:.1%}") if "gold" in row else ("", "")
        numbers = (f"{row[n]:.3f}" for n in ("score", "kl", "objective"))
        table.add_row(name, *numbers, *more)
    terminal.say(table)
    terminal.say(
        f"PPO reached {found['share_of_optimum']:.2f} of the optimal J. On validation pairs the "
        f"reward model agrees with {found['reward_accuracy_noisy']:.1%} of the noisy preferences "
        f"and with the gold rule in {found['reward_accuracy_gold']:.1%}.\n"
        f"time: {found['seconds']:.0f} s; results: {path}"
    )
