"""Fine-tuning on worked examples from random weights, until an agent is mediocre."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import guard
from ppo_jax.config import ConfigError
from ppo_jax.config.reasoning import Reason
from ppo_jax.config.schedules import constant
from ppo_jax.rlhf import supervised
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.reasoning import measure
from ppo_jax.rlhf.reasoning.agents import DIVERGED, together
from ppo_jax.runs.job import Job
from ppo_jax.types import Batch, Metrics, TrainState

# Number of gradient steps between two measurements of pass@1.
STEPS = 10
# Folded into the seed of an agent, for the PRNG keys of its examples and of its measurements.
EXAMPLES, PROBES = 0xE8A3, 0x94C0
# Number of training problems of a measurement, and the share of agents that have started.
PROBED, STARTED = 256, "share_started"


@struct.dataclass
class Beginner:
    """An agent before reinforcement learning.

    Attributes:
        train: state of the fine-tuning.
        pass_at_1: [] fraction of training problems that greedy decoding solved at the last
            measurement.
        started: [] bool, whether the fine-tuning of this agent has ended.
    """

    train: TrainState
    pass_at_1: jax.Array
    started: jax.Array


class _Parts(NamedTuple):
    """What all functions of the stage share."""

    task: Any
    decoder: Decoder
    config: Reason


def check(config: Reason) -> None:
    """Refuse numbers of gradient steps and examples that the fine-tuning would not have.

    Raises:
        ConfigError: the message names the given value and an allowed one.
    """
    if config.sft_updates % STEPS:
        lower = config.sft_updates // STEPS * STEPS
        raise ConfigError(
            f"--sft-updates is {config.sft_updates}; it must be a multiple of {STEPS}, because "
            f"pass@1 is measured after every {STEPS}: use {lower} or {lower + STEPS}"
        )
    if config.sft_batch_size > config.worked_examples:
        raise ConfigError(
            f"--sft-batch-size is {config.sft_batch_size}, but there are {config.worked_examples} "
            f"worked examples; use --sft-batch-size {config.worked_examples}, or more "
            "--worked-examples"
        )


def fine_tuning(task: Any, decoder: Decoder, config: Reason) -> Job:
    """The stage that fine-tunes S decoders on worked examples, each from its own random weights.

    Args:
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        config: options of the run.

    Returns:
        A job whose state is a `Beginner` with leaves [S, ...]. An update is STEPS gradient steps,
        followed by a measurement of pass@1. The parameters of an agent do not change any more once
        its pass@1 is at least `start_at`.
    """
    parts = _Parts(task, decoder, config)
    seeds = config.seed + jnp.arange(config.seeds, dtype=jnp.uint32)
    step = together(lambda state, rows, floats: _step(state, rows, parts))

    def init() -> Beginner:
        return jax.jit(jax.vmap(lambda seed: _init(seed, parts)))(seeds)

    rows = jax.jit(jax.vmap(lambda seed: _rows(seed, parts)))(seeds)
    return Job(
        name="fine_tuning",
        init=init,
        shapes=jax.eval_shape(init),
        step=step,
        updates=config.sft_updates // STEPS,
        unit="sequences",
        units_per_update=STEPS * config.sft_batch_size * config.seeds,
        headline="pass_at_1",
        frozen=rows,
        rows=64,
        curves=("pass_at_1", "loss"),
        promises={DIVERGED: "numbers of some agents are not finite; they are not trained further"},
        score=(STARTED, None),
        source="the worked examples",
    )


def _init(seed: jax.Array, parts: _Parts) -> Beginner:
    key, init_key = jax.random.split(jax.random.key(seed))
    train = supervised.init(key, parts.decoder.init(init_key), _hyper(parts.config))
    return Beginner(train, jnp.zeros(()), jnp.zeros((), bool))


def _hyper(config: Reason) -> supervised.Config:
    """Hyperparameters of the fine-tuning; its learning rate is constant."""
    return supervised.Config(
        updates=config.sft_updates,
        batch_size=config.sft_batch_size,
        learning_rate=constant(config.sft_learning_rate),
    )


def _rows(seed: jax.Array, parts: _Parts) -> Batch:
    """Worked examples [N, P + R]; the loss is that of the tokens of the answers."""
    key = jax.random.fold_in(jax.random.key(seed), EXAMPLES)
    prompts = parts.task.problems(key, parts.config.worked_examples, False)
    answers = jax.vmap(parts.task.solve)(prompts)
    written = measure.not_padding(answers)
    mask = jnp.concatenate([measure.not_padding(prompts), written], axis=1)
    weight = jnp.concatenate([jnp.zeros_like(prompts), written], axis=1).astype(jnp.float32)
    obs = {"tokens": jnp.concatenate([prompts, answers], axis=1), "mask": mask}
    return Batch(obs, (), (), (), (), (), weight[:, 1:])  # type: ignore[arg-type]


def _step(state: Beginner, rows: Batch, parts: _Parts) -> tuple[Beginner, Metrics, guard.Found]:
    """STEPS gradient steps and a measurement of one agent, which has no effect once it started."""
    descend = supervised.make_step(
        supervised.make_text_loss(parts.decoder), _hyper(parts.config), None
    )

    def once(train: TrainState, _: None) -> tuple[TrainState, tuple[Metrics, guard.Found]]:
        train, metrics, found = descend(train, {"rows": rows})
        return train, (metrics, found)

    train, (metrics, found) = jax.lax.scan(once, state.train, None, length=STEPS)
    solved = _pass_at_1(train, parts)
    level = parts.config.start_at
    reached = jnp.zeros((), bool) if level is None else solved >= level
    new = Beginner(train, solved, reached)
    new = jax.tree.map(lambda old, x: jnp.where(state.started, old, x), state, new)
    means = jax.tree.map(jnp.mean, metrics)
    about = means | {"pass_at_1": new.pass_at_1, STARTED: new.started.astype(jnp.float32)}
    found = guard.Found(jnp.any(found.bad), jnp.any(found.flags, axis=0), found.names)
    return new, about, found


def _pass_at_1(train: TrainState, parts: _Parts) -> jax.Array:
    """The fraction of training problems that greedy decoding solves; new problems each time."""
    key = jax.random.fold_in(train.key, PROBES + train.update)
    prompts = parts.task.problems(key, PROBED, False)
    found = measure.answer(
        key,
        train.learner.params,
        prompts,
        task=parts.task,
        decoder=parts.decoder,
        temperature=0.0,
    )
    return jnp.mean(found.reward > measure.CORRECT)


def options_of(options: Any) -> Any:
    """The options of the run for this stage, which ends as soon as all agents have started."""
    return dataclasses.replace(options, stop_at=1.0, eval_every=None, callback=())
