"""From finished chunks to what a person reads: tables, figures, the report, the comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax import report, statistics
from ppo_jax.checkpoint import write_json
from ppo_jax.config import ConfigError
from ppo_jax.sweep import figures, page, results
from ppo_jax.sweep.points import text
from ppo_jax.sweep.results import PointResult, Setting
from ppo_jax.sweep.store import Store, agent_rows, read_spec, write_table

# Below, a bootstrap interval covers much less than it claims: 0.75 of 0.95 with three seeds.
FEW_SEEDS = 5
WARNING = (
    "An interval from so few seeds is too narrow: a nominal 95 % bootstrap interval covers about "
    "75 % with 3 seeds, 85 % with 5, 91 % with 10. Take 10 seeds or more, better 30."
)


def publish(store: Store, threshold: float | None, session: dict[str, Any]) -> list[Setting]:
    """Write every table, figure and the report of a finished sweep.

    Args:
        store: with all its chunks.
        threshold: the return to be reached; None: each environment's own.
        session: for summary.json: what trained last, and how fast; {} if nothing was to train.

    Returns:
        Its settings, best first.
    """
    found = store.results()
    order = results.settings(found)
    if not order:
        raise ConfigError("no point was tried on every environment; vary env with all others")
    rows = _ranked(results.table(found, threshold), order, found)
    write_table(store.path / "agents.csv", [*agent_rows(found, threshold)])
    write_table(store.path / "table.csv", rows)
    (store.path / "table.md").write_text(page.markdown(rows))
    pictures = figures.draw(order, threshold, store.path / "figures")
    confirmed = _confirmation(store.path)
    parts = [
        page.heading(f"Sweep of {_title(found)}", 1),
        *map(page.paragraph, _summary_lines(store, order, found)),
        *_confirmed_parts(order, confirmed, threshold),
        page.heading("All points, on the seeds they were chosen with"),
        page.table(rows),
        *(page.picture(title, path) for title, path in pictures.items()),
        page.heading("To paste", 3),
        f"<pre>{page.html.escape(page.markdown(rows))}</pre>",
        *_provenance(store.path),
    ]
    (store.path / "report.html").write_text(page.page(f"Sweep of {_title(found)}", parts))
    summary = {
        "points": len(found),
        "seeds": len(store.spec.seeds),
        "best": order[0].name,
        "best_point": [found.index(r) for r in order[0].results],
        "diverged": int(sum(r.diverged.sum() for r in found)),
        "table": rows[: len(order[0].results)],
        "confirmed": [results.row(r, threshold) for r in confirmed] or None,
    }
    file = store.path / "summary.json"
    earlier = json.loads(file.read_text()).get("last_session", {}) if file.exists() else {}
    write_json(file, _plain(summary | {"last_session": session or earlier}))
    return order


def _ranked(rows: list[dict], order: Sequence[Setting], found: list[PointResult]) -> list[dict]:
    """Rows from the best setting to the worst; points that were not tried everywhere last."""
    places = [_index(found, r) for s in order for r in s.results]
    rest = [i for i in range(len(rows)) if i not in places]
    return [rows[i] for i in (*places, *rest)]


def _index(found: Sequence[PointResult], wanted: PointResult) -> int:
    return next(i for i, r in enumerate(found) if r is wanted)


def _title(found: Sequence[PointResult]) -> str:
    algorithms = dict.fromkeys(r.config.algorithm for r in found)
    environments = dict.fromkeys(r.env for r in found)
    return f"{', '.join(algorithms)} on {', '.join(environments)}"


def _summary_lines(store: Store, order: Sequence[Setting], found: list[PointResult]) -> list[str]:
    spec = store.spec
    total = sum(int(r.env_step[-1]) for r in found) * len(spec.seeds)
    scored = (
        f"{spec.episodes} greedy episodes after training"
        if spec.episodes
        else ("the last tenth of training")
    )
    failed = sum(int(r.diverged.sum()) for r in found)
    lines = [
        f"{len(spec.configs)} points, {len(spec.seeds)} seeds each ({_seeds(spec.seeds)}), "
        f"{total:,} environment steps. The score of an agent is its mean return in {scored}. "
        "IQM is the interquartile mean over seeds; intervals are 95 % stratified bootstrap "
        f"percentiles of {statistics.RESAMPLES:,} resamples. Area is the mean return over the "
        "whole of training. Points are ranked by IQM, and among equals by area.",
        f"{failed} of {len(found) * len(spec.seeds)} agents diverged; they count with the worst "
        "score of their environment."
        if failed
        else "No agent diverged.",
    ]
    if len(order[0].results) > 1:
        lines.append(
            "Over several environments, scores are in units of the range from the sweep's worst "
            "agent (0) to its best (1) on each."
        )
    if len(spec.seeds) < FEW_SEEDS:
        lines.append(WARNING)
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def _confirmation(path: Path) -> list[PointResult]:
    """The results of the best point's run on fresh seeds; none if there was no such run."""
    folder = path / "confirm"
    if not (folder / "summary.json").exists():
        return []
    return Store(folder, read_spec(folder)[0]).results()


def _confirmed_parts(
    order: Sequence[Setting], confirmed: Sequence[PointResult], threshold: float | None
) -> list[str]:
    """The best point with the seeds that chose it and with fresh ones, told apart."""
    if not confirmed:
        if len(order) == 1:
            return []
        return [
            page.paragraph(
                f"The best of {len(order)} points looks better than it is on the seeds that chose "
                "it. For a number to publish, run it again on fresh seeds: --resume --confirm 64."
            )
        ]
    rows = []
    for tuned, fresh in zip(order[0].results, confirmed, strict=True):
        rows.append({"seeds used for": "choosing it", **results.row(tuned, threshold)})
        rows.append({"seeds used for": "nothing else", **results.row(fresh, threshold)})
    return [
        page.heading(f"The best point on fresh seeds: {order[0].name}"),
        page.paragraph(
            f"It was chosen among {len(order)} on the first seeds, which flatters it; the rows of "
            f"fresh seeds ({_seeds(confirmed[0].seeds)}) are the ones to publish."
        ),
        page.table(rows),
    ]


def _provenance(path: Path) -> list[str]:
    sessions = json.loads((path / "sweep.json").read_text())["sessions"]
    last = sessions[-1]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    return [page.paragraph(f"Measured on {last['device']} with {versions}.")]


def compare(first: Path, second: Path, out: Path) -> dict[str, Any]:
    """Two sweeps on one figure, with the interval of their difference.

    Of each the confirmed best point if there is one, else the best.

    Args:
        first, second: folders of finished sweeps.
        out: folder for comparison.png, comparison.json and comparison.html.

    Raises:
        ConfigError: a folder is no finished sweep, or they are of different environments.
    """
    pairs = [(_name(path), *_representative(path)) for path in (first, second)]
    (name_a, point_a, a), (name_b, point_b, b) = pairs
    if [r.env for r in a] != [r.env for r in b]:
        raise ConfigError(
            f"{first} is of {', '.join(r.env for r in a)} and {second} of "
            f"{', '.join(r.env for r in b)}; only sweeps of the same environments compare"
        )
    names = [f"{name_a}: {point_a}", f"{name_b}: {point_b}"]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    parts, found = [page.heading("Comparison", 1)], {}
    for x, y in zip(a, b, strict=True):
        rows += [{"sweep": n, **results.row(r)} for n, r in zip(names, (x, y), strict=True)]
        found[x.env] = difference(x.score, y.score)
        file = out / f"comparison_{x.env.replace(':', '_')}.png"
        figures.comparison([*zip(names, (x, y), strict=True)]).savefig(file, dpi=figures.DPI)
        parts += [page.picture(x.env, file), page.paragraph(sentence(names, found[x.env]))]
    parts.insert(1, page.table(rows))
    (out / "comparison.html").write_text(page.page("Comparison", parts))
    write_json(out / "comparison.json", _plain({"sweeps": names, "difference": found}))
    for env, numbers in found.items():
        report.say(f"{env}: {sentence(names, numbers)}")
    return found


def difference(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """IQM(x) - IQM(y) and P(x > y), each with its 95 % bootstrap interval."""
    low, high = statistics.interval([x, y], statistics.difference)
    least, most = statistics.interval([x, y], statistics.probability_of_improvement)
    numbers = {
        "difference": statistics.difference(x, y),
        "ci95_low": low,
        "ci95_high": high,
        "probability_of_improvement": statistics.probability_of_improvement(x, y),
        "probability_ci95_low": least,
        "probability_ci95_high": most,
    }
    return {name: float(value) for name, value in numbers.items()}


def sentence(names: Sequence[str], numbers: dict[str, float]) -> str:
    """A difference in words."""
    low, high = numbers["ci95_low"], numbers["ci95_high"]
    chance = numbers["probability_of_improvement"]
    least, most = numbers["probability_ci95_low"], numbers["probability_ci95_high"]
    return (
        f"IQM of [{names[0]}] less that of [{names[1]}]: {numbers['difference']:.4g}, 95 % "
        f"interval [{low:.4g}, {high:.4g}]; a run of the first beats one of the second with "
        f"probability {chance:.2f} [{least:.2f}, {most:.2f}]"
    )


def _name(path: Path) -> str:
    return path.resolve().name


def _representative(path: Path) -> tuple[str, list[PointResult]]:
    """(which point, its results per environment)"""
    found = Store(path, read_spec(path)[0]).results()
    best = results.settings(found)[0]
    confirmed = _confirmation(path)
    return best.name, confirmed or [*best.results]


def _plain(value: Any) -> Any:
    """In JSON's types; what is not a number is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else text(value)
