"""`ppo-jax rlhf`: the command lines of the stages of language models, read without JAX.

What they describe is run by `ppo_jax.cli.language`.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NoReturn

from ppo_jax.cli.cluster import refuse
from ppo_jax.cli.errors import Work, asks_for_help, exit_prepared
from ppo_jax.cli.flags import HELP as HELP_FLAGS
from ppo_jax.cli.flags import FirstPass, is_on, optional, read_flags
from ppo_jax.cli.groups import group_of
from ppo_jax.config import ConfigError
from ppo_jax.config.options import check_record, coerce, did_you_mean, option
from ppo_jax.config.rlhf import (
    Adapters,
    Demo,
    EvaluateOptions,
    GenerateOptions,
    ModelOptions,
    PPOOptions,
    RewardOptions,
    Rollouts,
    Supervised,
    Update,
)
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.runs import terminal
from ppo_jax.runs.options import StageOptions
from ppo_jax.runs.trust import Given

PROGRAM = "ppo-jax rlhf"
# The records of options of each stage.
KINDS: dict[str, tuple[Any, ...]] = {
    "demo": (Demo,),
    "sft": (ModelOptions, Supervised, Adapters),
    "reward": (ModelOptions, RewardOptions, Supervised, Adapters),
    "ppo": (ModelOptions, PPOOptions, Rollouts, Update),
}
# Those of the commands that keep no run.
OTHERS: dict[str, Any] = {"generate": GenerateOptions, "evaluate": EvaluateOptions}
DOCS = {
    "demo": "Train a small model from preferences with PPO, and compare it with the optimum.",
    "sft": "Fine-tune a language model on text.",
    "reward": "Train a reward model on preferences.",
    "ppo": "Maximise a reward near a reference model, with PPO, REINFORCE, RLOO or GRPO.",
    "generate": "Generate responses with a model.",
    "evaluate": "Evaluate the policy of a run again.",
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
    Rollouts: "rollout",
    Update: "algorithm",
    Supervised: "algorithm",
    Adapters: "algorithm",
    Demo: "demo",
    GenerateOptions: "generation",
    EvaluateOptions: "evaluation",
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
        terminal.say(HELP)
        sys.exit(0)
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    options: StageOptions | None = None
    try:
        if name in OTHERS:
            values = _other_values(name, arguments)
        else:
            free = () if name == "demo" else ("updates",)
            values, options = _values(name, arguments, KINDS[name], free)
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return lambda: _work(name, values, options)


def _work(name: str, values: dict[str, Any], options: StageOptions | None) -> int:
    from ppo_jax.cli.language import work

    return work(name, values, options)


def _other_values(name: str, arguments: list[str]) -> dict[str, Any]:
    """The values of a command that keeps no run."""
    record = OTHERS[name]
    if name == "evaluate" and arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    fields = [(f.name, f, f.default) for f in dataclasses.fields(record)]
    groups = dict.fromkeys((f.name for f in dataclasses.fields(record)), GROUPS[record])
    values = read_flags(arguments, fields, f"{PROGRAM} {name}", DOCS[name], groups=groups)
    check_record(record(**values))
    return values


def _values(
    command: str, arguments: list[str], kinds: tuple[Any, ...], free: tuple[str, ...] = ("updates",)
) -> tuple[dict[str, Any], StageOptions]:
    """(flat values, how the run is kept) of a command line."""
    known = {f.name: f for kind in kinds for f in dataclasses.fields(kind)}
    first = _first(arguments)
    defaults, kept, origins = _defaults(command, first, known, kinds)
    fields = [(name, f, defaults[name]) for name, f in known.items()]
    for field in dataclasses.fields(StageOptions):
        default = coerce(field, kept.get(field.name, field.default))
        fields.append((field.name, field, default))
    if "clip_eps" in known:
        fields.insert(0, ("preset", dataclasses.fields(PresetOptions)[0], None))
    groups = {f.name: _group(f.name, kind) for kind in kinds for f in dataclasses.fields(kind)}
    parsed = read_flags(
        arguments, fields, f"{PROGRAM} {command}", DOCS[command], origins=origins, groups=groups
    )
    for kind in (*kinds, StageOptions):
        check_record(pick(kind, parsed))
    values = {name: parsed[name] for name in known}
    if first.resume is not None:
        changed = [n for n in values if n not in free and values[n] != defaults[n]]
        if changed:
            raise ConfigError(
                f"--resume continues the same run, but these differ: {', '.join(changed)}; leave "
                "them out, or start a new run"
            )
    # A run may be continued from any working directory.
    values = {n: x.resolve() if isinstance(x, Path) else x for n, x in values.items()}
    return values, pick(StageOptions, parsed)


def _defaults(
    command: str, first: argparse.Namespace, known: dict[str, Any], kinds: tuple[Any, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(values without flags, options of a resumed run, where the values come from)."""
    defaults = {name: f.default for name, f in known.items()}
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
        return defaults, {}, {}
    values = _preset(first.preset, known)
    return defaults | values, {}, dict.fromkeys(values, f"preset {first.preset}")


def _group(name: str, kind: Any) -> str:
    """The group in --help of an option: that of its record, unless every command has the option."""
    common = group_of(name, "")
    return common if common in ("run", "logging") else GROUPS[kind]


def restored(saved: dict[str, Any], kinds: tuple[Any, ...]) -> dict[str, Any]:
    """The values of a saved configuration: the inverse of `ppo_jax.rlhf.folder.flat`. Options that
    did not exist when the run was made have their defaults.

    Args:
        saved: name -> value, in JSON's types.
        kinds: the records of the options.
    """
    values = {}
    for field in (f for kind in kinds for f in dataclasses.fields(kind)):
        values[field.name] = coerce(field, saved.get(field.name, field.default))
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
