"""What a run shows while it trains and at its end: lines, a table, a figure and a CSV file."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ppo_jax.analysis import statistics, style
from ppo_jax.rlhf.reasoning import exact
from ppo_jax.rlhf.reasoning.optimise import NO_SPREAD, Plan, agent_column
from ppo_jax.rlhf.tasks import to_text
from ppo_jax.runs import manifest, terminal
from ppo_jax.runs.job import Progress
from ppo_jax.runs.metrics_log import read_metrics

RESULTS, FIGURE = "results.csv", "reasoning.png"


def teller(plan: Plan) -> Callable[[Progress, Any], None]:
    """A callback that prints a line after each evaluation."""

    def tell(progress: Progress, state: Any) -> None:
        row = progress.rows[-1] if progress.rows else {}
        if "eval_pass_at_1" in row:
            terminal.say(line_of(row, plan.reason.eval_samples))

    return tell


def line_of(row: dict[str, Any], samples: int) -> str:
    """One line about an evaluation.

    Args:
        row: a row of metrics.jsonl with an evaluation.
        samples: k of pass@k.
    """
    low, high = row.get("eval_pass_at_1_low"), row.get("eval_pass_at_1_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    parts = [
        f"update {row['update']:>4}: pass@1 {row['eval_pass_at_1']:.3f}{interval}",
        f"pass@{samples} {row[f'eval_pass_at_{samples}']:.3f}",
        f"length {row['response_length']:.1f}",
        *([f"groups without spread {row[NO_SPREAD]:.0%}"] if NO_SPREAD in row else []),
        f"entropy {row['sampling_entropy']:.3f}",
        f"KL {row['kl']:.2f}",
    ]
    return ", ".join(parts)


def configurations(
    plan: Plan, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The result of each configuration, averaged over its seeds.

    Args:
        plan: the task, the model and the options of the run.
        before: numbers [A] of the agents after the fine-tuning.
        after: numbers [A] of the agents after reinforcement learning.

    Returns:
        A dictionary of each configuration: the values that vary, the means of all numbers, and the
        95 % bootstrap interval of the mean pass@1, which is None for a single seed.
    """
    found = []
    for k, point in enumerate(plan.points):
        mine = slice(k * plan.reason.seeds, (k + 1) * plan.reason.seeds)
        each = after["pass_at_1"][mine]
        low, high = (float(x) for x in statistics.interval([each], statistics.mean))
        found.append(
            {
                "point": point,
                "start_pass_at_1": float(np.mean(before["pass_at_1"][mine])),
                "start_pass_at_k": float(np.mean(before["pass_at_k"][mine])),
                **{name: float(np.mean(x[mine])) for name, x in after.items()},
                "interval": None if np.isnan(low) else [low, high],
                "worst": float(each.min()),
                "best": float(each.max()),
            }
        )
    return found


def table_of(plan: Plan, found: list[dict[str, Any]]) -> Table:
    """The results of `configurations` as a table."""
    k = plan.reason.eval_samples
    seeds = f"{plan.reason.seeds} seed{'s' if plan.reason.seeds > 1 else ''}"
    table = Table(
        title=f"Held-out problems of {to_text(plan.task)}, {plan.config.algorithm}, {seeds}"
    )
    columns = ["pass@1 before", "pass@1", "95 % interval", f"pass@{k} before", f"pass@{k}"]
    table.add_column("", justify="left")
    for column in [*columns, "lowest seed", "length"]:
        table.add_column(column, justify="right")
    for row in found:
        interval = row["interval"]
        table.add_row(
            name_of(row["point"]),
            f"{row['start_pass_at_1']:.3f}",
            f"{row['pass_at_1']:.3f}",
            "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
            f"{row['start_pass_at_k']:.3f}",
            f"{row['pass_at_k']:.3f}",
            f"{row['worst']:.3f}",
            f"{row['length']:.1f}",
        )
    return table


def exact_table(found: list[dict[str, Any]]) -> Table | None:
    """The results of `configurations` beside the best pass@1 at their KL; None without them."""
    if exact.NAMES[0] not in found[0]:
        return None
    table = Table(title="All responses at temperature 1, compared with the best possible policy")
    table.add_column("", justify="left")
    for column in ("pass@1", "KL in nats", "best pass@1 at this KL"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(name_of(row["point"]), *(f"{row[name]:.3f}" for name in exact.NAMES))
    return table


def name_of(point: dict[str, float]) -> str:
    """The values that vary, as text."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def write_results(
    folder: Path, plan: Plan, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> None:
    """Write results.csv: one row for each agent, with its options, seed and numbers."""
    text = io.StringIO()
    varied = [*plan.points[0]]
    names = [*(f"start_{n}" for n in before), *after]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*varied, "seed", *names])
    for agent in range(plan.agents):
        point, seed = plan.points[agent // plan.reason.seeds], agent % plan.reason.seeds
        numbers = [f"{float(x[agent]):.6g}" for x in (*before.values(), *after.values())]
        writer.writerow([*point.values(), plan.reason.seed + seed, *numbers])
    manifest.write(folder, RESULTS, text.getvalue().encode())


@style.styled
def draw(folder: Path, plan: Plan, before: dict[str, np.ndarray]) -> None:
    """Write reasoning.png: pass@1 on held-out problems during the run, for each configuration.

    Args:
        folder: folder of the run, whose metrics.jsonl is read.
        plan: the task, the model and the options of the run.
        before: numbers [A] of the agents after the fine-tuning.
    """
    x, scores = _history(folder, plan, before["pass_at_1"])
    figure, (axes,) = style.figure()
    for k, point in enumerate(plan.points):
        mine = scores[:, k * plan.reason.seeds : (k + 1) * plan.reason.seeds]
        low, high = statistics.interval([mine.T], statistics.mean)
        band = None if np.isnan(low).any() else (low, high)
        name = name_of(point) or plan.config.algorithm
        style.line(axes, x, mine.mean(axis=1), rank=k, name=name, band=band)
    style.label(axes, title=to_text(plan.task), x="updates", y="pass@1 on held-out problems")
    axes.set_ylim(0.0, 1.02)
    style.legend(figure)
    with manifest.replacing(folder, FIGURE) as file:
        style.save(figure, file, "png")


def _history(folder: Path, plan: Plan, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(updates [E], pass@1 [E, A]) of all evaluations, the first of which is after fine-tuning."""
    names = [agent_column(a) for a in range(plan.agents)] if plan.agents > 1 else ["eval_pass_at_1"]
    updates, scores = [0.0], [np.asarray(first, float)]
    for row in read_metrics(folder / "metrics.jsonl"):
        if all(row.get(name) is not None for name in names):
            updates.append(float(row["update"]))
            scores.append(np.array([row[name] for name in names], float))
    return np.array(updates), np.stack(scores)


def print_samples(samples: list[dict[str, Any]]) -> None:
    """Print responses to held-out problems, with their rewards."""
    for sample in samples:
        terminal.say(f"    {sample['prompt']} {sample['response']}  reward {sample['reward']:g}")
