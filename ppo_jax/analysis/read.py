"""Reading the learning curves of runs, of sweeps, and of folders that contain them."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.options import did_you_mean
from ppo_jax.runs import files, manifest, metrics_log, terminal, trust
from ppo_jax.runs.folder import RunDirectory, check_digest, read_config
from ppo_jax.runs.trust import NOTHING, Given

# Columns of metrics.jsonl that are positions on the horizontal axis and cannot be drawn against it.
POSITIONS = ("update", *metrics_log.POSITIONS)
# The stages of a language model: title of their panel, unit of progress, metric that is drawn.
STAGES = {
    "sft": ("supervised fine-tuning", "sequences", "loss"),
    "reward": ("reward model", "sequences", "accuracy"),
    "ppo": ("optimisation of a reward", "responses", "objective"),
}
RETURN = "episode_return"
# Number of levels of folders in which runs are searched: ENVIRONMENT/ALGORITHM/SEED.
DEPTH = 3
KINDS = "a run directory, a sweep, or a folder that contains runs or sweeps"


class Run(NamedTuple):
    """The learning curve of one agent or of one stage of a language model.

    Attributes:
        path: run directory, or folder of the sweep to which the agent belongs.
        env: environment of the agent, or a description of the stage.
        config: flat configuration, with the algorithm.
        metric: name of the metric.
        unit: unit of progress, a key of `runs.terminal.UNITS`.
        columns: name -> [N] values: "x" positions, "metric" values, and "weight", the number of
            episodes or updates of which a value is the mean.
    """

    path: Path
    env: str
    config: dict[str, Any]
    metric: str
    unit: str
    columns: dict[str, np.ndarray]


def read(paths: Sequence[Path], metric: str | None, x: str, given: Given = NOTHING) -> list[Run]:
    """Read all runs that the paths name, each of them once.

    Args:
        paths: run directories, sweeps, and folders that contain them.
        metric: name of a metric; None for the return of agents and the main metric of stages of
            language models.
        x: quantity on the horizontal axis: "steps", "seconds" (wall-clock time of
            training without compilation) or "updates".
        given: environment, network and algorithm that the user names again, and whether the
            folders are trusted.

    Raises:
        ConfigError: a path is none of these, a folder names code and was not made by this user,
            nothing is logged yet, or there is no such metric.
    """
    found: list[Run] = []
    inside = (folder.resolve() for path in paths for folder in folders(path))
    for path in dict.fromkeys(inside):
        if (path / "sweep.json").is_file():
            found += read_sweep(path, metric or RETURN, x, given)
        else:
            found.append(read_run(path, metric, x, given))
    return found


def folders(path: Path) -> list[Path]:
    """The runs and sweeps that a path names: itself, or those inside it.

    Raises:
        ConfigError: the path is neither a run nor a sweep and contains none.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name {KINDS}")
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; name {KINDS}")
    if any((path / name).is_file() for name in ("config.json", "sweep.json")):
        stages = [path / name for name in STAGES if (path / name / "config.json").is_file()]
        return stages or [path]  # a demo contains its stages
    try:
        found = [*_inside(path, DEPTH)]
    except OSError as error:
        raise ConfigError(f"cannot search {path} for runs: {error}") from error
    if not found:
        raise ConfigError(f"{path} is not {KINDS}: there is no config.json or sweep.json in it")
    return found


def _inside(path: Path, depth: int) -> Iterator[Path]:
    """Runs and sweeps in a folder, at most `depth` levels below it."""
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if (folder / "sweep.json").is_file() or _is_run(folder):
            yield from folders(folder)
        elif depth > 1:
            yield from _inside(folder, depth - 1)


def _is_run(path: Path) -> bool:
    """Whether a folder is a run of an agent, a stage of a language model, or a demo."""
    if RunDirectory.is_one(path):
        return True
    try:
        return "stage" in _content(path / "config.json")
    except ConfigError:
        return False


def read_run(path: Path, metric: str | None, x: str, given: Given = NOTHING) -> Run:
    """The configuration of a run and three columns of its log.

    Args:
        path: run directory.
        metric: name of a column of metrics.jsonl; None for the main metric of the run.
        x: quantity on the horizontal axis: "steps", "seconds" or "updates".
        given: the same as in `read`.

    Raises:
        ConfigError: the folder is not a run, it names code and was not made by this user, nothing
            is logged yet, or there is no such metric.
    """
    content = _content(path / "config.json")
    if "config" not in content:
        raise ConfigError(
            f"{path} is not a run directory: its config.json is that of something else"
        )
    if "stage" in content:
        env, unit, headline, config = _stage(path, content, given)
    else:
        agent = read_config(path, given)
        env, unit, headline, config = agent.env, "env_steps", RETURN, configs.to_flat(agent)
    metric = metric or headline
    manifest.look(path)
    rows = list(metrics_log.read_metrics(path / "metrics.jsonl"))
    if not rows:
        raise ConfigError(f"nothing to plot: {path} has no rows in metrics.jsonl yet")
    _check_metric(path, metric, [n for row in rows for n in row])
    column = {n: _column(rows, n) for n in ("update", "episodes", metric)}
    position = column["update"]
    if x != "updates":
        position = np.array([metrics_log.position_of(row) for row in rows], float)
    if x == "seconds":
        rates = np.array([_rate(row) for row in rows])
        position = np.cumsum(np.diff(position, prepend=0) / rates)
    # The mean over the episodes of an interval weights each update by the number of its episodes.
    weight = column["episodes"] if metric.startswith("episode_") else np.ones(len(rows))
    columns = {"metric": column[metric], "x": position, "weight": weight}
    return _known(Run(path, env, config, metric, unit, columns))


def _stage(path: Path, content: dict[str, Any], given: Given) -> tuple[str, str, str, Any]:
    """(description, unit, main metric, flat configuration) of a stage of a language model, whose
    code, such as reward functions, is not imported."""
    kind = content["stage"]
    if kind not in STAGES or not isinstance(content["config"], dict):
        raise ConfigError(f"{path} is a stage of a language model that has no curves: {kind!r}")
    check_digest(path / "config.json", content, given)
    return *STAGES[kind], {"algorithm": kind} | content["config"]


def _rate(row: dict[str, Any]) -> float:
    """The number of units per second of a row: the only rate that belongs to a position."""
    names = (metrics_log.columns_of(unit)[1] for unit in terminal.UNITS)
    return float(next((row[n] for n in names if row.get(n) is not None), math.nan))


def _known(run: Run) -> Run:
    """A run without the rows in which the metric has no value."""
    columns = run.columns
    known = np.isfinite(columns["metric"]) & np.isfinite(columns["x"]) & (columns["weight"] > 0)
    if not known.any():
        raise ConfigError(f"nothing to plot: in {run.path}, {run.metric} never has a value")
    return run._replace(columns={n: v[known] for n, v in columns.items()})


def _check_metric(path: Path, metric: str, names: Sequence[str]) -> None:
    known = [n for n in dict.fromkeys(names) if n not in POSITIONS]
    if metric not in known:
        raise ConfigError(f"{path} has no metric {metric!r}; {did_you_mean(metric, known)}")


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([math.nan if row.get(name) is None else row[name] for row in rows], float)


def read_sweep(path: Path, metric: str, x: str, given: Given = NOTHING) -> list[Run]:
    """The agents of a sweep whose training is finished, from results.csv.

    Args:
        path: folder of the sweep.
        metric: name of a metric in results.csv.
        x: quantity on the horizontal axis, "steps" or "updates"; the agents of a sweep
            share one program and have no time of their own.
        given: the same as in `read`.

    Raises:
        ConfigError: sweep.json is damaged, it names code and was not made by this user, no agent is
            finished yet, or there is no such metric.
    """
    if x == "seconds":
        raise ConfigError(
            f"{path} is a sweep, whose agents train together and have no wall-clock time of their "
            "own; use --x steps or --x updates"
        )
    found = _configs(path, given)
    manifest.look(path, "sweep.json")
    try:
        agents = _agents(path, metric)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path / 'results.csv'} is damaged: {error}") from error
    runs = []
    for (point, _), series in sorted(agents.items()):
        if point >= len(found) or metric not in series:
            continue
        config, values = found[point], series[metric]
        per_update = config.num_envs * config.num_steps
        episodes = series.get("episodes", {}) if metric.startswith("episode_") else {}
        steps = np.array([*values], float)
        columns = {
            "x": steps / per_update if x == "updates" else steps,
            "metric": np.array([*values.values()]),
            "weight": np.array([episodes.get(step, 1.0) for step in values]),
        }
        flat = configs.to_flat(config)
        runs.append(_known(Run(path, config.env, flat, metric, "env_steps", columns)))
    if not runs:
        raise ConfigError(f"nothing to plot: no agent of {path} is finished yet")
    return runs


def _configs(path: Path, given: Given) -> list[TrainConfig]:
    """The configuration of each point of a sweep."""
    file = path / "sweep.json"
    content = _content(file)
    try:
        values = content["sweep"]["configs"]
        trust.check(content, given.named, given.trust, file)
        check_digest(file, content, given)
        return [configs.from_saved(c) for c in values]
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged: {error!r}") from error


def _content(path: Path) -> dict[str, Any]:
    """The content of a file that makes a folder a run or a sweep."""
    try:
        content = json.loads(files.read_text(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it contains {content!r}")
    return content


def _agents(path: Path, metric: str) -> dict[tuple[int, int], dict[str, dict[int, float]]]:
    """(number of the configuration, seed) -> metric -> {environment step: value}, for the metric
    and for "episodes"."""
    file, names = path / "results.csv", dict[str, None]()
    found: dict[tuple[int, int], dict[str, dict[int, float]]] = {}
    if not file.is_file():
        raise ConfigError(f"nothing to plot: {path} has no results.csv yet")
    with file.open(newline="") as lines:
        rows = csv.reader(lines)
        next(rows, None)
        for row in rows:
            if len(row) != 5:
                continue  # the last line of a sweep that is being written
            point, seed, step, name, value = row
            names[name] = None
            if name in (metric, "episodes"):
                series = found.setdefault((int(point), int(seed)), {}).setdefault(name, {})
                series[int(step)] = float(value)
    if names:
        _check_metric(path, metric, [*names])
    return found
