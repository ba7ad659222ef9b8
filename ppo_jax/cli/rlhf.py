"""`ppo-jax rlhf`: the command lines of the stages of language models, read without JAX.

What they describe is run by `ppo_jax.cli.language`.
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from ppo_jax.cli.cluster import refuse
from ppo_jax.cli.errors import Work, asks_for_help, exit_prepared
from ppo_jax.cli.flags import HELP as HELP_FLAGS
from ppo_jax.cli.flags import REQUIRED, FirstPass, is_on, optional, read_flags
from ppo_jax.cli.groups import group_of
from ppo_jax.cli.listing import wrapped
from ppo_jax.config import ConfigError, reasoning
from ppo_jax.config.foreign import flag
from ppo_jax.config.options import check_record, coerce, did_you_mean, option
from ppo_jax.config.rlhf import (
    ALGORITHMS,
    OLDER,
    Adapters,
    Demo,
    EvaluateOptions,
    GenerateOptions,
    HeldOutOptions,
    ModelOptions,
    PPOOptions,
    ProblemOptions,
    RewardOptions,
    Rollouts,
    SamplingOptions,
    Supervised,
    TextOptions,
    Update,
)
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.config.schedules import Schedule
from ppo_jax.runs import terminal
from ppo_jax.runs.options import StageOptions
from ppo_jax.runs.trust import Given

PROGRAM = "ppo-jax rlhf"
# The records of options of each stage.
KINDS: dict[str, tuple[Any, ...]] = {
    "demo": (Demo,),
    "sft": (ModelOptions, HeldOutOptions, TextOptions, Supervised, Adapters),
    "reward": (ModelOptions, HeldOutOptions, RewardOptions, Supervised, Adapters),
    "ppo": (ModelOptions, HeldOutOptions, PPOOptions, Rollouts, Update),
    "reason": (reasoning.Reason, Rollouts, Update),
}
# Those of the commands that keep no run.
OTHERS: dict[str, tuple[Any, ...]] = {
    "generate": (GenerateOptions, SamplingOptions),
    "evaluate": (EvaluateOptions, SamplingOptions),
    "problems": (ProblemOptions,),
}
# The option that the first word of these commands is for, and the word in their help.
WORDS = {"generate": ("model", "[FOLDER]"), "evaluate": ("model", "[FOLDER]")}
WORDS["problems"] = ("task", "[TASK]")
# Options of a run that the demo does not have, because it decides itself when each stage ends.
NOT_IN_DEMO = ("eval_every", "stop_at", "callback", "final_model")
# Options that a stage does not have though its records do, and defaults of its own.
WITHOUT = {"demo": NOT_IN_DEMO, "reason": reasoning.WITHOUT}
DEFAULTS = {"reason": reasoning.DEFAULTS}
# Options of `evaluate` without --prompts.
OF_HELD_OUT = ("model", "reward", "responses", "trust")
# Options that a new run of a stage must have.
NEEDED = {"sft": ("model", "data"), "reward": ("model", "data"), "ppo": ("model", "data", "reward")}
# Options that may change when a run is resumed.
FREE = ("updates", "anneal_updates")
DOCS = {
    "demo": "Train a small model from preferences with PPO, and compare it with the optimum.",
    "sft": "Fine-tune a language model on text.",
    "reward": "Train a reward model on preferences.",
    "ppo": "Maximise a reward near a reference model, with PPO, RLOO, GRPO or a variant of them.",
    "reason": "Train a small model from random weights on a task whose answers are verified.",
    "generate": "Generate responses to prompts with a model.",
    "evaluate": "Score responses of a model to prompts, or evaluate a run on its held-out data.",
    "problems": "Write problems of a reasoning task, whose answers are verified by a program.",
}
COMMANDS = tuple(DOCS)


@dataclasses.dataclass(frozen=True)
class PresetOptions:
    """The values that flags override."""

    preset: str | None = option(
        None, f"preset with the hyperparameters of published work: {', '.join(PRESETS)}"
    )


# The group in --help of the options of each record.
GROUPS = {
    ModelOptions: "model",
    PPOOptions: "reward",
    RewardOptions: "algorithm",
    TextOptions: "algorithm",
    Rollouts: "rollout",
    Update: "algorithm",
    Supervised: "algorithm",
    Adapters: "algorithm",
    Demo: "demo",
    reasoning.Reason: "task",
    HeldOutOptions: "evaluation",
    GenerateOptions: "generation",
    SamplingOptions: "sampling",
    EvaluateOptions: "evaluation",
    ProblemOptions: "problems",
}
HELP = "\n".join(
    [
        f"usage: {PROGRAM} [COMMAND] [OPTIONS]",
        "",
        "Train language models from preferences and rewards. Without a command, the demo runs.",
        "",
        "commands:",
        *(f"  {name:10}{doc}" for name, doc in DOCS.items()),
        "",
        f"{PROGRAM} COMMAND --help lists the options of a command.",
    ]
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax rlhf [COMMAND] ...`, the same as `python -m ppo_jax.rlhf [COMMAND] ...`."""
    words = sys.argv[1:] if arguments is None else arguments
    instead = "leave these flags out; it uses the devices of its process"
    exit_prepared(lambda: _prepared(words), before=lambda: refuse(words, "rlhf", instead))


def _refusing(arguments: list[str]) -> int:
    """The command as a function, which raises what the user can correct as a ConfigError."""
    return _prepared(arguments)()


def _prepared(arguments: list[str]) -> Work:
    """The work that a command line describes, before anything is computed."""
    name = "demo"
    if arguments and not arguments[0].startswith("-"):
        name, arguments = arguments[0], arguments[1:]
    elif asks_for_help(arguments[:1]):
        terminal.say(wrapped(HELP))
        sys.exit(0)
    if name in ALGORITHMS and name not in COMMANDS:
        raise ConfigError(f"{name} is an algorithm of ppo; write {PROGRAM} ppo --algorithm {name}")
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    options: StageOptions | None = None
    try:
        if name in OTHERS:
            values = _other_values(name, arguments)
        else:
            free = () if name == "demo" else FREE
            values, options = _values(name, arguments, KINDS[name], free)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return lambda: _work(name, values, options)


def _work(name: str, values: dict[str, Any], options: StageOptions | None) -> int:
    from ppo_jax.cli.language import work

    return work(name, values, options)


def _other_values(name: str, arguments: list[str]) -> dict[str, Any]:
    """The values of a command that keeps no run."""
    first, word = WORDS[name]
    if arguments and not arguments[0].startswith("-"):
        arguments = [flag(first), *arguments]
    records = OTHERS[name]
    fields = [(f.name, f, f.default) for record in records for f in dataclasses.fields(record)]
    groups = {f.name: GROUPS[record] for record in records for f in dataclasses.fields(record)}
    values = read_flags(
        arguments,
        fields,
        f"{PROGRAM} {name}",
        DOCS[name],
        origins=dict.fromkeys((first, "out") if name == "problems" else (first,), REQUIRED),
        groups=groups,
        word=word,
    )
    for record in records:
        check_record(pick(record, values))
    if name == "evaluate":
        _check_evaluation(values, {n: f for n, f, _ in fields})
    return values


def _check_evaluation(values: dict[str, Any], fields: dict[str, Any]) -> None:
    """Refuse options that an evaluation with or without --prompts would ignore.

    Raises:
        ConfigError: the message names the options.
    """
    given = [name for name, field in fields.items() if values[name] != field.default]
    if values["prompts"] is not None:
        if "responses" in given:
            raise ConfigError(
                "--responses is for a run without --prompts; with --prompts, --repeat is the "
                "number of responses to each prompt"
            )
        return
    unused = [flag(name) for name in given if name not in OF_HELD_OUT]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: only with --prompts FILE; without it, a run is evaluated on its "
            "own held-out data with the options of its training"
        )


def _values(
    command: str, arguments: list[str], kinds: tuple[Any, ...], free: tuple[str, ...] = FREE
) -> tuple[dict[str, Any], StageOptions]:
    """(flat values, how the run is kept) of a command line."""
    every = {f.name: f for kind in kinds for f in dataclasses.fields(kind)}
    kept_as = {f.name: f for f in dataclasses.fields(StageOptions)}
    if command == "demo":
        _refuse_in_demo(arguments)
    known, kept_as = (_without(command, fields) for fields in (every, kept_as))
    first = _first(arguments)
    defaults, kept, origins = _defaults(command, first, known, kinds)
    if first.resume is None:
        origins |= dict.fromkeys(NEEDED.get(command, ()), REQUIRED)
    fields = [(name, f, defaults[name]) for name, f in known.items()]
    fields += [(n, f, coerce(f, kept.get(n, f.default))) for n, f in kept_as.items()]
    if "clip_eps" in known and command != "reason":
        fields.insert(0, ("preset", dataclasses.fields(PresetOptions)[0], None))
    groups = {f.name: _group(f.name, kind) for kind in kinds for f in dataclasses.fields(kind)}
    parsed = read_flags(
        arguments, fields, f"{PROGRAM} {command}", DOCS[command], origins=origins, groups=groups
    )
    for kind in kinds:
        check_record(pick(kind, {n: f.default for n, f in every.items()} | parsed))
    options = StageOptions(**{name: parsed[name] for name in kept_as})
    check_record(options)
    values = {name: parsed[name] for name in known}
    if "anneal_updates" in values:
        _settle_horizon(values, first.resume is not None)
    if first.resume is not None:
        changed = [n for n in values if n not in free and values[n] != defaults[n]]
        if changed:
            raise ConfigError(
                f"--resume continues the same run, but these differ: {', '.join(changed)}; leave "
                "them out, or start a new run"
            )
    # A run may be continued from any working directory.
    values = {n: x.resolve() if isinstance(x, Path) else x for n, x in values.items()}
    return values, options


def _without(command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The options that a stage has."""
    return {name: f for name, f in fields.items() if name not in WITHOUT.get(command, ())}


def _refuse_in_demo(arguments: list[str]) -> None:
    """Refuse the options of a single stage for the demo, which runs all of them."""
    for word in arguments:
        name = word.partition("=")[0]
        if name.removeprefix("--").replace("-", "_") in NOT_IN_DEMO:
            raise ConfigError(
                f"the demo has no {name}; the commands of its stages have it: {PROGRAM} sft, "
                f"{PROGRAM} reward and {PROGRAM} ppo"
            )


def _settle_horizon(values: dict[str, Any], resumed: bool) -> None:
    """Replace a horizon of None by the number of updates, and warn of updates beyond it."""
    # With --epochs, the number of updates of a supervised stage follows from its data.
    planned = "batch_size" in values and values["epochs"] is not None and not resumed
    if values["anneal_updates"] is None and not planned:
        values["anneal_updates"] = values["updates"]
    rate, horizon = values["learning_rate"], values["anneal_updates"]
    decays = values.get("anneal", True) and not isinstance(rate, Schedule)
    if resumed and horizon is not None and decays and values["updates"] > horizon:
        warnings.warn(
            f"the learning rate is 0 from update {horizon + 1:,} on, because it decays over "
            f"{horizon:,} updates (--anneal-updates), but the run has {values['updates']:,}; "
            f"--anneal-updates {values['updates']} decays it over all of them",
            stacklevel=2,
        )


def _defaults(
    command: str, first: argparse.Namespace, known: dict[str, Any], kinds: tuple[Any, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(values without flags, options of a resumed run, where the values come from)."""
    own = DEFAULTS.get(command, {})
    defaults = {name: own.get(name, f.default) for name, f in known.items()}
    if first.resume is not None:
        from ppo_jax.rlhf.folder import read_stage

        if first.preset is not None:
            raise ConfigError("--resume continues a run with the values it has: no --preset")
        given = Given(trust=first.trust, followed=frozenset([*first.reward, *first.callback]))
        saved_kind, saved, kept = read_stage(first.resume, given)
        if saved_kind != command:
            raise ConfigError(f"{first.resume} is a run of {saved_kind}, not of {command}")
        defaults |= restored(saved, kinds)
        return defaults, kept, dict.fromkeys((*defaults, *kept), f"run {first.resume}")
    if first.preset is None:
        return defaults, {n: x for n, x in own.items() if n not in known}, {}
    values = _preset(first.preset, known)
    return defaults | values, {}, dict.fromkeys(values, f"preset {first.preset}")


def _group(name: str, kind: Any) -> str:
    """The group in --help of an option: that of its record, unless every command has the option."""
    common = group_of(name, "")
    return common if common in ("run", "logging") else GROUPS[kind]


def restored(saved: dict[str, Any], kinds: tuple[Any, ...]) -> dict[str, Any]:
    """The values of a saved configuration: the inverse of `ppo_jax.rlhf.folder.flat`. Options that
    did not exist when the run was made have the values that it used, or their defaults.

    Args:
        saved: name -> value, in JSON's types.
        kinds: the records of the options.
    """
    older = OLDER | {"eval_fraction": saved.get("validation_fraction", 0.0)}
    if saved.get("anneal_updates") is None:
        saved = {**saved, "anneal_updates": saved.get("updates")}
    values = {}
    for field in (f for kind in kinds for f in dataclasses.fields(kind)):
        default = older.get(field.name, field.default)
        values[field.name] = coerce(field, saved.get(field.name, default))
    return values


def pick(kind: Any, values: dict[str, Any]) -> Any:
    """A record of options from values by name, of which there may be more."""
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})


def _preset(name: str, known: dict[str, Any]) -> dict[str, Any]:
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return {k: v for k, v in PRESETS[name].items() if k in known}


def _first(arguments: list[str]) -> argparse.Namespace:
    """The flags that the defaults of the others depend on."""
    parser = FirstPass(add_help=False, allow_abbrev=False)
    count = "?" if asks_for_help(arguments) else None
    for name in ("resume", "preset"):
        parser.add_argument(f"--{name}", type=optional, nargs=count)
    for name in ("reward", "callback"):
        parser.add_argument(f"--{name}", nargs="*", default=[])
    found = parser.parse_known_args([w for w in arguments if w not in HELP_FLAGS])[0]
    found.resume = None if found.resume is None else Path(found.resume)
    found.trust = is_on("trust", arguments)
    return found
