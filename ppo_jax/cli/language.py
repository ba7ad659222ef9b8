"""The stages of `ppo-jax rlhf`: the work that the values of a command line describe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from ppo_jax import precision
from ppo_jax.cli import problems, reason, respond
from ppo_jax.cli.rlhf import KINDS, pick, restored
from ppo_jax.config import ConfigError
from ppo_jax.config.rlhf import Adapters, Demo
from ppo_jax.rlhf import algorithms, stages, supervised, train
from ppo_jax.rlhf.buckets import padding
from ppo_jax.rlhf.data import Tokens, preference_arrays, prompt_arrays, sft_arrays
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.demo import demo
from ppo_jax.rlhf.folder import (
    StageDirectory,
    checkpoints_of,
    flat,
    open_directory,
    read_stage,
    run,
)
from ppo_jax.rlhf.formats import DataError, arguments
from ppo_jax.rlhf.held_out import HeldOut, read_both
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.reward_functions import PromptTable
from ppo_jax.rlhf.roles import ends, frozen_dtype, mesh, model, needed, prompt_room, roles, writer
from ppo_jax.rlhf.tokenizer import TokenizerError
from ppo_jax.runs import failures, loop, manifest, terminal
from ppo_jax.runs.job import Callback, Job, RunFailed
from ppo_jax.runs.options import StageOptions
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.trust import Given
from ppo_jax.types import Batch

Values = dict[str, Any]


def work(command: str, values: Values, options: StageOptions | None) -> int:
    """Run a command of `ppo-jax rlhf`.

    Args:
        command: a name in COMMANDS.
        values: its options by name.
        options: options of the run directory; None for a command without one.

    Returns:
        Exit code.

    Raises:
        ConfigError: options, data or models that cannot work, before anything has run.
        RunFailed: a reward function failed while the stage ran.
    """
    try:
        todo = COMMANDS[command](values, options)
    except (ImportError, ValueError) as error:  # errors of data, models and tokenizers among them
        raise ConfigError(str(error)) from error
    return todo if isinstance(todo, int) else _running(todo)


def _running(todo: Callable[[], int]) -> int:
    """Run what was put together; what fails from here on has failed while running."""
    try:
        with failures.quiet():
            return todo()
    except (DataError, ModelError, TokenizerError) as error:
        raise ConfigError(str(error)) from error
    except jax.errors.JaxRuntimeError as error:
        # What a function of the user's own raised, among the frames that lead to it.
        start = "ValueError: the reward function"
        lines = [line for line in str(error).splitlines() if line.startswith(start)]
        if not lines:
            raise
        raise RunFailed(lines[-1].removeprefix("ValueError: ")) from error


def _demo(values: Values, options: StageOptions) -> Callable[[], int]:
    return lambda: demo(pick(Demo, values), options)


def _sft(values: Values, options: StageOptions) -> Callable[[], int]:
    return _supervised(_fine_tuning, values, options)


def _fine_tuning(values: Values, announce: bool = False) -> Job:
    """The stage that the values of `sft` describe; its length buckets are printed if announced."""
    decoder, params, language = writer(values)
    examples, held_out = _data(values, "sft")
    room, truncate = _room(values, decoder), values["truncate"]
    options: Values = {"assistant_only": values["assistant_only_loss"]}

    def rows(some: list[Any]) -> Batch:
        arrays = sft_arrays(some, language.tokenizer, room, truncate, **options)
        return supervised.text_rows(*arrays)

    training = rows(examples)
    if announce:
        _announce(training, values)
    return stages.fine_tuning(
        decoder,
        params,
        training,
        pick(supervised.Config, values),
        held_out=_held_out_rows(held_out, rows),
        seed=values["seed"],
        language=language,
        mesh=mesh(values),
        adapters=train.adapters_of(pick(Adapters, values)),
    )


def _reward(values: Values, options: StageOptions) -> Callable[[], int]:
    return _supervised(_reward_model, values, options)


def _supervised(
    make: Callable[[Values, bool], Job], values: Values, options: StageOptions
) -> Callable[[], int]:
    """A supervised stage, whose number of updates may follow from the number of its examples."""
    # On resume, the saved number of updates, or a new one, is the plan.
    plan = values if options.resume is None else {**values, "epochs": None}
    job = make(plan, True)
    horizon = values["anneal_updates"] or job.updates
    values = {**values, "updates": job.updates, "anneal_updates": horizon}
    return _in_directory(job, options, values)


def _reward_model(values: Values, announce: bool = False) -> Job:
    """The stage that the values of `reward` describe, as `_fine_tuning`."""
    decoder, params, language = model(values)
    pairs, held_out = _data(values, "preference")
    room, truncate = _room(values, decoder), values["truncate"]

    def rows(some: list[Any]) -> Batch:
        arrays = preference_arrays(some, language.tokenizer, room, truncate)
        return supervised.preference_rows(*arrays)

    if "score" not in params:
        params = decoder.with_score(params, jax.random.key(values["seed"]))
    training = rows(pairs)
    if announce:
        _announce(training, values)
    return stages.reward_model(
        decoder,
        params,
        training,
        pick(supervised.Config, values),
        held_out=_held_out_rows(held_out, rows),
        center=values["center"],
        seed=values["seed"],
        language=language,
        mesh=mesh(values),
        adapters=train.adapters_of(pick(Adapters, values)),
    )


def _announce(rows: Batch, values: Values) -> None:
    """Print the length buckets of the training data."""
    terminal.say(str(padding(rows, values["length_buckets"], values["batch_size"])))


def _data(values: Values, kind: str) -> tuple[list[Any], HeldOut]:
    """The training examples and the held-out examples of a stage."""
    return read_both(
        needed(values, "data"),
        kind,
        eval_data=values["eval_data"],
        fraction=values["eval_fraction"],
        template=arguments(values["chat_template_kwargs"]),
    )


def _held_out_rows(
    held_out: HeldOut, rows: Callable[[list[Any]], Batch]
) -> stages.HeldOutRows | None:
    """The held-out examples in the format of the training data; None if there are none."""
    if not held_out.examples:
        return None
    return stages.HeldOutRows(rows(held_out.examples), held_out.about)


def _ppo(values: Values, options: StageOptions) -> Callable[[], int]:
    # The saved type is that of this device: the run may continue on another one.
    values = {**values, "frozen_dtype": frozen_dtype(values["frozen_dtype"])}
    return _in_directory(_optimisation(values), options, values)


def _optimisation(values: Values) -> Job:
    """The stage that the values of `ppo` describe."""
    decoder, params, language = writer(values)
    config, hyper = pick(train.Config, values), pick(algorithms.Config, values)
    examples, held_out = _data(values, "prompt")
    room = min(prompt_room(decoder, config.max_new_tokens), values["max_length"])

    def rows(some: list[Any]) -> Tokens:
        return prompt_arrays(some, language.tokenizer, room, values["truncate"])

    table = PromptTable(examples)
    first = table.add(held_out.examples)
    models = roles(values, decoder, params, language, table=table)
    tokenizer = language.tokenizer
    program = train.build(
        models,
        *rows(examples),
        config,
        hyper=hyper,
        eos_id=ends(decoder, tokenizer),
        valid_vocab=tokenizer.vocab_size,
        mesh=mesh(values),
    )
    unseen = held_out.examples and stages.HeldOutPrompts(
        *rows(held_out.examples), held_out.about, first
    )
    return stages.optimisation(
        program,
        models,
        config,
        held_out=unseen or None,
        seed=values["seed"],
        language=language,
        eval_responses=values["eval_responses"],
    )


JOBS: dict[str, Callable[[Values], Job]] = {
    "sft": _fine_tuning,
    "reward": _reward_model,
    "ppo": _optimisation,
}


def _evaluate(values: Values, options: None) -> int | Callable[[], int]:
    """Evaluate a model on the prompts of a file, or a run on its own held-out data."""
    path = Path(needed(values, "model"))
    if values["prompts"] is not None:
        return respond.evaluate(values, None)
    if not StageDirectory.is_one(path):
        raise ConfigError(
            f"{path} is not the run of a language model; to evaluate a model, give --prompts FILE "
            "and --reward"
        )
    given = Given(trust=values["trust"], followed=frozenset(values["reward"]))
    kind, saved, kept = read_stage(path, given)
    manifest.look(path)
    if kind not in JOBS:
        raise ConfigError(
            f"{path} is a run of {kind}, whose results are in its summary.json; to evaluate its "
            "model, give --prompts FILE and --reward"
        )
    stage = restored(saved, KINDS[kind])
    if kind == "ppo":
        stage["eval_responses"] = values["responses"]
    job = precision.apply(stage["matmul_precision"], JOBS[kind](stage))
    if job.evaluate is None:
        raise ConfigError(f"{path} has no held-out data: its --eval-fraction is 0")
    checkpoints = checkpoints_of(path, saved, job.frozen)
    # The state of the model in the folder.
    best = kept.get("final_model") == "best" and kept.get("eval_every") is not None
    update, state = checkpoints.restore(job.shapes, checkpoints.best() if best else None)
    terminal.say(f"after {update} updates:")
    for name, value in job.evaluate(job.place(state), update).items():
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value}"
        terminal.say(f"{name.removeprefix('eval_'):>26} {shown}")
    return 0


def _in_directory(job: Job, options: StageOptions, values: dict[str, Any]) -> Callable[[], int]:
    """A stage that is ready to run in its folder."""
    callbacks = options.callbacks()
    loop.check(job, options)
    return lambda: _run(job, options, flat(values), callbacks)


def _run(
    job: Job, options: StageOptions, config: dict[str, Any], callbacks: Sequence[Callback]
) -> int:
    with open_directory(job.name, options, config) as directory, Signals() as signals:
        how: dict[str, Any] = {"options": options, "signals": signals, "callbacks": callbacks}
        result = run(job, job.name, config, directory, **how)
        if not result.exit_code:
            terminal.say(f"the model is in {directory.path / 'model'}")
        if not result.exit_code and (directory.path / stages.ADAPTER).is_dir():
            terminal.say(f"its adapters alone are in {directory.path / stages.ADAPTER}")
    return signals.exit_code


def _room(values: dict[str, Any], decoder: Decoder) -> int:
    return min(values["max_length"], decoder.config.context)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": _demo,
    "sft": _sft,
    "reward": _reward,
    "ppo": _ppo,
    "generate": respond.generate,
    "reason": reason.prepared,
    "evaluate": _evaluate,
    "problems": problems.write,
}
