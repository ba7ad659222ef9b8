"""`ppo-jax sweep`: the flags of `ppo-jax train`, and the options that vary."""

import dataclasses
import itertools
import os
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ppo_jax import config as configs
from ppo_jax import suites
from ppo_jax.cli.cluster import refuse
from ppo_jax.cli.errors import Work, asks_for_help, exit_prepared
from ppo_jax.cli.flags import base_config, given_of, parse, starting_point
from ppo_jax.config import ConfigError, TrainConfig, commands
from ppo_jax.config.options import check_record
from ppo_jax.config.toml import to_toml
from ppo_jax.runs import terminal
from ppo_jax.runs.trust import Given
from ppo_jax.sweep.options import PointOptions, SweepOptions, WorkerOptions
from ppo_jax.sweep.points import Overrides, configure, grid, parse_vary, sample

if TYPE_CHECKING:
    from ppo_jax.sweep.store import Spec

PROGRAM = "ppo-jax sweep"
DOC = "Train all combinations of hyperparameters and seeds at once, and report on them."
# Options that may change when a sweep is resumed.
FREE_ON_RESUME = (
    "run_dir", "resume", "confirm", "threshold", "trust",
    *(f.name for f in dataclasses.fields(WorkerOptions)),
)  # fmt: skip
# Options that the first session decides, because its results depend on them; and the reason.
SETTLED = {
    "agents_per_device": "another number rounds differently",
    "keep": "agents that were not kept cannot be made again",
}
RECORDS: tuple[Any, ...] = (PointOptions, SweepOptions, WorkerOptions)
OPTIONS = {f.name: f for record in RECORDS for f in dataclasses.fields(record)}
# The group of each option in --help.
GROUP = dict.fromkeys((f.name for f in dataclasses.fields(PointOptions)), "sweep")
GROUP |= dict.fromkeys(("agents_per_device", "keep", "confirm", "threshold"), "sweep")
GROUP |= dict.fromkeys((f.name for f in dataclasses.fields(WorkerOptions)), "cluster")
FLAGS: dict[str, Any] = {
    "more": OPTIONS,
    "kept": {},
    "program": PROGRAM,
    "doc": DOC,
    "groups": GROUP,
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax sweep`, the same as `python -m ppo_jax.sweep`."""
    words = sys.argv[1:] if arguments is None else arguments
    instead = "its chunks need not wait for each other: use --cluster ray or slurm"
    exit_prepared(lambda: _prepared(words), before=lambda: refuse(words, "a sweep", instead))


def run_command(arguments: list[str]) -> int:
    """The command as a function.

    Returns:
        Exit code.

    Raises:
        ConfigError: options that cannot work.
    """
    return _prepared(arguments)()


def _prepared(arguments: list[str]) -> Work:
    """The sweep that a command line describes, before anything is computed."""
    arguments = _with_first(_with_folder(_renamed(arguments)))
    given = {w[2:].partition("=")[0].replace("-", "_") for w in arguments if w.startswith("--")}
    base, origins = starting_point(arguments)
    config, values = parse(arguments, base, **FLAGS, origins=origins)
    points, options, where = (
        record(**{f.name: values[f.name] for f in dataclasses.fields(record)}) for record in RECORDS
    )
    for record in (points, options, where):
        check_record(record)
    suites.check(config.env)
    _ = options.width
    if points.compare is None and options.resume is None:
        _varied(config, points)
    if values["print_config"]:
        terminal.say(
            "\n".join(
                [commands.shown(to_toml(config)), *(f"# --vary {word}" for word in points.vary)]
            )
        )
        sys.exit(0)
    if not asks_for_help(arguments):
        leave_devices_to_workers(where)
    return lambda: _start(arguments, config, points, options, where=where, given=given)


def _start(
    arguments: list[str],
    config: TrainConfig,
    points: PointOptions,
    options: SweepOptions,
    *,
    where: WorkerOptions,
    given: set[str],
) -> int:
    """Train, resume or compare, as the options have it."""
    one_device_per_core()
    if points.compare is not None:
        return _compare(points.compare, options.run_dir, given, given_of(arguments))
    if options.resume is not None:
        return _resume(arguments, config, points, options, where=where, given=given)
    spec = build_spec(arguments, config, points, options.confirm)
    return _run(spec, options, where, f"{config.env}_{config.algorithm}")


def _run(spec: "Spec", options: SweepOptions, where: WorkerOptions, name: str) -> int:
    """Train a complete sweep, in this process or on a cluster."""
    from ppo_jax.sweep import cluster, session
    from ppo_jax.sweep.store import SweepDirectory

    with cluster.opened(where) as workers:  # Ray is started before JAX has threads
        session.check(spec, workers is not None)
        with SweepDirectory.opened(options, name, lambda path: None) as directory:
            return session.run(spec, options, directory, workers)


def build_spec(
    arguments: list[str], config: TrainConfig, points: PointOptions, confirm: int = 0
) -> "Spec":
    """All configurations and seeds.

    Where the environment or the algorithm varies, the command line is read again for each of them,
    with the preset of that environment and algorithm.

    Raises:
        ConfigError: names or values that cannot work.
    """
    from ppo_jax.sweep.run import seed_numbers
    from ppo_jax.sweep.store import Spec

    varied = _varied(config, points)
    if points.sample is None:
        chosen = grid(varied)
    else:  # every point on every environment
        tasks = grid({n: v for n, v in varied.items() if n == "env"})
        drawn = {n: v for n, v in varied.items() if n != "env"}
        found = sample(drawn, points.sample, points.sampler, points.sample_seed)
        chosen = [{**task, **point} for task in tasks for point in found]
    bases = _bases(arguments, config, chosen)
    settings = [configure(bases[_which(config, p)], p) for p in chosen]
    seeds = seed_numbers(config, points.seeds)
    if len(seeds) + confirm > 2**32 - seeds[0]:
        raise ConfigError(f"there are no {confirm} seeds after {seeds[-1]} to confirm with")
    parts = (points.eval_episodes, points.curve_points)
    return Spec(tuple(varied), tuple(settings), tuple(seeds), *parts)


def _varied(config: TrainConfig, points: PointOptions) -> dict[str, Any]:
    """The values that vary, by the name of their option.

    Raises:
        ConfigError: an unknown name, or a value of another type.
    """
    known = configs.fields(config.algorithm)
    for algorithm in _given_values(points.vary, "algorithm", [config.algorithm]):
        known = {**configs.fields(algorithm), **known}
    return parse_vary(points.vary, known)


def leave_devices_to_workers(where: WorkerOptions) -> None:
    """Keep this process on the CPU where a cluster trains, whose workers use the accelerators."""
    if where.cluster != "none":
        import jax

        jax.config.update("jax_platforms", "cpu")


def one_device_per_core() -> None:
    """Make one JAX device for each CPU core: a program per core is faster than one program on all
    cores. A number of devices that the user has set is not changed."""
    import jax

    from ppo_jax.sweep.worker import devices_set

    if devices_set() is not None:
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(RuntimeError):  # JAX has started its devices in this process already
        jax.config.update("jax_num_cpu_devices", cores)


def _renamed(arguments: list[str]) -> list[str]:
    """The command line with `--agents-per-device` in place of its older name `--batch-size`."""
    old = [word for word in arguments if re.match(r"--batch[-_]size(=|$)", word)]
    if old:
        warnings.warn(
            "--batch-size of a sweep is now --agents-per-device; a batch is the rows of one "
            "gradient step",
            stacklevel=1,
        )
    return [w.replace(w[:12], "--agents-per-device", 1) if w in old else w for w in arguments]


def _with_folder(arguments: list[str]) -> list[str]:
    """The command line with `--resume DIR` in place of `--run-dir DIR --resume`, the older form."""
    for i, word in enumerate(arguments):
        alone = word == "--resume" and (i + 1 == len(arguments) or arguments[i + 1][:2] == "--")
        if alone and "--run-dir" in arguments[:-1]:
            warnings.warn("write --resume DIR, without --run-dir", stacklevel=1)
            at = arguments.index("--run-dir")
            rest = [w for k, w in enumerate(arguments) if k not in (i, at, at + 1)]
            return [*rest, "--resume", arguments[at + 1]]
    return arguments


def _with_first(arguments: list[str]) -> list[str]:
    """The command line with the first environment and algorithm of those that vary, which decide
    the options that exist."""
    more = []
    for name in ("env", "algorithm"):
        pairs = itertools.pairwise(["", *arguments])
        words = [w.removeprefix("--vary=") for last, w in pairs if "--vary" in (last, w[:6])]
        values = [w.partition("=")[2].split(",")[0] for w in words if w.startswith(f"{name}=")]
        if values and not any(w.partition("=")[0] == f"--{name}" for w in arguments):
            more += [f"--{name}", values[0].strip()]
    return [*arguments, *more]


def _given_values(words: tuple[str, ...], name: str, default: list[str]) -> list[str]:
    """The values that --vary gives to a name; the default without --vary."""
    for word in words:
        if word.startswith(f"{name}="):
            return [v.strip() for v in word.partition("=")[2].split(",")]
    return default


def _which(config: TrainConfig, point: Overrides) -> tuple[str, str]:
    return point.get("env", config.env), point.get("algorithm", config.algorithm)


def _bases(
    arguments: list[str], config: TrainConfig, points: list[Overrides]
) -> dict[tuple[str, str], TrainConfig]:
    """(environment, algorithm) -> the configuration of the command line for them."""
    bases = {(config.env, config.algorithm): config}
    for env, algorithm in dict.fromkeys(_which(config, p) for p in points):
        if (env, algorithm) not in bases:
            words = [*arguments, "--env", env, "--algorithm", algorithm]
            parsed = parse(words, base_config(words), **FLAGS)
            bases[env, algorithm] = parsed[0]
    return bases


def _resume(
    arguments: list[str],
    config: TrainConfig,
    points: PointOptions,
    options: SweepOptions,
    *,
    where: WorkerOptions,
    given: set[str],
) -> int:
    from ppo_jax.sweep.store import read_sessions, read_spec

    assert options.resume is not None
    spec, kept = read_spec(options.resume, given_of(arguments))
    if given - {*FREE_ON_RESUME, *SETTLED, *configs.CODE, "trust"}:
        _refuse_changes(spec, build_spec(arguments, config, points))
    for name, why in SETTLED.items():
        if name in given and getattr(options, name) != kept[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"the sweep has {flag} {kept[name]}, given {getattr(options, name)}; {why}, so it "
                "stays"
            )
    _warn_of_another_machine(read_sessions(options.resume)[0], where)
    kept = {n: v for n, v in kept.items() if n not in given}
    options = dataclasses.replace(options, **kept)
    return _run(spec, options, where, "")


def _warn_of_another_machine(first: dict[str, Any], where: WorkerOptions) -> None:
    """Warn where the rest of a sweep is computed with other devices or versions, which round
    differently. The device of a cluster is known after its first round."""
    from ppo_jax.runs import provenance

    before = {"device": first["device"], **first["versions"]}
    now = provenance.versions()
    if where.cluster == "none":
        now = {"device": provenance.device(), **now}
    names = [n for n in ("device", "jax", "jaxlib", "ppo_jax") if n in now]
    changed = [f"{n} was {before.get(n)} and is {now[n]}" for n in names if before.get(n) != now[n]]
    if changed:
        warnings.warn(
            f"{', '.join(changed)}: agents trained from here on agree with those of an "
            "uninterrupted sweep to rounding only",
            stacklevel=1,
        )


def _refuse_changes(saved: "Spec", wanted: "Spec") -> None:
    """Refuse other values for a resumed sweep."""
    if saved == wanted:
        return
    before, after = saved.to_json(), wanted.to_json()
    changed = [n for n in before if before[n] != after[n] and n != "configs"]
    for a, b in zip(before["configs"], after["configs"], strict=False):
        changed += [n for n in {*a, *b} if a.get(n) != b.get(n)]
    listed = ", ".join(dict.fromkeys(changed)) or "the number of configurations"
    raise ConfigError(
        f"--resume continues the same sweep, but these differ: {listed}; give --resume "
        "alone, or start a new sweep"
    )


def _compare(folders: tuple[Path, Path], out: Path | None, flags: set[str], given: Given) -> int:
    from ppo_jax.sweep.publish import compare

    others = sorted(flags - {"compare", "run_dir", "trust", *configs.CODE})
    if others:
        raise ConfigError(
            f"--compare only reads; --{others[0].replace('_', '-')} does not go with it"
        )
    names = "_".join(folder.resolve().name for folder in folders)
    out = out or Path("sweeps") / f"compare_{names}"
    if (out / "sweep.json").exists() or (out / "config.json").exists():
        raise ConfigError(
            f"{out} holds a sweep or a run; choose another --run-dir for the comparison"
        )
    compare(*folders, out, given)
    terminal.say(f"comparison: {out / 'comparison.html'}")
    return 0
