"""Returns of PPO with one option changed, compared with the default of each task.

python -m benchmarks.ablation                            all tasks and variants, 8 seeds each
python -m benchmarks.ablation --tasks pendulum --variants hl_gauss muon --seeds 16
python -m benchmarks.ablation --list                     list the tasks and the variants
python -m benchmarks.ablation --table                    print the committed results

The seeds of a variant are trained in one vmapped program and then evaluated greedily over 128
episodes. The returns of each seed are written to benchmarks/results/ablation_seeds.csv as soon as a
piece is finished, and a command that is repeated trains only what is missing there. The summary,
ablation.csv, has the interquartile mean, its difference from the default and the probability of
improvement, each with a 95 % bootstrap interval (Agarwal et al. 2021), for each task and over all
tasks.
"""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table as Printed

from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax import config as configs
from ppo_jax.analysis import statistics
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.config.presets import PRESETS
from ppo_jax.envs import InvalidEnvironment
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep
from ppo_jax.train import build

EPISODES = 128
# First seed; the presets were tuned with seeds from 1000 on.
FIRST_SEED = 0
DEFAULT = "default"
ALL = "all tasks"


@dataclasses.dataclass(frozen=True)
class Task:
    """A preset and the length of its runs.

    Attributes:
        preset: name of the preset, whose values are the default of the comparison.
        steps: environment steps of each run, which is also the horizon of learning-rate decay.
        values: range of the critic's classes, in the unit of the (normalised) discounted returns.
    """

    preset: str
    steps: int
    values: tuple[float, float] = (-10.0, 10.0)


TASKS = {
    # Before all seeds balance the pole.
    "cartpole": Task("cartpole", 20_000, (0.0, 50.0)),
    "acrobot": Task("acrobot", 150_000, (-200.0, 0.0)),
    "pendulum": Task("pendulum", 150_000),
    "mountain_car_continuous": Task("mountain_car_continuous", 150_000),
    "breakout": Task("breakout", 1_000_000, (0.0, 30.0)),
    "asterix": Task("asterix", 1_000_000, (0.0, 30.0)),
    "spaceinvaders": Task("spaceinvaders", 1_000_000, (0.0, 60.0)),
    "inverted_pendulum": Task("inverted_pendulum", 1_000_000, (0.0, 40.0)),
}
# A CPU trains all variants of these in minutes: two have discrete actions, two continuous ones.
USUAL = ("cartpole", "acrobot", "pendulum", "mountain_car_continuous")
# Each variant changes these options. The range of classes is that of the task.
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "layer_norm": {"norm": "layer"},
    "rms_norm": {"norm": "rms"},
    "simba": {"residual": True, "norm": "layer", "activation": "relu"},
    "impala": {"network": "impala", "activation": "relu"},
    "two_hot": {"value_head": "two_hot"},
    "hl_gauss": {"value_head": "hl_gauss"},
    "quantile": {"value_head": "quantile"},
    "spo": {"objective": "simple"},
    "dpo": {"objective": "discovered"},
    "ppo_ewma": {"proximal_decay": 0.9},
    "rpo": {"rpo_alpha": 0.5},
    "muon": {"optimizer": "muon"},
    "adam_reset": {"adam_reset": True},
    "weight_decay": {"weight_decay": 0.01},
    "stagger": {"stagger": True},
}
CLASSES = ("two_hot", "hl_gauss")
# Columns that identify a trained seed.
SAME = ("task", "variant", "env_steps", "options", "seed")


@dataclasses.dataclass(frozen=True)
class Options:
    """Train each option against the default.

    Attributes:
        tasks: names of the tasks; by default four that a CPU trains in minutes.
        variants: names of the variants; all by default. The default itself is always included.
        seeds: number of seeds of each variant.
        piece: number of seeds that are trained in one program, after which results are saved.
        steps: environment steps of each run; by default those of the task.
        out: folder of the two result files.
        list: only list the tasks and the variants.
        table: only print the results in the folder.
    """

    tasks: tuple[str, ...] = USUAL
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 8
    piece: int = 8
    steps: int | None = None
    out: Path = RESULTS
    list: bool = False
    table: bool = False


def changes_of(task: Task, variant: str) -> dict[str, Any]:
    """The options that a variant changes in a task."""
    low, high = task.values
    ranged = {"value_low": low, "value_high": high} if variant in CLASSES else {}
    return VARIANTS[variant] | ranged


def config_of(task: Task, variant: str, steps: int) -> configs.TrainConfig | None:
    """The configuration of a variant; None where the option has no effect in the task."""
    changes = changes_of(task, variant)
    try:
        config = configs.make(preset=task.preset, total_timesteps=steps, seed=FIRST_SEED, **changes)
        build(config)
    except (configs.ConfigError, InvalidEnvironment):
        if variant == DEFAULT:
            raise
        return None
    return config


def text_of(changes: dict[str, Any]) -> str:
    """The changed options as one text, which identifies a variant in the result files."""
    return " ".join(f"{name}={value}" for name, value in changes.items())


def missing(rows: Iterable[Row], wanted: Row, seeds: int) -> list[int]:
    """The seeds of a variant that have not been trained.

    Args:
        rows: rows of the file with the returns of each seed.
        wanted: task, variant, env_steps and options of the variant.
        seeds: number of seeds of a variant.
    """
    mine = (r for r in rows if all(r[name] == str(value) for name, value in wanted.items()))
    done = {int(r["seed"]) for r in mine}
    return [s for s in range(FIRST_SEED, FIRST_SEED + seeds) if s not in done]


def trained(config: configs.TrainConfig, seeds: Sequence[int]) -> np.ndarray:
    """[S] mean greedy returns of the seeds, trained in one program."""
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    return metrics["eval_return"][0].mean(axis=-1)


def measure(name: str, variant: str, options: Options) -> None:
    """Train the missing seeds of a variant in pieces, and save each piece."""
    task, file = TASKS[name], options.out / "ablation_seeds.csv"
    steps = options.steps or task.steps
    wanted: Row = {"task": name, "variant": variant, "env_steps": steps}
    wanted["options"] = text_of(changes_of(task, variant))
    seeds = missing(read(file), wanted, options.seeds)
    config = config_of(task, variant, steps) if seeds else None
    if config is None:
        return
    for start in range(0, len(seeds), options.piece):
        piece, begun = seeds[start : start + options.piece], time.perf_counter()
        returns = trained(config, piece)
        seconds = (time.perf_counter() - begun) / len(piece)
        where = {
            "seconds": round(seconds, 1),
            "device": provenance.device(),
            "jax": jax.__version__,
        }
        rows = [
            wanted | {"seed": seed, "return": round(float(x), 3)} | where
            for seed, x in zip(piece, returns, strict=True)
        ]
        replace(file, rows, SAME, place)
        print(f"{name} {variant}: {len(piece)} seeds, mean {returns.mean():.1f}", flush=True)


def place(row: Row) -> tuple[Any, ...]:
    """The position of a row: the order of tasks and variants, then the seed."""
    task = [*TASKS, ALL].index(row["task"]) if row["task"] in {*TASKS, ALL} else len(TASKS) + 1
    known = [*VARIANTS]
    variant = known.index(row["variant"]) if row["variant"] in known else len(known)
    return task, variant, int(row.get("env_steps") or 0), int(row.get("seed") or 0)


def returns_of(rows: Iterable[Row], steps: int | None) -> dict[tuple[str, str], np.ndarray]:
    """(task, variant) -> returns of its seeds, at the length and with the options of today."""
    found: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        task = TASKS.get(r["task"])
        if task is None or r["variant"] not in VARIANTS:
            continue
        same_options = r["options"] == text_of(changes_of(task, r["variant"]))
        if same_options and int(r["env_steps"]) == (steps or task.steps):
            found.setdefault((r["task"], r["variant"]), []).append(float(r["return"]))
    return {key: np.array(values) for key, values in found.items()}


def summaries(returns: dict[tuple[str, str], np.ndarray]) -> list[Row]:
    """The rows of the summary: one for each task and variant, and one for all tasks together.

    Args:
        returns: (task, variant) -> returns of its seeds. A task without its default is left out.

    Returns:
        Rows whose statistics compare a variant with the default of the same task. A variant is
        compared over all tasks in which it was trained, if there are several.
    """
    rows: list[Row] = []
    compared: dict[str, list[str]] = {}
    for (task, variant), x in returns.items():
        if (default := returns.get((task, DEFAULT))) is not None:
            compared.setdefault(variant, []).append(task)
            rows.append(_row(task, variant, [x], [default]))
    for variant, tasks in compared.items():
        if len(tasks) > 1 and variant != DEFAULT:
            strata = [[returns[task, v] for task in tasks] for v in (variant, DEFAULT)]
            rows.append(_row(ALL, variant, *strata))
    return sorted(rows, key=place)


def _row(task: str, variant: str, x: list[np.ndarray], default: list[np.ndarray]) -> Row:
    """One row of the summary; returns of different tasks have no common unit, and no mean."""
    row: Row = {
        "task": task,
        "variant": variant,
        "tasks": len(x),
        "seeds": min(map(len, [*x, *default])),
    }
    none = variant == DEFAULT
    one = {} if task == ALL else _estimate(x, statistics.interquartile_mean)
    gain = {} if task == ALL or none else _estimate([*x, *default], statistics.difference)
    better = statistics.probability_of_improvement
    chance = {} if none else _estimate([*x, *default], better, digits=3)
    for name, numbers in (("iqm", one), ("difference", gain), ("probability", chance)):
        row |= {name + end: numbers.get(end, "") for end in ("", "_low", "_high")}
    return row


def _estimate(strata: list[np.ndarray], statistic: Any, digits: int = 2) -> dict[str, float]:
    """A statistic with its 95 % interval, by the endings of their columns."""
    low, high = statistics.interval(strata, statistic)
    numbers = {"": statistic(*strata), "_low": low, "_high": high}
    return {end: round(float(x), digits) for end, x in numbers.items()}


def summarise(options: Options) -> list[Row]:
    """Compute the summary from the returns of all seeds, and write it."""
    rows = summaries(returns_of(read(options.out / "ablation_seeds.csv"), options.steps))
    file = options.out / "ablation.csv"
    if rows:
        file.unlink(missing_ok=True)
        replace(file, rows, ("task", "variant"), place)
    return rows


def markdown(rows: list[Row]) -> str:
    """The table of the documentation: a row per variant, a column per task and for all tasks."""
    tasks = [name for name in (*TASKS, ALL) if any(r["task"] == name for r in rows)]
    cells = {(r["variant"], r["task"]): r for r in rows}
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for variant in (v for v in VARIANTS if any(r["variant"] == v for r in rows)):
        texts = [_cell(cells.get((variant, task))) for task in tasks]
        lines.append(f"| `{variant}` | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    """Interquartile mean with its interval, and the probability of improvement with its."""
    if row is None:
        return ""
    spread = "" if row["iqm"] == "" else f"{row['iqm']} [{row['iqm_low']}, {row['iqm_high']}]"
    if row["probability"] == "":
        return spread
    low, high = row["probability_low"], row["probability_high"]
    return f"{spread} P {row['probability']} [{low}, {high}]".strip()


def listed() -> None:
    """Print the tasks and the variants."""
    table = Printed("task", "environment", "steps")
    for name, task in TASKS.items():
        table.add_row(name, PRESETS[task.preset]["env"], f"{task.steps:,}")
    Console(width=100).print(table)
    table = Printed("variant", "options")
    for name, changes in VARIANTS.items():
        table.add_row(name, text_of(changes))
    Console(width=100).print(table)


def main(options: Options) -> None:
    """Train what is missing, summarise and print."""
    if options.list:
        listed()
        return
    if options.table:
        rows = read(options.out / "ablation.csv")
        print(markdown(rows) if rows else "nothing is measured yet: python -m benchmarks.ablation")
        return
    check_names("tasks", options.tasks, TASKS)
    check_names("variants", options.variants, VARIANTS)
    for name in ("seeds", "piece"):
        if getattr(options, name) < 1:
            raise SystemExit(f"{name} is {getattr(options, name)}; it must be >= 1")
    one_device_per_core()
    for task in options.tasks:
        for variant in dict.fromkeys((DEFAULT, *options.variants)):
            measure(task, variant, options)
            summarise(options)
    print(markdown(summarise(options)), end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
