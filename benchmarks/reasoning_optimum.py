"""Methods of reinforcement learning beside the best pass@1 at their KL, which is known exactly.

python -m benchmarks.reasoning_optimum                              all methods
python -m benchmarks.reasoning_optimum --methods grpo rloo --seeds 8
python -m benchmarks.reasoning_optimum --table                      print the committed results
python -m benchmarks.reasoning_optimum --figure                     draw them again

The task has so few responses that pass@1 at temperature 1, the mean KL to the fine-tuned model and
the best pass@1 of all policies with this mean KL are computed from all responses
(ppo_jax/rlhf/reasoning/exact.py). They are those of the training problems, for which the methods
maximise the reward. All methods start from the same fine-tuned models, one for each seed, and a
method trains all seeds in one program. The results are
benchmarks/results/reasoning_optimum.csv (a row for each method, seed and evaluation) and
docs/images/reasoning_optimum.png.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.figures import IMAGES
from benchmarks.names import check_names
from benchmarks.reasoning import METHODS as SHARED
from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax.analysis import statistics, style
from ppo_jax.cli.reason import plan_of
from ppo_jax.cli.rlhf import KINDS, _values
from ppo_jax.rlhf.reasoning import exact, start
from ppo_jax.rlhf.reasoning.agents import take
from ppo_jax.rlhf.reasoning.optimise import Plan, optimisation
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.runs.job import Job
from ppo_jax.types import Params, PyTree

METHODS = SHARED | {name: ("--algorithm", name) for name in ("cispo", "reinforce_pp", "maxrl")}
FLAGS = (
    "--task subtraction --difficulty digits=1 --hidden-size 32 --num-layers 1 "
    "--num-prompts 32 --minibatches 2 --learning-rate 1e-3 --start-at 0.3"
)
TABLE, IMAGE = "reasoning_optimum.csv", "reasoning_optimum.png"
# Columns of the table, in the order of exact.NAMES.
NUMBERS = ("pass_at_1", "kl", "best_pass_at_1")
# Number of training problems that are drawn; the first exact.MOST_PROBLEMS different ones count.
DRAWN = 512


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare methods with the best pass@1 at their KL.

    Attributes:
        methods: methods to train.
        seeds: number of seeds of each method, at least 2.
        updates: number of updates of each method.
        every: number of updates between two evaluations.
        flags: options of every run, as those of ppo-jax rlhf reason.
        out: folder of the table.
        image: folder of the figure.
        table: only print the committed results.
        figure: only draw the figure of the committed results.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 5
    updates: int = 300
    every: int = 30
    flags: str = FLAGS
    out: Path = RESULTS
    image: Path = IMAGES
    table: bool = False
    figure: bool = False


def check(options: Options) -> None:
    """Refuse invalid options before anything is trained.

    Raises:
        SystemExit: an option is invalid; the message names its value and the allowed ones.
    """
    check_names("methods", options.methods, METHODS)
    if options.seeds < 2:
        raise SystemExit(f"--seeds is {options.seeds}; an interval needs at least 2")
    if options.every < 1 or options.updates % options.every:
        raise SystemExit(
            f"--updates is {options.updates}; it must be a multiple of --every, {options.every}"
        )


def main(options: Options) -> None:
    """Train the methods, write table and figure, and print a summary."""
    check(options)
    if not (options.table or options.figure):
        first = plan(options.methods[0], options)
        started = fine_tuned(first)
        compare = comparison(first, started)
        for method in options.methods:
            rows = measure(plan(method, options), method, started, options, compare=compare)
            replace(options.out / TABLE, rows, ("method", "seed", "update"), place)
    if not options.table:
        plot(read(options.out / TABLE), options.image / IMAGE)
    print(markdown(options.out), end="")


def plan(method: str, options: Options) -> Plan:
    """What is trained for a method."""
    words = [*options.flags.split(), "--seeds", str(options.seeds)]
    words += ["--updates", str(options.updates), *METHODS[method]]
    return plan_of(_values("reason", words, KINDS["reason"])[0])


def fine_tuned(first: Plan) -> Params:
    """Parameters [S, ...] of the fine-tuned models, which all methods start from."""
    job = start.fine_tuning(first.task, first.decoder, first.reason)
    step, state = advance(job, 1), job.init()
    for _ in range(job.updates):
        state, _ = step(state, job.frozen, job.floats)
        if bool(jnp.all(state.started)):
            break
    return state.train.learner.params


def advance(job: Job, updates: int) -> Callable[..., tuple[PyTree, jax.Array]]:
    """The compiled function of several updates, which also returns whether one was not finite."""

    def several(state: PyTree, frozen: PyTree, floats: PyTree) -> tuple[PyTree, jax.Array]:
        def once(state: PyTree, _: None) -> tuple[PyTree, jax.Array]:
            state, metrics, _ = job.step(state, frozen, floats)
            return state, metrics["diverged"] > 0

        state, bad = jax.lax.scan(once, state, None, length=updates)
        return state, jnp.any(bad)

    return jax.jit(several, compiler_options=compiler_options())


def comparison(first: Plan, started: Params) -> exact.Compare:
    """The function that compares agents with the best policy at their KL, on training problems."""
    draw = jax.jit(lambda key: first.task.problems(key, DRAWN, False))
    prompts = draw(jax.random.key(first.reason.seed))
    return exact.comparison(first.task, first.decoder, prompts, started)


def measure(
    mine: Plan, method: str, started: Params, options: Options, *, compare: exact.Compare
) -> list[Row]:
    """Train a method from the fine-tuned models; a row for each seed and evaluation.

    Raises:
        FloatingPointError: the numbers of an agent are not finite.
    """
    begun = time.perf_counter()
    job = optimisation(mine, started, lambda *_: {})
    step, state = advance(job, options.every), job.init()
    rows = rows_of(method, 0, state, compare)
    for update in range(options.every, options.updates + 1, options.every):
        state, bad = step(state, job.frozen, job.floats)
        if bool(bad):
            raise FloatingPointError(f"{method}: numbers of an agent are not finite")
        rows += rows_of(method, update, state, compare)
    print(f"{method} took {time.perf_counter() - begun:.0f} s", flush=True)
    return rows


def rows_of(method: str, update: int, state: PyTree, compare: exact.Compare) -> list[Row]:
    """The rows of an evaluation of all agents, one for each seed.

    Raises:
        SystemExit: the task has too many responses.
    """
    params, rows = state.learner.params["actor"], []
    for seed in range(len(jax.tree.leaves(params)[0])):
        found = compare(seed, take(params, seed))
        if not found:
            raise SystemExit(f"the task has more than {exact.MOST_RESPONSES:,} responses")
        numbers = {
            mine: f"{found[name]:.6g}" for mine, name in zip(NUMBERS, exact.NAMES, strict=True)
        }
        rows.append({"method": method, "seed": seed, "update": update} | numbers)
    return rows


def place(row: Row) -> tuple[int, int, int]:
    """Sort key of a row: its method, its update and its seed."""
    return [*METHODS].index(row["method"]), int(row["update"]), int(row["seed"])


def arrays(rows: list[Row], method: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The updates [E] of a method and its numbers, name -> [E, S]."""
    mine = [row for row in rows if row["method"] == method]
    updates = sorted({int(row["update"]) for row in mine})
    column = lambda name: np.array([float(row[name]) for row in mine]).reshape(len(updates), -1)
    return np.array(updates), {name: column(name) for name in NUMBERS}


@style.styled
def plot(rows: list[Row], path: Path) -> None:
    """Draw pass@1 against KL, means over the seeds, a panel for each method."""
    names = [*dict.fromkeys(row["method"] for row in rows)]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, panels = style.figure(lines, columns, size=(8.0, 2.2 * lines + 0.6))
    right = max(float(row["kl"]) for row in rows)
    for axes, name in zip(panels, names, strict=False):
        _, found = arrays(rows, name)
        kl = found["kl"].mean(axis=1)
        best, reached = (found[n].mean(axis=1) for n in ("best_pass_at_1", "pass_at_1"))
        axes.plot(found["kl"], found["pass_at_1"], color=style.OTHERS, linewidth=0.6)
        style.line(axes, kl, best, rank=1, name="best pass@1 at this KL")
        style.line(axes, kl, reached, rank=0, name="pass@1 of the method")
        axes.plot(kl, reached, ".", color=style.colour(0))
        axes.set(xlim=(-0.03 * right, 1.03 * right), ylim=(0.0, 1.03))
        style.label(axes, title=name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    style.label(panels[(lines - 1) * columns], x="KL in nats", y="pass@1")
    style.legend(figure)
    style.write(figure, path)


def markdown(folder: Path = RESULTS) -> str:
    """The last evaluation of each method: means over the seeds, 95 % bootstrap intervals."""
    rows = read(folder / TABLE)
    lines = [
        "| method | seeds | updates | pass@1 before | pass@1 | KL | best pass@1 at this KL "
        "| ratio | 95 % interval |",
        "|" + "---|" * 9,
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        updates, found = arrays(rows, method)
        last = {name: x[-1] for name, x in found.items()}
        ratio = last["pass_at_1"] / last["best_pass_at_1"]
        low, high = statistics.interval([ratio], statistics.mean)
        means = [found["pass_at_1"][0], *(last[name] for name in NUMBERS), ratio]
        cells = [method, str(len(ratio)), str(updates[-1]), *(f"{x.mean():.3f}" for x in means)]
        lines.append("| " + " | ".join([*cells, f"{low:.3f} to {high:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Options))
