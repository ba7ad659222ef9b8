"""The whole story on any machine: text, preferences, a reward model, PPO, and the known optimum.

A character-level decoder learns to write words, 6,000 noisy preferences come from a stated gold
rule, a reward model learns them, PPO optimises it, and what comes out is set beside the best that
any policy could reach: J* = β log E_ref exp(r / β).
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import report
from ppo_jax.checkpoint import write_json
from ppo_jax.rlhf import algorithms, optimum, scoring, stages, supervised, train
from ppo_jax.rlhf.corpus import bradley_terry, first_letters, gold_score, words_of_python
from ppo_jax.rlhf.data import read_lines
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.rollout import shape_scores
from ppo_jax.rlhf.session import RunOptions, open_directory, run
from ppo_jax.rlhf.tokenizer import CharTokenizer
from ppo_jax.runner import Signals
from ppo_jax.types import Params, option

LENGTH = 14  # characters of the longest response, its end included
REFERENCE_SAMPLES = 2048  # per prompt, for the optimum


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """How much of everything; the defaults take less than five minutes on two CPU cores."""

    data: Path | None = option(None, "text to imitate, one example a line; None: Python's own")
    seed: int = option(0, "of everything random", low=0, high=2**32 - 1)
    sft_updates: int = option(500, "steps of fine-tuning", low=1)
    reward_updates: int = option(300, "steps of the reward model", low=1)
    updates: int = option(60, "updates of PPO", low=1)
    responses: int = option(512, "responses per update", low=2)
    preferences: int = option(6000, "pairs that are judged", low=16)
    kl_coef: float = option(0.5, "beta, the price of a nat away from the reference", low=0.01)
    learning_rate: float = option(5e-4, "of PPO, falling to 0", low=0)


@dataclasses.dataclass(frozen=True)
class _Story:
    """What the stages hand to one another.

    Attributes:
        path: of the whole; each stage has a folder in it.
        config: DemoConfig.
        tokenizer: of characters.
        decoder: the architecture of all four models.
        prompts: [N, 2] the start and a first letter, for every line of the text.
        options: of each stage's run.
        signals: that end it.
    """

    path: Path
    config: DemoConfig
    tokenizer: CharTokenizer
    decoder: Decoder
    prompts: np.ndarray
    options: RunOptions
    signals: Signals


class _Stopped(Exception):
    """A signal came: the exit code, once everything is saved."""


def demo(config: DemoConfig, options: RunOptions) -> int:
    """Tell the story, or go on with it where it was stopped.

    Args:
        config: how much of everything.
        options: where it is kept. `resume` goes on in a folder of an earlier demo.

    Returns:
        Exit code.
    """
    started = time.perf_counter()
    lines = words_of_python() if config.data is None else read_lines(config.data)
    with open_directory("demo", options, _flat(config)) as directory, Signals() as signals:
        story = _begin(directory.path, config, lines, options, signals)
        try:
            params = _write_like(story, lines)
            reward = _learn_preferences(story, params)
            found = _optimise(story, params, reward)
        except _Stopped as stopped:
            path = directory.path
            report.say(f"stopped; continue with: python -m ppo_jax.rlhf demo --resume {path}")
            return int(str(stopped))
        found["seconds"] = round(time.perf_counter() - started, 1)
        write_json(directory.path / "summary.json", found)
        _tell(found, directory.path)
    return 0


def _begin(
    path: Path, config: DemoConfig, lines: list[str], options: RunOptions, signals: Signals
) -> _Story:
    tokenizer = CharTokenizer.from_text("".join(lines))
    decoder = Decoder(small(tokenizer.vocab_size, eos_ids=(tokenizer.eos_id,), tied=False))
    prompts = first_letters(lines, tokenizer)
    return _Story(path, config, tokenizer, decoder, prompts, options, signals)


def _write_like(story: _Story, lines: list[str]) -> Params:
    """Fine-tuning: write words as in the text."""
    report.say(f"1. learning to write: {len(lines):,} lines, such as {', '.join(lines[::len(lines) // 5][:5])}")
    config = supervised.Config(updates=story.config.sft_updates, batch_size=64, learning_rate=3e-3)
    rows = supervised.text_rows(*text_arrays(lines, story.tokenizer))
    key = jax.random.key(story.config.seed)
    stage = stages.fine_tuning(
        story.decoder,
        story.decoder.init(key),
        rows,
        config,
        seed=story.config.seed,
        tokenizer=story.tokenizer,
    )
    return _run(story, stage, "sft").learner.params


def _learn_preferences(story: _Story, params: Params) -> dict[str, Any]:
    """A reward model from noisy preferences between samples, normalised on other samples."""
    pairs = _judged_pairs(story, params)
    report.say(
        f"2. learning what is preferred: {len(pairs['margin']):,} pairs, the better one by the gold "
        f"rule chosen in {pairs['agreement']:.0%}"
    )
    config = supervised.Config(updates=story.config.reward_updates, batch_size=64)
    stage = stages.reward_model(
        story.decoder,
        story.decoder.with_score(params, jax.random.key(story.config.seed + 1)),
        supervised.preference_rows(*(pairs[n] for n in PAIR)),
        config,
        center=0.0,
        seed=story.config.seed,
        tokenizer=story.tokenizer,
    )
    return {"params": _run(story, stage, "reward").learner.params, "pairs": pairs}
