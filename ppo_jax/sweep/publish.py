"""From finished chunks to what a person reads: tables, figures, the report, the comparison."""

import csv
import io
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.analysis import statistics
from ppo_jax.config import ConfigError
from ppo_jax.config.options import show
from ppo_jax.envs import canonical
from ppo_jax.runs import files, manifest, terminal
from ppo_jax.runs.files import write_json
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.record import read_summary
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.sweep import figures, page, results
from ppo_jax.sweep.results import PointResult, Setting
from ppo_jax.sweep.store import Store, read_sessions, read_spec

# Below, the intervals cover clearly less than they claim (tests/test_statistics.py).
FEW_SEEDS = 10
WARNING = (
    "Intervals from fewer than 10 seeds are too narrow: of the IQM of normal scores, a nominal "
    "95 % bootstrap interval covers about 75 % with 3 seeds and 89 % with 5. Take 10 or more, "
    "better 30."
)


def publish(store: Store, threshold: float | None, session: dict[str, Any]) -> list[Setting]:
    """Write every table, figure and the report of a finished sweep.

    Args:
        store: with all its chunks.
        threshold: the return to be reached; None: each environment's own.
        session: for summary.json: what trained last, and how fast; {} if nothing was to train.

    Returns:
        Its settings, best first.

    Raises:
        RunFailed: a file cannot be written; what is trained stays.
    """
    try:
        return _publish(store, threshold, session)
    except OSError as error:
        raise RunFailed(
            f"the report of {store.path} cannot be written: {error}; all agents are trained and "
            f"kept. Free some space and --resume {shlex.quote(str(store.path))}"
        ) from error


def _publish(store: Store, threshold: float | None, session: dict[str, Any]) -> list[Setting]:
    raw, fresh = store.results(), _confirmation(store)
    # The fresh seeds have no say in the ranking that they confirm.
    found, confirmed = results.penalise(raw), results.penalise(fresh, raw)
    order = results.settings(found)
    if not order:
        raise ConfigError("no point was tried on every environment; vary env with all others")
    rows = _ranked(results.table(found, threshold), order, found)
    write_table(store.path / "agents.csv", [*agent_rows(found, threshold)])
    write_table(store.path / "table.csv", rows)
    manifest.write(store.path, "table.md", page.markdown(rows).encode())
    pictures = _pictures(order, threshold, store.path / "figures")
    parts = [
        page.heading(f"Sweep of {_title(found)}", 1),
        *map(page.paragraph, _summary_lines(store, order, found, confirmed)),
        *_confirmed_parts(order, confirmed, threshold),
        page.heading("All points, on the seeds they were chosen with"),
        page.table(rows),
        *(page.picture(title, path) for title, path in pictures.items()),
        page.heading("To paste", 3),
        page.preformatted(page.markdown(rows)),
        *_provenance(store.path),
    ]
    html = page.page(f"Sweep of {_title(found)}", parts)
    manifest.write(store.path, "report.html", html.encode())
    summary = {
        "points": len(found),
        "seeds": len(store.spec.seeds),
        "best": order[0].name,
        "best_point": [_index(found, r) for r in order[0].results],
        "diverged": int(sum(r.diverged.sum() for r in found)),
        "table": rows[: len(order[0].results)],
        "confirmed": [results.row(r, threshold) for r in confirmed] or None,
    }
    last = session or read_summary(store.path).get("last_session", {})
    manifest.note(store.path, {"results.csv": manifest.entry_of(store.path / "results.csv")})
    manifest.write_json(store.path, "summary.json", _plain(summary | {"last_session": last}))
    manifest.settle(store.path)
    return order


def _pictures(order: list[Setting], threshold: float | None, folder: Path) -> dict[str, Path]:
    """The figures; none where they cannot be drawn, which is no reason to go without the tables."""
    try:
        return figures.draw(order, threshold, folder)
    except Exception as error:
        warnings.warn(f"the figures of {folder.parent} are not written: {error}", stacklevel=2)
        return {}


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


def _summary_lines(
    store: Store,
    order: Sequence[Setting],
    found: Sequence[PointResult],
    confirmed: Sequence[PointResult],
) -> list[str]:
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
        "whole of training, steps to the threshold the median over all seeds of where the learning "
        "curve first gets there. Points are ranked by IQM, and among equals by area.",
        f"{failed} of {len(found) * len(spec.seeds)} agents diverged; they count with the worst "
        "return that was ever seen in their environment."
        if failed
        else "No agent diverged.",
    ]
    if len(order[0].results) > 1:
        lines.append(
            "Over several environments, scores are in units of the range from the sweep's worst "
            "agent (0) to its best (1) on each."
        )
    cut = sum(int(r.cut.sum()) for r in (*found, *confirmed))
    if cut:
        lines.append(f"{cut} episodes of the evaluation did not end and were cut.")
    if min(len(r.seeds) for r in (*found, *confirmed)) < FEW_SEEDS:
        lines.append(WARNING)
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def _confirmation(store: Store) -> list[PointResult]:
    """The results of the best point's run on fresh seeds; none if it is not there or not whole,
    which is for that run to mend."""
    path = store.path / "confirm"
    try:
        return Store(path, read_spec(path, store.spec.following)[0]).results()
    except ConfigError:
        return []


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
                "it. For a number to publish, run it on fresh seeds: --resume DIR --confirm 64."
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
    """What each session ran on, each machine once."""
    lines = []
    for session in read_sessions(path):
        versions = ", ".join(f"{k} {v}" for k, v in session["versions"].items())
        lines.append(page.paragraph(f"Run on {session['device']} with {versions}."))
    return [*dict.fromkeys(lines)]


def compare(first: Path, second: Path, out: Path, given: Given = NOTHING) -> dict[str, Any]:
    """Two sweeps on one figure, with the interval of their difference.

    Of each the best point, on fresh seeds if it was confirmed there.

    Args:
        first, second: folders of finished sweeps.
        out: folder for comparison_ENV.png, comparison.json and comparison.html.
        given: names that stand beside those of the sweeps, and whether these are trusted.

    Raises:
        ConfigError: a folder is no finished sweep, or the two do not compare.
    """
    (name_a, a), (name_b, b) = _representative(first, given), _representative(second, given)
    names, environments = [name_a, name_b], sorted({canonical(r.env) for r in a})
    if environments != sorted({canonical(r.env) for r in b}):
        raise ConfigError(
            f"{first} is of {', '.join(r.env for r in a)} and {second} of "
            f"{', '.join(r.env for r in b)}; only sweeps of the same environments compare"
        )
    a, b = results.penalise(a, b), results.penalise(b, a)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    parts, found = [page.heading("Comparison", 1)], {}
    for env in environments:
        pair = [next(r for r in side if canonical(r.env) == env) for side in (a, b)]
        rows += [{"sweep": n, **results.row(r)} for n, r in zip(names, pair, strict=True)]
        found[pair[0].env] = numbers = difference(pair[0].score, pair[1].score)
        file = out / f"comparison_{pair[0].env.replace(':', '_')}.png"
        figure = figures.comparison([*zip(names, pair, strict=True)])
        with files.replacing(file) as picture:
            figure.savefig(picture, dpi=figures.DPI, format="png")
        parts += [page.picture(pair[0].env, file), page.paragraph(sentence(names, numbers))]
        terminal.say(f"{pair[0].env}: {sentence(names, numbers)}")
    parts.insert(1, page.table(rows))
    files.write_bytes(out / "comparison.html", page.page("Comparison", parts).encode())
    write_json(out / "comparison.json", _plain({"sweeps": names, "difference": found}))
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


def _representative(path: Path, given: Given) -> tuple[str, list[PointResult]]:
    """(the sweep, its best point and the seeds behind the numbers, the results per environment)"""
    spec, _ = read_spec(path, given)
    if not spec.episodes:
        raise ConfigError(f"{path} was not evaluated (--eval-episodes 0): there are no scores")
    store = Store(path, spec)
    best = results.settings(results.penalise(store.results()))[0]
    confirmed = _confirmation(store)
    tuned = "" if len(spec.configs) == 1 else ", which chose it"
    how = "fresh seeds" if confirmed else f"seeds{tuned}"
    found = confirmed or [*best.results]
    return f"{path}: {best.name} ({len(found[0].seeds)} {how})", found


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV; None is empty, tuples as the command line takes them."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    plain = [{n: show(v) if isinstance(v, tuple) else v for n, v in r.items()} for r in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    manifest.write(path.parent, path.name, text.getvalue().encode())


def agent_rows(found: Sequence[PointResult], threshold: float | None) -> Iterator[dict[str, Any]]:
    """A row per agent: its score and how it got there."""
    for p, r in enumerate(found):
        mark = r.threshold(threshold)
        steps = r.steps_to(mark) if mark is not None else np.full(len(r.seeds), np.inf)
        for s, seed in enumerate(r.seeds):
            yield {
                "point": p,
                **r.point,
                "seed": seed,
                "status": "diverged" if r.diverged[s] else "finished",
                "score": round(float(r.score[s]), 6),
                "score_std": round(float(r.spread[s]), 6),
                "area": round(float(r.area[s]), 6),
                "steps_to_threshold": int(steps[s]) if np.isfinite(steps[s]) else None,
            }


def _plain(value: Any) -> Any:
    """In JSON's types; what is not a number is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value) if np.isfinite(value) else str(value)
    return value if isinstance(value, int | str | bool | None) else show(value)
