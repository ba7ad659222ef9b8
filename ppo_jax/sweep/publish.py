"""The results of a finished sweep for readers: tables, figures, the report, and comparisons."""

import csv
import io
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.analysis import statistics, style
from ppo_jax.config import ConfigError
from ppo_jax.config.options import show
from ppo_jax.envs import canonical
from ppo_jax.runs import files, manifest, terminal
from ppo_jax.runs.files import write_json
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.record import read_summary
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.sweep import figures, page, results, tables
from ppo_jax.sweep.results import PointResult, Setting
from ppo_jax.sweep.store import Store, read_sessions, read_spec

# Intervals from fewer seeds cover clearly less than they claim (tests/test_statistics.py).
FEW_SEEDS = 10
WARNING = (
    "Intervals from fewer than 10 seeds are too narrow: for the IQM of normally distributed "
    "scores, a nominal 95 % bootstrap interval covers about 75 % with 3 seeds and 89 % with 5. "
    "Use at least 10 seeds, better 30. Figures show no intervals for fewer than "
    f"{style.MIN_SEEDS} seeds: thin lines and small dots are single runs."
)
# Form of a range on the command line: `--vary learning_rate=log:1e-4:1e-2`.
RANGE = re.compile(r"(?:--vary=)?-*([\w-]+)=(log|lin):")


def publish(store: Store, threshold: float | None, session: dict[str, Any]) -> list[Setting]:
    """Write every table, figure and the report of a finished sweep.

    Args:
        store: the sweep, all of whose chunks are finished.
        threshold: the return to reach; None: the threshold of each environment.
        session: entry of summary.json for the session that trained last, with its speed; {} if
            there was nothing to train.

    Returns:
        The settings of the sweep, the best first.

    Raises:
        RunFailed: a file cannot be written; the trained agents are kept.
    """
    try:
        return _publish(store, threshold, session)
    except OSError as error:
        raise RunFailed(
            f"the report of {store.path} cannot be written: {error}; all agents are trained and "
            "kept. If the disk is full, free some space; write it with --resume "
            f"{shlex.quote(str(store.path))}"
        ) from error


def _publish(store: Store, threshold: float | None, session: dict[str, Any]) -> list[Setting]:
    raw, fresh = store.results(), _confirmation(store)
    # The fresh seeds do not take part in the ranking that they confirm.
    found, confirmed = results.penalise(raw), results.penalise(fresh, raw)
    order = results.settings(found)
    if not order:
        raise ConfigError(
            "no configuration was tried in every environment; vary env together with all others"
        )
    rows = _ranked(results.table(found, threshold), order, found)
    write_table(store.path / "agents.csv", [*agent_rows(found, threshold)])
    write_table(store.path / "table.csv", rows)
    manifest.write(store.path, "table.md", tables.markdown(rows).encode())
    manifest.write(store.path, "table.tex", tables.latex(rows).encode())
    pictures = _pictures(order, threshold, store.path)
    parts = [
        page.heading(f"Sweep of {_title(found)}", 1),
        *map(page.paragraph, _summary_lines(store, order, found, confirmed)),
        *_confirmed_parts(order, confirmed, threshold),
        *_table_parts(rows, best=len(order) > 1),
        page.heading("Figures"),
        *(page.picture(title, path) for title, path in pictures.items()),
        page.heading("Hardware and software"),
        *_provenance(store.path),
    ]
    html = page.page(f"Sweep of {_title(found)}", parts)
    manifest.write(store.path, "report.html", html.encode())
    summary = {
        "configurations": len(found),
        "seeds": len(store.spec.seeds),
        "best": order[0].name,
        "best_configuration": [_index(found, r) for r in order[0].results],
        "diverged": int(sum(r.diverged.sum() for r in found)),
        "table": rows[: len(order[0].results)],
        "confirmed": [results.row(r, threshold) for r in confirmed] or None,
    }
    last = session or read_summary(store.path).get("last_session", {})
    manifest.note(store.path, {"results.csv": manifest.entry_of(store.path / "results.csv")})
    manifest.write_json(store.path, "summary.json", _plain(summary | {"last_session": last}))
    manifest.settle(store.path)
    return order


def _table_parts(rows: list[dict[str, Any]], best: bool) -> list[str]:
    """The table of all configurations, and the same to paste."""
    return [
        page.heading("All configurations, with the seeds that ranked them"),
        tables.as_html(rows, best=best),
        page.paragraph(
            'The column "configuration" has the numbers that stand for the configurations in '
            "results.csv, in agents.csv, and in the names of the folders in agents/."
        ),
        page.copyable("This table in Markdown", tables.markdown(rows)),
        page.copyable("This table in LaTeX", tables.latex(rows)),
    ]


def _pictures(order: list[Setting], threshold: float | None, path: Path) -> dict[str, Path]:
    """The figures; none if they cannot be drawn, because the tables are written all the same."""
    try:
        return figures.draw(order, threshold, path / "figures", scales(path))
    except Exception as error:
        warnings.warn(f"the figures of {path} are not written: {error}", stacklevel=2)
        return {}


def scales(path: Path) -> dict[str, str]:
    """Hyperparameter -> "log" or "lin", for those that the command line gave as a range."""
    words = [w for s in read_sessions(path) for w in s.get("command", []) if isinstance(w, str)]
    found = [match for word in words if (match := RANGE.match(word))]
    return {match[1].replace("-", "_"): match[2] for match in found}


def _ranked(rows: list[dict], order: Sequence[Setting], found: list[PointResult]) -> list[dict]:
    """Rows from the best setting to the worst; those that were not tried everywhere are last."""
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
        else "the last tenth of training"
    )
    failed = sum(int(r.diverged.sum()) for r in found)
    lines = [
        f"{_counted(len(spec.configs), 'configuration')} with "
        f"{_counted(len(spec.seeds), 'seed')} each ({_seeds(spec.seeds)}), {total:,} environment "
        f"steps. The score of an agent is its mean return in {scored}. IQM is the interquartile "
        "mean over seeds; intervals are 95 % stratified bootstrap percentile intervals of "
        f"{statistics.RESAMPLES:,} resamples. The mean in training is the mean return over the "
        "whole of training, which is the area under the learning curve per environment step. The "
        "steps to the threshold are the median over seeds of the number of environment steps after "
        "which the learning curve first reaches the threshold. Configurations are ranked by IQM, "
        "and those with equal IQM by the mean in training.",
        f"{failed} of {len(found) * len(spec.seeds)} agents diverged. They are included in all "
        "statistics with the worst return that was observed in their environment."
        if failed
        else "No agent diverged.",
    ]
    if len(order[0].results) > 1:
        lines.append(
            "With several environments, figures show normalised scores: in each environment, 0 is "
            "the score of the worst agent of the sweep and 1 that of the best."
        )
    if len(order) > figures.BANDS:
        lines.append(
            f"Learning curves and performance profiles show the intervals of the best "
            f"{figures.BANDS} configurations only."
        )
    cut = sum(int(r.cut.sum()) for r in (*found, *confirmed))
    if cut:
        lines.append(f"{cut} episodes of the evaluation did not end and were cut off.")
    if min(len(r.seeds) for r in (*found, *confirmed)) < FEW_SEEDS:
        lines.append(WARNING)
    return lines


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def _confirmation(store: Store) -> list[PointResult]:
    """The results of the best configuration with fresh seeds; none if that run is missing or not
    finished."""
    path = store.path / "confirm"
    try:
        return Store(path, read_spec(path, store.spec.following)[0]).results()
    except ConfigError:
        return []


def _confirmed_parts(
    order: Sequence[Setting], confirmed: Sequence[PointResult], threshold: float | None
) -> list[str]:
    """The best configuration with the seeds that selected it, and with fresh seeds."""
    if not confirmed:
        if len(order) == 1:
            return []
        return [
            page.paragraph(
                f"The best of {len(order)} configurations was selected by its score, so that its "
                "score with these seeds is biased upwards. For a number to publish, train it with "
                "fresh seeds: ppo-jax sweep --resume DIR --confirm 64."
            )
        ]
    rows = []
    for tuned, fresh in zip(order[0].results, confirmed, strict=True):
        rows.append({"seeds used for": "selection", **results.row(tuned, threshold)})
        rows.append({"seeds used for": "confirmation only", **results.row(fresh, threshold)})
    return [
        page.heading(f"The best configuration with fresh seeds: {order[0].short}"),
        page.paragraph(
            f"It was selected among {len(order)} by its score with the first seeds, which biases "
            "that score upwards. Publish the rows of the fresh seeds "
            f"({_seeds(confirmed[0].seeds)})."
        ),
        tables.as_html(rows),
    ]


def _provenance(path: Path) -> list[str]:
    """The device and the versions of each session, without repetitions."""
    lines = []
    for session in read_sessions(path):
        versions = ", ".join(f"{k} {v}" for k, v in session["versions"].items())
        lines.append(page.paragraph(f"Run on {session['device']} with {versions}."))
    return [*dict.fromkeys(lines)]


def compare(first: Path, second: Path, out: Path, given: Given = NOTHING) -> dict[str, Any]:
    """Two sweeps on one figure, with the interval of their difference.

    The best configuration of each sweep is compared, with fresh seeds if it was confirmed.

    Args:
        first, second: folders of finished sweeps.
        out: folder for comparison.html, comparison.json, and comparison_ENV as PNG, PDF and SVG.
        given: environment, network and algorithm that the user names again, and whether the sweeps
            are trusted.

    Raises:
        ConfigError: a folder is not a finished sweep, or the environments of the two differ.
    """
    (name_a, a), (name_b, b) = _representative(first, given), _representative(second, given)
    names, environments = [name_a, name_b], sorted({canonical(r.env) for r in a})
    if environments != sorted({canonical(r.env) for r in b}):
        raise ConfigError(
            f"{first} was trained in {', '.join(r.env for r in a)} and {second} in "
            f"{', '.join(r.env for r in b)}; only sweeps in the same environments can be compared"
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
        for format in style.FORMATS:
            with files.replacing(file.with_suffix(f".{format}")) as picture:
                style.save(figure, picture, format)
        parts += [page.picture(pair[0].env, file), page.paragraph(sentence(names, numbers))]
        terminal.say(f"{pair[0].env}: {sentence(names, numbers)}")
    parts.insert(1, tables.as_html(rows))
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
    """The difference of two sweeps as a sentence."""
    low, high = numbers["ci95_low"], numbers["ci95_high"]
    chance = numbers["probability_of_improvement"]
    least, most = numbers["probability_ci95_low"], numbers["probability_ci95_high"]
    return (
        f"IQM of [{names[0]}] minus IQM of [{names[1]}]: {numbers['difference']:.4g}, 95 % "
        f"interval [{low:.4g}, {high:.4g}]; the probability that a run of the first scores higher "
        f"than a run of the second is {chance:.2f} [{least:.2f}, {most:.2f}]"
    )


def _representative(path: Path, given: Given) -> tuple[str, list[PointResult]]:
    """(name of the sweep, its best configuration and its seeds; the results per environment)."""
    spec, _ = read_spec(path, given)
    if not spec.episodes:
        raise ConfigError(f"{path} has no scores to compare: it was trained with --eval-episodes 0")
    store = Store(path, spec)
    best = results.settings(results.penalise(store.results()))[0]
    confirmed = _confirmation(store)
    tuned = "" if len(spec.configs) == 1 else ", which selected it"
    how = "fresh seeds" if confirmed else f"seeds{tuned}"
    found = confirmed or [*best.results]
    return f"{path}: {best.name} ({len(found[0].seeds)} {how})", found


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV: None is empty, and tuples are in the form of the command line."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    plain = [{n: show(v) if isinstance(v, tuple) else v for n, v in r.items()} for r in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    manifest.write(path.parent, path.name, text.getvalue().encode())


def agent_rows(found: Sequence[PointResult], threshold: float | None) -> Iterator[dict[str, Any]]:
    """A row per agent with its status, its score and its learning speed."""
    for p, r in enumerate(found):
        wanted = r.threshold(threshold)
        steps = r.steps_to(wanted) if wanted is not None else np.full(len(r.seeds), np.inf)
        for s, seed in enumerate(r.seeds):
            yield {
                "configuration": p,
                **r.point,
                "seed": seed,
                "status": "diverged" if r.diverged[s] else "finished",
                "score": round(float(r.score[s]), 6),
                "score_std": round(float(r.spread[s]), 6),
                "area": round(float(r.area[s]), 6),
                "steps_to_threshold": int(steps[s]) if np.isfinite(steps[s]) else None,
            }


def _plain(value: Any) -> Any:
    """A value in the types of JSON; NaN becomes null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value) if np.isfinite(value) else str(value)
    return value if isinstance(value, int | str | bool | None) else show(value)
