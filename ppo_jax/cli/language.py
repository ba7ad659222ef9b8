"""The stages of `ppo-jax rlhf`: the work that the values of a command line describe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax import precision
from ppo_jax.cli.rlhf import KINDS, pick, restored
from ppo_jax.config import ConfigError
from ppo_jax.config.rlhf import Adapters, Demo, GenerateOptions
from ppo_jax.rlhf import algorithms, stages, supervised, train
from ppo_jax.rlhf.data import preference_arrays, prompt_arrays, sft_arrays
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.demo import demo
from ppo_jax.rlhf.folder import checkpoints_of, flat, open_directory, read_stage, run
from ppo_jax.rlhf.formats import DataError, Prompt, read
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_io import ModelError
from ppo_jax.rlhf.roles import ends, model, needed, prompt_room, roles, writer
from ppo_jax.rlhf.sharding import mesh_of
from ppo_jax.rlhf.tokenizer import TokenizerError
from ppo_jax.runs import loop, manifest, terminal
from ppo_jax.runs.job import Callback, Job, RunFailed
from ppo_jax.runs.options import StageOptions
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.trust import Given
from ppo_jax.types import Params

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
        return todo()
    except (DataError, ModelError, TokenizerError) as error:
        raise ConfigError(str(error)) from error
    except jax.errors.JaxRuntimeError as error:
        # What a function of the user's own raised, among the frames that lead to it.
        said = [line for line in str(error).splitlines() if line.startswith("ValueError: a reward")]
        if not said:
            raise
        raise RunFailed(said[-1].removeprefix("ValueError: ")) from error


def _demo(values: Values, options: StageOptions) -> Callable[[], int]:
    return lambda: demo(pick(Demo, values), options)


def _sft(values: Values, options: StageOptions) -> Callable[[], int]:
    decoder, params, language = writer(values)
    examples = read(needed(values, "data"), "sft")
    rows = sft_arrays(examples, language.tokenizer, _room(values, decoder), values["truncate"])
    stage = stages.fine_tuning(
        decoder,
        params,
        supervised.text_rows(*rows),
        pick(supervised.Config, values),
        seed=values["seed"],
        language=language,
        mesh=mesh_of(values["model_parallel"], values["batch_size"]),
        adapters=train.adapters_of(pick(Adapters, values)),
    )
    return _in_directory(stage, options, values)


def _reward(values: Values, options: StageOptions) -> Callable[[], int]:
    decoder, params, language = model(values)
    pairs = read(needed(values, "data"), "preference")
    arrays = preference_arrays(
        pairs, language.tokenizer, _room(values, decoder), values["truncate"]
    )
    if "score" not in params:
        params = decoder.with_score(params, jax.random.key(values["seed"]))
    stage = stages.reward_model(
        decoder,
        params,
        supervised.preference_rows(*arrays),
        pick(supervised.Config, values),
        center=values["center"],
        seed=values["seed"],
        language=language,
        mesh=mesh_of(values["model_parallel"], values["batch_size"]),
        adapters=train.adapters_of(pick(Adapters, values)),
    )
    return _in_directory(stage, options, values)


def _ppo(values: Values, options: StageOptions) -> Callable[[], int]:
    return _in_directory(_optimisation(values), options, values)


def _optimisation(values: dict[str, Any], responses: int = 256) -> Job:
    """The stage that the values of `ppo` describe."""
    decoder, params, language = writer(values)
    config, hyper = pick(train.Config, values), pick(algorithms.Config, values)
    room = prompt_room(decoder, config.max_new_tokens)
    examples = read(needed(values, "data"), "prompt")
    prompts = prompt_arrays(
        examples, language.tokenizer, min(room, values["max_length"]), values["truncate"]
    )
    models = roles(values, decoder, params, language)
    tokenizer = language.tokenizer
    program = train.build(
        models,
        *prompts,
        config,
        hyper=hyper,
        eos_id=ends(decoder, tokenizer),
        valid_vocab=tokenizer.vocab_size,
        mesh=mesh_of(values["model_parallel"], config.num_prompts * config.group_size),
    )
    return stages.optimisation(
        program, models, config, seed=values["seed"], language=language, eval_prompts=responses
    )


def _generate(values: Values, _: None) -> int:
    options: GenerateOptions = pick(GenerateOptions, values)
    decoder, params, language = writer({**values, "dtype": "float32", "remat": False})
    tokenizer = language.tokenizer
    prompts = [Prompt(text, "--prompt") for text in options.prompt]
    prompts = read(options.data, "prompt") if options.data else prompts or [Prompt("", "no prompt")]
    room = prompt_room(decoder, options.max_new_tokens)
    arrays = prompt_arrays(prompts, tokenizer, room)
    tokens, mask = (jnp.repeat(jnp.asarray(x), options.repeat, axis=0) for x in arrays)

    @jax.jit
    def write(key: jax.Array, params: Params, tokens: jax.Array, mask: jax.Array) -> Any:
        return generate(
            key,
            params,
            tokens,
            mask,
            decoder=decoder,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            eos_id=ends(decoder, tokenizer),
            top_k=options.top_k,
            top_p=options.top_p,
            valid_vocab=tokenizer.vocab_size,
        )

    write = precision.apply(options.matmul_precision, write)
    written = write(jax.random.key(options.seed), params, tokens, mask)
    for k, (row, kept) in enumerate(zip(written.tokens, written.mask, strict=True)):
        prompt = prompts[k // options.repeat].prompt
        text = tokenizer.decode(row[kept].tolist())
        terminal.say(f"{prompt}{text}" if isinstance(prompt, str) else text)
    return 0


def _evaluate(values: Values, options: None) -> int:
    path = Path(needed(values, "run"))
    given = Given(trust=values["trust"], followed=frozenset(values["reward"]))
    kind, saved, _ = read_stage(path, given)
    manifest.look(path)
    if kind != "ppo":
        raise ConfigError(f"{path} is a run of {kind}; its summary.json holds its validation")
    ppo = restored(saved, KINDS["ppo"])
    job = precision.apply(ppo["matmul_precision"], _optimisation(ppo, values["responses"]))
    update, state = checkpoints_of(path, saved, job.frozen).restore(job.shapes)
    state, evaluation = job.place(state), job.evaluate
    assert evaluation is not None
    terminal.say(f"after {update} updates:")
    for name, value in evaluation(state, update)["evaluation"].items():
        shown = f"{value:.4f}" if isinstance(value, float) else f"{value}"
        terminal.say(f"{name:>26} {shown}")
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
    return min(values["max_length"], decoder.config.max_positions)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": _demo,
    "sft": _sft,
    "reward": _reward,
    "ppo": _ppo,
    "generate": _generate,
    "evaluate": _evaluate,
}
