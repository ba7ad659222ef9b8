"""The referee: ppo_jax, PureJaxRL, Rejax, Brax, SBX, Stable-Baselines3 and RLtools in one run.

python -m benchmarks.throughput --suite smoke                       two minutes, to see it work
python -m benchmarks.throughput --suite cpu --purejaxrl PATH        everything a CPU can do
python -m benchmarks.throughput --suite cpu --purejaxrl PATH --fresh    ... in place of older rows
python -m benchmarks.throughput --suite gpu --purejaxrl PATH
python -m benchmarks.throughput --parts breakdown scaling           ppo_jax alone
python -m benchmarks.throughput --table                             print the committed results
python -m benchmarks.throughput --documents                         ... into the documentation

PATH is the folder of PureJaxRL's ppo.py, which is no package. The other peers are installed by pip
into an environment of their own at the first run, with the jax and jaxlib that ppo_jax runs on.
Each contestant is a process; they take rounds in turns, A B C A B C, while the others wait: on one
device each, and on one device per core each. Medians and the ratios of neighbouring rounds go to
benchmarks/results/throughput.csv with the machine, the commit and all versions, every round to
throughput_rounds.csv, the figure beside them. A table has rows of one commit alone.
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
from ppo_jax.config.options import did_you_mean

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
    """Measure.

    Attributes:
        suite: which configurations.
        configurations: these instead.
        contestants: who takes part.
        parts: race: everybody; restart: from the cache of compiled programs; breakdown: of one
            update; scaling: with size; quality: time until an agent is good.
        purejaxrl: folder of PureJaxRL's ppo.py.
        peers: virtual environment of the peers; made in the user's cache if not given.
        devices: one: one device each; all: one for each core, by each project's own means.
        rounds: how often each; of fewer than five no interval is known.
        seconds: of a round.
        patience: seconds until one that does not answer is given up.
        seeds: of time to quality.
        tasks: of time to quality.
        out: folder of the tables and figures; the smoke suite leaves none unless it is given.
        fresh: drop rows of other commits from the tables of these parts.
        table: only print the committed results, as the documentation has them.
        documents: only write them into README.md and docs/throughput.md.
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
    """Refuse unknown names before anything is installed.

    Raises:
        SystemExit: which, and what there is.
    """
    known = {
        "configurations": tuple(CONFIGURATIONS),
        "contestants": tuple(NAMES),
        "parts": PARTS,
        "tasks": tuple(quality.TASKS),
    }
    for option, names in known.items():
        for name in getattr(options, option):
            if name not in names:
                raise SystemExit(f"--{option}: unknown {name!r}; {did_you_mean(name, names)}")
    if options.purejaxrl is not None and not (options.purejaxrl / "ppo.py").exists():
        raise SystemExit(f"--purejaxrl: there is no ppo.py in {options.purejaxrl}")
    for option in ("rounds", "seconds", "patience", "seeds"):
        if getattr(options, option) <= 0:
            raise SystemExit(f"--{option} is {getattr(options, option)}; it must be > 0")


def main(options: Options) -> None:
    """Run the parts, keep what they find, print it."""
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
    """How the contestants are run; the peers are installed if they take part."""
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
    """The tables of a part."""
    return (results.RACE, results.ROUNDS) if part == "race" else (f"throughput_{part}.csv",)


def measure(
    part: str, options: Options, settings: Settings, where: results.Where, *, out: Path
) -> None:
    """One part; what it finds is kept at once."""
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
    """One configuration, on one device each or on all."""
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
    """A part's rows, with every column."""
    rows = [dict.fromkeys(fields, "") | row | {"commit": commit} for row in rows]
    known = results.of_commit(commit) if fresh else lambda row: True
    replace(path, rows, key, results.place, known)


def printed(out: Path) -> dict[str, str]:
    """Everything that was measured and kept, as the documentation has it: name -> Markdown."""
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
