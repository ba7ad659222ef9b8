"""Reinforcement learning with verified answers: methods over several seeds, and TRL's GRPOTrainer.

python -m benchmarks.reasoning                               all methods, the harder task, TRL
python -m benchmarks.reasoning --methods grpo rloo --seeds 8
python -m benchmarks.reasoning --parts harder                grpo on a harder task
python -m benchmarks.reasoning --parts trl                   single runs of grpo beside TRL's
python -m benchmarks.reasoning --flags="--updates 800"       further flags of every run, after "="
python -m benchmarks.reasoning --table                       print the committed results

A method is one `ppo-jax rlhf reason` with all its seeds, in a folder inside --runs. An interrupted
run is resumed, and a finished one is not repeated, so that the benchmark can run in pieces. Beside
TRL, each seed is a run of its own, because TRL trains one agent at a time. TRL starts from the
fine-tuned model of that run and gets the same training problems in the same order, the same
hyperparameters and a reward function with the same rewards; its settings are in
benchmarks/language/trl_grpo.py. Its environment is that of benchmarks.rlhf. The results are
benchmarks/results/reasoning.csv (a row for each agent), reasoning_curves.csv (interquartile means
with 95 % intervals) and docs/images/reasoning.png.
"""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.figures import IMAGES
from benchmarks.language import reasoning_peer as peer
from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax.analysis import statistics, style
from ppo_jax.cli.rlhf import KINDS, _values
from ppo_jax.rlhf.folder import flat, read_stage
from ppo_jax.runs import provenance
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.runs.trust import Given

# The flags of each method besides those that all have.
METHODS: dict[str, tuple[str, ...]] = {
    "ppo": ("--algorithm", "ppo"),
    "rloo": ("--algorithm", "rloo"),
    "grpo": ("--algorithm", "grpo"),
    "dr_grpo": ("--algorithm", "dr_grpo"),
    "dapo": ("--algorithm", "dapo"),
    # The clip range of its paper, section 5.1.
    "gspo": ("--algorithm", "gspo", "--clip-eps", "3e-4", "--clip-eps-high", "4e-4"),
}
# Addition of two digits is the default of ppo-jax rlhf reason. With three digits, the fine-tuning
# needs more worked examples and gradient steps, and a smaller learning rate is stable.
TASK, HARDER = "two digits", "three digits"
HARDER_FLAGS = (
    "--difficulty", "digits=3", "--worked-examples", "10000", "--sft-updates", "4000",
    "--start-at", "0.3", "--updates", "1600", "--learning-rate", "linear(2e-4, 0, warmup=0.1)",
)  # fmt: skip
# Flags with which TRL would train on another problem or with another objective.
NOT_OF_TRL = ("kl-coef", "kl-kind", "kl-in", "kl-target", "kl-horizon")
PARTS = ("methods", "harder", "trl")
AGENT = "eval_pass_at_1_agent_"
# Columns that identify an agent; an agent of a run with several is another than one that is alone.
KEY = ("task", "implementation", "method", "agents", "seed")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare methods on a task with verified answers.

    Attributes:
        methods: methods to train.
        parts: parts to run: methods trains all methods, harder trains grpo on three-digit
            addition, trl trains one seed at a time with grpo and TRL's GRPOTrainer.
        seeds: number of seeds of each method, at least 2.
        peer_seeds: number of seeds that are trained beside TRL.
        flags: further flags of every run as one text, as in --flags="--updates 100".
        runs: folder of the runs.
        out: folder of the tables.
        image: folder of the figure.
        peer: virtual environment of TRL; by default one in the user's cache, made if missing.
        table: only print the committed results.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    parts: tuple[str, ...] = PARTS
    seeds: int = 8
    peer_seeds: int = 3
    flags: str = ""
    runs: Path = Path("runs/reasoning")
    out: Path = RESULTS
    image: Path = IMAGES
    peer: Path | None = None
    table: bool = False


def check(options: Options) -> None:
    """Refuse invalid options before anything is trained.

    Raises:
        SystemExit: an option is invalid; the message names its value and the allowed ones.
    """
    check_names("methods", options.methods, METHODS)
    check_names("parts", options.parts, PARTS)
    if options.seeds < 2:
        raise SystemExit(f"--seeds is {options.seeds}; an interval needs at least 2")
    if options.peer_seeds < 1:
        raise SystemExit(f"--peer-seeds is {options.peer_seeds}; it must be >= 1")
    for name in ("task", "difficulty"):
        if name in names_of(options.flags):
            raise SystemExit(f"--flags has --{name}; the tasks are those of --parts")
    if "trl" in options.parts:
        check_shared(options.flags)


def names_of(flags: str) -> list[str]:
    """The names of the flags in a text."""
    words = [word for word in flags.split() if word.startswith("--")]
    return [word.partition("=")[0].removeprefix("--").replace("_", "-") for word in words]


def check_shared(flags: str) -> None:
    """Refuse flags that the settings of TRL do not have.

    Raises:
        SystemExit: the message names the flag.
    """
    for name in names_of(flags):
        if name in NOT_OF_TRL:
            raise SystemExit(f"--flags has --{name}, which TRL is not given; use --parts methods")
    if "(" in flags:
        raise SystemExit(f"--flags is {flags!r}; TRL has no schedules: use --parts methods")


def main(options: Options) -> None:
    """Run the missing parts, write tables and figure, and print the table."""
    check(options)
    if not options.table:
        if "methods" in options.parts:
            for method in options.methods:
                measure(method, options)
        if "harder" in options.parts:
            measure("grpo", options, HARDER)
        if "trl" in options.parts:
            for seed in range(options.peer_seeds):
                compare(seed, options)
    print(markdown(options.out), end="")


def measure(method: str, options: Options, task: str = TASK) -> None:
    """Run or resume a method, and write its rows and curves."""
    folder = options.runs / (method if task == TASK else f"harder_{method}")
    flags = () if task == TASK else HARDER_FLAGS
    train(folder, method, ["--seeds", str(options.seeds), *flags, *options.flags.split()])
    rows = [{"task": task, **row} for row in rows_of(method, folder)]
    replace(options.out / "reasoning.csv", rows, KEY, place)
    curves = [{"task": task, **row} for row in curves_of(method, folder)]
    replace(options.out / "reasoning_curves.csv", curves, ("task", "method", "update"), place)
    plot(options)


def train(folder: Path, method: str, flags: list[str]) -> None:
    """Run or resume a method in a folder, unless its run is finished."""
    flags = [*METHODS[method], *flags]
    check_same(folder, flags)
    summary = folder / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["status"] == "finished":
        return
    if (folder / "config.json").exists():
        flags = ["--resume", str(folder)]
    else:
        flags += ["--run-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "ppo_jax.rlhf", "reason", *flags], check=True)


def check_same(folder: Path, flags: list[str]) -> None:
    """Refuse a folder of a run with other options.

    Raises:
        SystemExit: the message names the options that differ.
    """
    if not (folder / "config.json").exists():
        return
    wanted = json.loads(json.dumps(flat(_values("reason", flags, KINDS["reason"])[0])))
    found = read_stage(folder, Given(trust=True))[1]  # it is compared, and nothing is imported
    differ = sorted(name for name, x in wanted.items() if found.get(name) != x)
    if differ:
        raise SystemExit(
            f"{folder} is a run with another {', '.join(differ)}; choose another --runs, or give "
            "the --seeds and --flags of that run"
        )


def rows_of(method: str, folder: Path) -> list[Row]:
    """A row for each agent of a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "results.csv").open() as file:
        agents = list(csv.DictReader(file))
    # The median, because other programs interrupt some updates.
    rates = [row["tokens_per_second"] for row in read_metrics(folder / "metrics.jsonl")]
    return [row_of(method, row, summary, float(np.median(rates))) for row in agents]


def row_of(method: str, agent: dict[str, str], summary: dict[str, Any], rate: float) -> Row:
    """A row of the table about one agent, in a program with `rate` tokens per second."""
    numbers = ("start_pass_at_1", "start_pass_at_k", "pass_at_1", "pass_at_k", "length")
    return {
        "implementation": "ppo_jax",
        "method": method,
        "seed": agent["seed"],
        "agents": len_of(summary),  # that one program trains; all share its tokens per second
        **{name: agent[name] for name in numbers},
        "updates": summary["updates"],
        "responses": summary["responses"] // len_of(summary),
        "train_seconds": summary["train_seconds"],
        "tokens_per_second": round(rate),
        "device": provenance.device(),
        "versions": f"jax={jax.__version__}",
    }


def len_of(summary: dict[str, Any]) -> int:
    """The number of agents of a run."""
    return max(1, sum(name.startswith(AGENT) for name in summary))


def curves_of(method: str, folder: Path) -> list[Row]:
    """Interquartile means of pass@1 over the seeds, with 95 % bootstrap intervals."""
    found = []
    for row in read_metrics(folder / "metrics.jsonl"):
        each = np.array([x for name, x in row.items() if name.startswith(AGENT)], float)
        if not len(each):
            continue
        low, high = statistics.interval([each])
        found.append(
            {
                "method": method,
                "update": row["update"],
                "seeds": len(each),
                "interquartile_mean": round(float(statistics.interquartile_mean(each)), 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
                "groups_without_spread": round(row["groups_without_spread"], 4),
                "entropy": round(row["sampling_entropy"], 4),
                "kl": round(row["kl"], 4),
                "length": round(row["response_length"], 3),
            }
        )
    return found


def place(row: Row) -> tuple[Any, ...]:
    """Sort key of a row: task, then agents in one program before those that are alone, then method,
    implementation, seed and update."""
    method, numbers = list(METHODS).index(row["method"]), ("seed", "update")
    alone, peer = int(row.get("agents", 0)) == 1, row.get("implementation") == "TRL"
    return row["task"] == HARDER, alone, method, peer, *(int(row.get(n, 0)) for n in numbers)


def compare(seed: int, options: Options) -> None:
    """Train one seed with grpo and with TRL, from the same fine-tuned model, and write two rows."""
    folder = options.runs / f"grpo_seed_{seed}"
    train(folder, "grpo", ["--seed", str(seed), *options.flags.split()])
    found = peer.run(folder, options.runs / f"trl_seed_{seed}", options.peer)
    row: Row = {
        "implementation": "TRL",
        "method": "grpo",
        "device": provenance.device(),
        **{name: f"{x:.6g}" if isinstance(x, float) else x for name, x in found.items()},
    }
    rows = [{"task": TASK, **r} for r in (*rows_of("grpo", folder), row)]
    replace(options.out / "reasoning.csv", rows, KEY, place)


@style.styled
def plot(options: Options) -> None:
    """Draw the curves of all methods in the table, in a panel for each task."""
    rows = read(options.out / "reasoning_curves.csv")
    ranks = {method: rank for rank, method in enumerate(METHODS)}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    figure, panels = style.figure(1, len(tasks), size=(8.0 + 2.0 * (len(tasks) > 1), 4.5))
    for task, axes in zip(tasks, panels, strict=True):
        for method in dict.fromkeys(r["method"] for r in rows if r["task"] == task):
            mine = [r for r in rows if (r["task"], r["method"]) == (task, method)]
            column = lambda name, mine=mine: np.array([float(r[name]) for r in mine])
            band = (column("low"), column("high"))
            middle, rank = column("interquartile_mean"), ranks[method]
            style.line(axes, column("update"), middle, rank=rank, name=method, band=band)
        style.label(axes, x="updates", y="pass@1 on held-out problems", title=task)
    style.legend(figure)
    style.write(figure, options.image / "reasoning.png")


def markdown(folder: Path = RESULTS) -> str:
    """The committed results as a table: means over the seeds, with 95 % bootstrap intervals."""
    lines = [
        "| task | | method | seeds | pass@1 before | pass@1 | 95 % interval | lowest seed | pass@8 "
        "| agents | tokens/s | seconds |",
        "|" + "---|" * 12,
    ]
    rows = read(folder / "reasoning.csv")
    same = lambda r: (r["task"], r["implementation"], r["method"], r["agents"])
    for task, name, method, agents in dict.fromkeys(map(same, rows)):
        mine = [r for r in rows if same(r) == (task, name, method, agents)]
        column = lambda key, mine=mine: np.array([float(r[key]) for r in mine])
        after = column("pass_at_1")
        low, high = statistics.interval([after], statistics.mean)
        interval = f"{low:.3f} to {high:.3f}" if len(mine) > 1 else ""
        means = (f"{column(n).mean():.3f}" for n in ("start_pass_at_1", "pass_at_1"))
        cells = [task, name, method, str(len(mine)), *means, interval, f"{after.min():.3f}"]
        cells += [f"{column('pass_at_k').mean():.3f}", agents]
        cells += [f"{column(n).mean():.0f}" for n in ("tokens_per_second", "train_seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + speed_ups(rows)


def speed_ups(rows: list[Row]) -> str:
    """The ratio of the tokens per second of ppo_jax and TRL, both with one agent, of each seed."""
    alone = {(r["implementation"], r["seed"]): r for r in rows if r["agents"] == "1"}
    seeds = [seed for name, seed in alone if name == "TRL" and ("ppo_jax", seed) in alone]
    rate = lambda name, seed: float(alone[name, seed]["tokens_per_second"])
    ratios = [f"{rate('ppo_jax', seed) / rate('TRL', seed):.2f}" for seed in seeds]
    return f"\nTokens per second, ppo_jax / TRL: {', '.join(ratios)}\n" if ratios else ""


if __name__ == "__main__":
    main(tyro.cli(Options))
