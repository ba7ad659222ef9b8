"""The referee: ppo_jax, PureJaxRL, Rejax, Brax, SBX and Stable-Baselines3 in one run.

python -m benchmarks.throughput --suite smoke                       two minutes, to see it work
python -m benchmarks.throughput --suite cpu --purejaxrl PATH        everything a CPU can do
python -m benchmarks.throughput --suite gpu --purejaxrl PATH
python -m benchmarks.throughput --parts breakdown scaling           ppo_jax alone
python -m benchmarks.throughput --table                             print the committed results

PATH is the folder of PureJaxRL's ppo.py, which is no package. The other peers are installed by pip
into an environment of their own at the first run, with the jax and jaxlib that ppo_jax runs on.
Each contestant is a process; they take rounds in turns, A B C A B C, while the others wait. Medians
go to benchmarks/results/throughput.csv with the machine and all versions, the figure beside it.
"""

import dataclasses
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.table import RESULTS, Row, read, replace
from benchmarks.throughput import breakdown, peers, quality, restart, results, scaling
from benchmarks.throughput.configurations import CONFIGURATIONS
from benchmarks.throughput.race import NAMES, Settings, race
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
        rounds: how often each.
        seconds: of a round.
        patience: seconds until one that does not answer is given up.
        seeds: of time to quality.
        tasks: of time to quality.
        out: folder of the tables and figures; the smoke suite leaves none unless it is given.
        table: only print the committed results, as the documentation has them.
    """

    suite: Literal["smoke", "cpu", "gpu"] = "cpu"
    configurations: tuple[str, ...] = ()
    contestants: tuple[str, ...] = tuple(NAMES)
    parts: tuple[str, ...] = ("race",)
    purejaxrl: Path | None = None
    peers: Path | None = None
    rounds: int = 5
    seconds: float = 2.0
    patience: float = 300.0
    seeds: int = 5
    tasks: tuple[str, ...] = ("cartpole",)
    out: Path | None = None
    table: bool = False


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
        print("\n".join(tables(RESULTS)), end="")
        return
    jax = importlib.metadata.version("jax")
    rivals = {*options.contestants} - {"ours"}
    needed = rivals and {*options.parts} & {"race", "quality"}
    settings = Settings(
        peers=peers.python(options.peers) if needed else "",
        purejaxrl=options.purejaxrl,
        rounds=options.rounds,
        seconds=options.seconds,
        patience=options.patience,
    )
    with tempfile.TemporaryDirectory() as nowhere:
        out = options.out or (Path(nowhere) if options.suite == "smoke" else RESULTS)
        for part in options.parts:
            measure(part, options, settings, jax, out)
        print("\n".join(tables(out)), end="")


def measure(part: str, options: Options, settings: Settings, jax: str, out: Path) -> None:
    """One part; what it finds is kept at once."""
    names = options.configurations or SUITES[options.suite]
    if part == "race":
        for name in names:
            field = race(CONFIGURATIONS[name], options.contestants, settings)
            results.keep_race(out, results.rows_of(field, jax))
            results.plot_race(out)
    elif part == "restart":
        keep(out, part, [restart.restart(jax)], restart.FIELDS, restart.KEY)
    elif part == "breakdown":
        for name in (n for n in names if CONFIGURATIONS[n].agents == 1):
            rows = breakdown.breakdown(CONFIGURATIONS[name])
            keep(out, part, rows, breakdown.FIELDS, breakdown.KEY)
    elif part == "scaling":
        keep(out, part, scaling.scaling(settings, jax), scaling.FIELDS, scaling.KEY)
        scaling.plot(read(out / "throughput_scaling.csv"), jax, out / "throughput_scaling.png")
    else:
        tasks, who = [*options.tasks], options.contestants
        rows = quality.quality(tasks, options.seeds, who, settings, jax)
        keep(out, part, rows, quality.FIELDS, quality.KEY)


def keep(
    out: Path, name: str, rows: list[Row], fields: tuple[str, ...], key: tuple[str, ...]
) -> None:
    """A part's rows, with every column."""
    rows = [dict.fromkeys(fields, "") | row for row in rows]
    replace(out / f"throughput_{name}.csv", rows, key, results.place)


def tables(out: Path) -> list[str]:
    """Everything that was measured and kept, as the documentation has it."""
    found = [results.race_summary(out), results.race_markdown(out)]
    found.append(results.compile_markdown(out))
    found.append(breakdown.markdown(read(out / "throughput_breakdown.csv")))
    found.append(restart.markdown(read(out / "throughput_restart.csv")))
    found.append(quality.markdown(read(out / "throughput_quality.csv")))
    return [table for table in found if table.count("\n") > 2]


if __name__ == "__main__":
    main(tyro.cli(Options))
