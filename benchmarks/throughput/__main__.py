"""Speed of ppo_jax, PureJaxRL, Rejax, Brax, SBX, Stable-Baselines3 and RLtools in one run.

python -m benchmarks.throughput --suite smoke                       a short test of the command
python -m benchmarks.throughput --suite cpu --purejaxrl PATH        all configurations for a CPU
python -m benchmarks.throughput --suite cpu --purejaxrl PATH --fresh    ... dropping older rows
python -m benchmarks.throughput --suite gpu --purejaxrl PATH        all configurations for a GPU
python -m benchmarks.throughput --parts breakdown scaling           only ppo_jax
python -m benchmarks.throughput --table                             print the committed results
python -m benchmarks.throughput --documents                         write them to the documentation

PATH is the folder of PureJaxRL's ppo.py, which is not a package. The other peers are installed by
pip into a virtual environment of their own in the first run, with the same versions of jax and
jaxlib as ppo_jax. Each contestant is a process; rounds are interleaved, A B C A B C, while the
other contestants wait. All of them are measured on one device, and then on one device per core.
Medians and the ratios of neighbouring rounds are written to benchmarks/results/throughput.csv with
the machine, the commit and all versions; every round to throughput_rounds.csv; and a figure to the
same folder. All rows of a table have the same commit.
"""

import dataclasses
import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import commit
from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, read, replace
from benchmarks.throughput import (
    breakdown,
    documents,
    peers,
    quality,
    restart,
    results,
    scaling,
    tables,
)
from benchmarks.throughput.configurations import CONFIGURATIONS
from benchmarks.throughput.race import NAMES, ROOT, Settings, race

SUITES = {
    "smoke": ("cartpole-4x128",),
    "cpu": (
        "cartpole-4x128",
        "cartpole-64x128",
        "cartpole-2048x32",
        "pendulum-64x128",
        "breakout-64x128",
        "cartpole-4x128-a16",
        "cartpole-4x128-a128",
        "cartpole-4x128-a2048",
    ),
    "gpu": (
        "cartpole-2048x32",
        "cartpole-8192x32",
        "cartpole-32768x32",
        "breakout-2048x32",
        "cartpole-4x128-a2048",
        "breakout-64x128-a256",
    ),
}
PARTS = ("race", "restart", "breakdown", "scaling", "quality")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the speed of PPO in several projects.

    Attributes:
        suite: set of configurations to measure.
        configurations: names of configurations to measure instead of a suite.
        contestants: names of the contestants to measure.
        parts: parts to run: race compares all contestants; restart measures start-up with the cache
            of compiled programs; breakdown measures the parts of one update; scaling varies the
            size; quality measures the time until an agent reaches a threshold.
        purejaxrl: folder of PureJaxRL's ppo.py.
        peers: virtual environment of the peers; by default one in the user's cache, made if
            missing.
        devices: numbers of devices: one for each contestant, or all, which is one per core by the
            means of each project.
        rounds: number of rounds; with fewer than five there is no confidence interval.
        seconds: approximate duration of a round in seconds.
        patience: seconds after which a contestant that does not answer is stopped.
        seeds: number of seeds of the part quality.
        tasks: tasks of the part quality.
        out: folder of the tables and figures; without it the smoke suite writes none.
        fresh: drop rows of other commits from the tables of the parts that are run.
        table: only print the committed results, as in the documentation.
        documents: only write the committed results to README.md and docs/throughput.md.
    """

    suite: Literal["smoke", "cpu", "gpu"] = "cpu"
    configurations: tuple[str, ...] = ()
    contestants: tuple[str, ...] = tuple(NAMES)
    parts: tuple[str, ...] = ("race",)
    purejaxrl: Path | None = None
    peers: Path | None = None
    devices: tuple[Literal["one", "all"], ...] = ("one", "all")
    rounds: int = 11
    seconds: float = 2.0
    patience: float = 300.0
    seeds: int = 5
    tasks: tuple[str, ...] = ("cartpole",)
    out: Path | None = None
    fresh: bool = False
    table: bool = False
    documents: bool = False


def check(options: Options) -> None:
    """Refuse invalid options before anything is installed.

    Raises:
        SystemExit: an option is invalid; the message names its value and the allowed ones.
    """
    known = {
        "configurations": tuple(CONFIGURATIONS),
        "contestants": tuple(NAMES),
        "parts": PARTS,
        "tasks": tuple(quality.TASKS),
    }
    for option, names in known.items():
        check_names(option, getattr(options, option), names)
    if options.purejaxrl is not None and not (options.purejaxrl / "ppo.py").exists():
        raise SystemExit(f"--purejaxrl: there is no ppo.py in {options.purejaxrl}")
    for option in ("rounds", "seconds", "patience", "seeds"):
        if getattr(options, option) <= 0:
            raise SystemExit(f"--{option} is {getattr(options, option)}; it must be > 0")


def main(options: Options) -> None:
    """Run the chosen parts, write their rows and print the tables."""
    check(options)
    if options.table:
        print("\n".join(printed(RESULTS).values()), end="")
        return
    if options.documents:
        documents.write(ROOT, printed(RESULTS))
        return
    where = results.Where(
        importlib.metadata.version("jax"), commit.of(ROOT), load=os.getloadavg()[0]
    )
    with tempfile.TemporaryDirectory() as nowhere:
        out = options.out or (Path(nowhere) if options.suite == "smoke" else RESULTS)
        files = [out / name for part in options.parts for name in files_of(part)]
        ours = out.resolve() == RESULTS.resolve()
        commit.refuse(files, where.commit, committed=ours, fresh=options.fresh)
        settings = settings_of(options)
        for part in options.parts:
            measure(part, options, settings, where, out=out)
        print("\n".join(printed(out).values()), end="")


def settings_of(options: Options) -> Settings:
    """The settings of the race; the peers are installed if they are measured."""
    rivals = {*options.contestants} - {"ours"}
    needed = rivals and {*options.parts} & {"race", "quality"}
    return Settings(
        peers=peers.python(options.peers) if needed else "",
        purejaxrl=options.purejaxrl,
        rounds=options.rounds,
        seconds=options.seconds,
        patience=options.patience,
    )


def files_of(part: str) -> tuple[str, ...]:
    """The names of the CSV files of a part."""
    return (results.RACE, results.ROUNDS) if part == "race" else (f"throughput_{part}.csv",)


def measure(
    part: str, options: Options, settings: Settings, where: results.Where, *, out: Path
) -> None:
    """Run one part, and write its rows as soon as they are measured."""
    names = options.configurations or SUITES[options.suite]
    if part == "race":
        for name in names:
            for devices in options.devices:
                at = dataclasses.replace(where, devices=devices)
                run_race(name, options, settings, at, out=out)
        return
    path = out / f"throughput_{part}.csv"
    keep = functools.partial(keep_part, path, commit=where.commit, fresh=options.fresh)
    if part == "restart":
        keep([restart.restart(where.jax)], restart.FIELDS, restart.KEY)
    elif part == "breakdown":
        for name in (n for n in names if CONFIGURATIONS[n].agents == 1):
            rows = breakdown.breakdown(CONFIGURATIONS[name])
            keep(rows, breakdown.FIELDS, breakdown.KEY)
    elif part == "scaling":
        keep(scaling.scaling(settings, where.jax), scaling.FIELDS, scaling.KEY)
        figure = out / "throughput_scaling.png"
        scaling.plot(read(path), where.jax, figure)
    else:
        tasks, who = [*options.tasks], options.contestants
        rows = quality.quality(tasks, options.seeds, who, settings, where.jax)
        keep(rows, quality.FIELDS, quality.KEY)


def run_race(
    name: str, options: Options, settings: Settings, where: results.Where, *, out: Path
) -> None:
    """Run the race on one configuration, on one device or on all devices."""
    settings = dataclasses.replace(settings, devices=where.devices)
    field = race(CONFIGURATIONS[name], options.contestants, settings)
    if results.keep_race(out, field, where, options.fresh):
        tables.plot(out)


def keep_part(
    path: Path,
    rows: list[Row],
    fields: tuple[str, ...],
    key: tuple[str, ...],
    *,
    commit: str,
    fresh: bool,
) -> None:
    """Write the rows of a part, with all columns."""
    rows = [dict.fromkeys(fields, "") | row | {"commit": commit} for row in rows]
    known = results.of_commit(commit) if fresh else lambda row: True
    replace(path, rows, key, results.place, known)


def printed(out: Path) -> dict[str, str]:
    """All tables of the documentation with results, name -> Markdown."""
    found = {
        "summary": tables.summary(out),
        "race": tables.markdown(out),
        "cpu": tables.markdown(out, "cpu_seconds"),
        "compile": tables.compile_markdown(out),
    }
    for part, module in {"breakdown": breakdown, "restart": restart, "quality": quality}.items():
        path = out / f"throughput_{part}.csv"
        rows = read(path)
        commit.one(rows, str(path))
        found[part] = module.markdown(rows)
    return {name: table for name, table in found.items() if table.count("\n") > 2}


if __name__ == "__main__":
    main(tyro.cli(Options))
