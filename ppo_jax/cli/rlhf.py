"""`python -m ppo_jax.rlhf`: the stages, and the whole story, from the command line."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from ppo_jax import precision
from ppo_jax.cli.cluster import refuse
from ppo_jax.cli.errors import exit_with
from ppo_jax.cli.flags import read_flags
from ppo_jax.config import ConfigError
from ppo_jax.config.options import check_record, coerce, did_you_mean, option
from ppo_jax.rlhf import algorithms, stages, supervised, train
from ppo_jax.rlhf.data import preference_arrays, prompt_arrays, sft_arrays
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.demo import DemoConfig, demo
from ppo_jax.rlhf.folder import (
    RunOptions,
    checkpoints_of,
    flat,
    open_directory,
    read_stage,
    run,
)
from ppo_jax.rlhf.formats import DataError, Prompt, read
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_io import ModelError
from ppo_jax.rlhf.presets import PRESETS
from ppo_jax.rlhf.roles import ends, model, needed, prompt_room, roles, writer
from ppo_jax.rlhf.sharding import mesh_of
from ppo_jax.rlhf.tokenizer import TokenizerError
from ppo_jax.runs import loop, manifest, terminal
from ppo_jax.runs.job import Callback, Job, RunFailed
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.trust import Given
from ppo_jax.types import Params

PROGRAM = "python -m ppo_jax.rlhf"
CRITICS = ("auto", "reward", "model", "shared", "none")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is learned from what."""

    model: Path | None = option(None, "folder of a model, as Hugging Face's libraries have it")
    data: Path | None = option(None, "JSON lines or plain text to learn from")
    max_length: int = option(512, "tokens of the longest text", low=2)
    truncate: bool = option(False, "cut longer texts instead of refusing them")
    seed: int = option(0, "of everything random", low=0, high=2**32 - 1)
    dtype: str = option("float32", "of the computation", choices=("float32", "bfloat16"))
    matmul_precision: str = precision.matmul_precision()
    remat: bool = option(False, "compute activations twice instead of keeping them")
    model_parallel: int = option(
        1, "devices that share each matrix; the rest of them share the batch", low=1
    )


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """Of a reward model alone."""

    center: float = option(0.0, "weight of what keeps scores about 0", low=0)


@dataclasses.dataclass(frozen=True)
class PPOOptions:
    """The roles that are not the actor's."""

    reward: tuple[str, ...] = option(
        (),
        "what is optimised: folders of reward models, or module:function of (prompts, responses)",
    )
    reward_weights: tuple[float, ...] = option((), "of the rewards; none: 1 each")
    critic: str = option(
        "auto",
        "starts as the reward model with a head of zeros, as the model itself with one, or is a "
        "head on the actor",
        choices=CRITICS,
    )
    reference: Path | None = option(None, "folder of the model to stay near; None: --model")


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """What is written."""

    model: Path | None = option(None, "folder of a model, or of a run of ppo_jax.rlhf")
    prompt: tuple[str, ...] = option((), "texts to go on from")
    data: Path | None = option(None, "a file of prompts instead")
    max_new_tokens: int = option(64, "tokens of the longest response", low=1)
    temperature: float = option(1.0, "divides the logits; 0: always the likeliest token", low=0)
    top_k: int | None = option(None, "draw from the likeliest so many alone", low=1)
    top_p: float | None = option(
        None, "draw from the likeliest that together have this probability", low=0, high=1
    )
    repeat: int = option(1, "responses to each prompt", low=1)
    seed: int = option(0, "of the sampling", low=0, high=2**32 - 1)
    matmul_precision: str = precision.matmul_precision()


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """How a run is judged."""

    run: Path | None = option(None, "run directory of a stage")
    responses: int = option(256, "that a policy is judged by", low=2)
    reward: tuple[str, ...] = option(
        (), "reward functions of the run, named again: a run of somebody else may not name any"
    )
    trust: bool = option(False, "let the run's folder name code to import")


def main(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.rlhf [COMMAND] ...`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    exit_with(
        lambda: _refusing(arguments),
        before=lambda: refuse(
            arguments, "rlhf", "leave these flags out; it uses the devices of its process"
        ),
    )


def _refusing(arguments: list[str]) -> int:
    """The command; what a person can mend is one line."""
    try:
        todo = _dispatch(arguments)
    except (DataError, ModelError, TokenizerError, ImportError, ValueError) as error:
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


def _dispatch(arguments: list[str]) -> "int | Callable[[], int]":
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            terminal.say(_HELP)
            return 0
        return _demo(arguments)
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    return COMMANDS[name](rest)


def _demo(arguments: list[str]) -> Callable[[], int]:
    values, options = _values("demo", arguments, KINDS["demo"], free=())
    return lambda: demo(_pick(DemoConfig, values), options)


def _sft(arguments: list[str]) -> Callable[[], int]:
    values, options = _values("sft", arguments, KINDS["sft"])
    decoder, params, language = writer(values)
    examples = read(needed(values, "data"), "sft")
    rows = sft_arrays(examples, language.tokenizer, _room(values, decoder), values["truncate"])
    stage = stages.fine_tuning(
        decoder,
        params,
        supervised.text_rows(*rows),
        _pick(supervised.Config, values),
        seed=values["seed"],
        language=language,
        mesh=mesh_of(values["model_parallel"], values["batch_size"]),
    )
    return _in_directory(stage, options, values)


def _reward(arguments: list[str]) -> Callable[[], int]:
    values, options = _values("reward", arguments, KINDS["reward"])
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
        _pick(supervised.Config, values),
        center=values["center"],
        seed=values["seed"],
        language=language,
        mesh=mesh_of(values["model_parallel"], values["batch_size"]),
    )
    return _in_directory(stage, options, values)


def _ppo(arguments: list[str]) -> Callable[[], int]:
    values, options = _values("ppo", arguments, KINDS["ppo"])
    return _in_directory(_optimisation(values), options, values)


def _optimisation(values: dict[str, Any], responses: int = 256) -> Job:
    """The stage that the values of `ppo` stand for."""
    decoder, params, language = writer(values)
    config, hyper = _pick(train.Config, values), _pick(algorithms.Config, values)
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


def _generate(arguments: list[str]) -> int:
    fields = [(f.name, f, f.default) for f in dataclasses.fields(GenerateOptions)]
    values = read_flags(arguments, fields, f"{PROGRAM} generate", "Write responses.")
    options = GenerateOptions(**values)
    check_record(options)
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


def _evaluate(arguments: list[str]) -> int:
    fields = [(f.name, f, f.default) for f in dataclasses.fields(EvaluateOptions)]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    values = read_flags(arguments, fields, f"{PROGRAM} evaluate", "Judge a run anew.")
    options = EvaluateOptions(**values)
    check_record(options)
    path = Path(needed(values, "run"))
    given = Given(trust=options.trust, followed=frozenset(options.reward))
    kind, saved, _ = read_stage(path, given)
    manifest.look(path)
    if kind != "ppo":
        raise ConfigError(f"{path} is a run of {kind}; its summary.json holds its validation")
    values = _restored(saved, KINDS["ppo"])
    stage = precision.apply(values["matmul_precision"], _optimisation(values, options.responses))
    update, state = checkpoints_of(path, saved, stage.frozen).restore(stage.shapes)
    state, judge = stage.place(state), stage.evaluate
    assert judge is not None
    terminal.say(f"after {update} updates:")
    for name, value in judge(state, update)["evaluation"].items():
        terminal.say(
            f"{name:>26} {value:.4f}" if isinstance(value, float) else f"{name:>26} {value}"
        )
    return 0


def _in_directory(job: Job, options: RunOptions, values: dict[str, Any]) -> Callable[[], int]:
    """A stage that is ready to run in its folder."""
    callbacks = options.callbacks()
    loop.check(job, options)
    return lambda: _run(job, options, flat(values), callbacks)


def _run(
    job: Job, options: RunOptions, config: dict[str, Any], callbacks: Sequence[Callback]
) -> int:
    with open_directory(job.name, options, config) as directory, Signals() as signals:
        how: dict[str, Any] = {"options": options, "signals": signals, "callbacks": callbacks}
        result = run(job, job.name, config, directory, **how)
        if not result.exit_code:
            terminal.say(f"the model is in {directory.path / 'model'}")
    return signals.exit_code


def _values(
    command: str, arguments: list[str], kinds: tuple[Any, ...], free: tuple[str, ...] = ("updates",)
) -> tuple[dict[str, Any], RunOptions]:
    """(flat values, how the run is kept) of a command line."""
    first, kept = _first(arguments), dict[str, Any]()
    known = {f.name: f for kind in kinds for f in dataclasses.fields(kind)}
    defaults = {name: f.default for name, f in known.items()}
    if first.resume is not None:
        if first.preset is not None:
            raise ConfigError("--resume goes on with its own values: no --preset")
        given = Given(trust=first.trust, followed=frozenset([*first.reward, *first.callback]))
        saved_kind, saved, kept = read_stage(first.resume, given)
        if saved_kind != command:
            raise ConfigError(f"{first.resume} is a run of {saved_kind}, not of {command}")
        defaults |= _restored(saved, kinds)
    elif first.preset is not None:
        defaults |= _preset(first.preset, known)
    fields = [(name, f, defaults[name]) for name, f in known.items()]
    for field in dataclasses.fields(RunOptions):
        default = coerce(field, kept.get(field.name, field.default))
        fields.append((field.name, field, default))
    selection = []
    if "clip_eps" in known:
        presets = option(None, "hyperparameters of published work", choices=tuple(PRESETS))
        selection.append(("preset", str | None, presets))
    parsed = read_flags(
        arguments, fields, f"{PROGRAM} {command}", _DOCS[command], selection=selection
    )
    for kind in (*kinds, RunOptions):
        check_record(_pick(kind, parsed))
    values = {name: parsed[name] for name in known}
    if first.resume is not None:
        changed = [n for n in values if n not in free and values[n] != defaults[n]]
        if changed:
            raise ConfigError(
                f"--resume continues the same run, but these differ: {', '.join(changed)}; leave "
                "them out, or start a new run"
            )
    # A run may be gone on with from anywhere.
    values = {n: x.resolve() if isinstance(x, Path) else x for n, x in values.items()}
    return values, _pick(RunOptions, parsed)


def _restored(saved: dict[str, Any], kinds: tuple[Any, ...]) -> dict[str, Any]:
    """The inverse of `flat`; options younger than the run have their defaults."""
    values = {}
    for field in (f for kind in kinds for f in dataclasses.fields(kind)):
        values[field.name] = coerce(field, saved.get(field.name, field.default))
    return values


def _preset(name: str, known: dict[str, Any]) -> dict[str, Any]:
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return {k: v for k, v in PRESETS[name].items() if k in known}


def _first(arguments: list[str]) -> argparse.Namespace:
    """The flags that the defaults of the others depend on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--trust", action="store_true")
    for name in ("reward", "callback"):
        parser.add_argument(f"--{name}", nargs="*", default=[])
    return parser.parse_known_args(arguments)[0]


def _pick(kind: Any, values: dict[str, Any]) -> Any:
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})


def _room(values: dict[str, Any], decoder: Decoder) -> int:
    return min(values["max_length"], decoder.config.max_positions)


# What the flags of each stage are made of.
KINDS: dict[str, tuple[Any, ...]] = {
    "demo": (DemoConfig,),
    "sft": (ModelOptions, supervised.Config),
    "reward": (ModelOptions, RewardOptions, supervised.Config),
    "ppo": (ModelOptions, PPOOptions, train.Config, algorithms.Config),
}
COMMANDS: dict[str, Callable[[list[str]], "int | Callable[[], int]"]] = {
    "demo": _demo,
    "sft": _sft,
    "reward": _reward,
    "ppo": _ppo,
    "generate": _generate,
    "evaluate": _evaluate,
}
_DOCS = {
    "demo": "The whole story, from text to a policy beside the known optimum.",
    "sft": "Fine-tune a language model on text.",
    "reward": "Learn a reward model from preferences.",
    "ppo": "Optimise a reward near a reference: PPO, REINFORCE, RLOO or GRPO.",
}
_HELP = f"""usage: {PROGRAM} [COMMAND] [flags]

  demo      {_DOCS["demo"]} What runs without a command.
  sft       {_DOCS["sft"]}
  reward    {_DOCS["reward"]}
  ppo       {_DOCS["ppo"]}
  generate  Write responses.
  evaluate  Judge a run anew.

{PROGRAM} COMMAND --help has the flags of each."""
