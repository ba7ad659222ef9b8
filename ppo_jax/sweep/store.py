"""The folder of a sweep: its specification, its plan and its finished chunks.

A chunk is stored as a file of arrays and a manifest with its digest. The manifest is written last;
a chunk without one is not finished and is trained again. Other files in the folder are not touched.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.runs import files, manifest, provenance, trust
from ppo_jax.runs.files import delete
from ppo_jax.runs.folder import RunDirectory, check_digest, clear
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.sweep import results
from ppo_jax.sweep.points import Overrides
from ppo_jax.sweep.results import PointResult
from ppo_jax.sweep.schedule import Chunk, Finished

MARK = "sweep.json"
CONTENTS = (
    MARK, "plan.json", "chunks", "results.csv", "agents.csv", "table.csv", "table.md",
    "table.tex", "summary.json", "report.html", "figures", "agents", "confirm", "slurm",
    manifest.NAME,
)  # fmt: skip
FORMAT = "ppo_jax sweep"
# Folder of an agent; its first word was "point" in earlier versions.
AGENT = re.compile(r"(configuration|point)\d{4,}_seed\d+")
FIGURE = re.compile(
    r"(learning_curves|performance_profile|improvement|sensitivity_.+)\.(png|pdf|svg)"
)
# Folder in which submitit writes files for SLURM jobs, with one subfolder for each session.
JOBS = "slurm"
JOBS_OF_A_SESSION = re.compile(r"[0-9a-f]{16}")
CHUNK = re.compile(r"\d{5,}\.(npz|json)|\.\d{5,}\.(npz|json)\.tmp")
# Options that a resumed sweep keeps.
KEPT = ("agents_per_device", "keep", "confirm", "threshold")
# Their names in earlier versions.
OLDER_NAMES = {"agents_per_device": "batch_size"}
# Options that did not exist for older sweeps, with the values that those sweeps correspond to.
YOUNGER = {
    "matmul_precision": "default",
    "policy": None,
    "micro_batches": 1,
    "parts": 1,
    "network_dtype": "float32",
    "norm": "none",
    "residual": False,
    "value_head": "scalar",
    "value_bins": 51,
    "value_low": -10.0,
    "value_high": 10.0,
    "action_distribution": "gaussian",
    "noise_steps": None,
    "stagger": False,
    "objective": "clip",
    "proximal_decay": None,
    "rpo_alpha": None,
    "optimizer": "adam",
    "adam_reset": False,
    "weight_decay": None,
    "memory_layers": 1,
    "memory_heads": 4,
    "memory_length": 32,
}
COLUMNS = ("configuration", "seed", "env_step", "metric", "value")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The specification of a sweep; a resumed sweep must have the same.

    Attributes:
        varied: names of the options that differ between configurations.
        configs: the configurations.
        seeds: the S seeds for each configuration.
        episodes: number of greedy evaluation episodes E per agent at the end.
        parts: number of bins of the learning curves in the result table.
    """

    varied: tuple[str, ...]
    configs: tuple[TrainConfig, ...]
    seeds: tuple[int, ...]
    episodes: int
    parts: int

    @property
    def points(self) -> list[Overrides]:
        """The values that vary, by name, for each configuration."""
        return [{n: configs.to_flat(c)[n] for n in self.varied} for c in self.configs]

    @property
    def promises(self) -> dict[str, str]:
        """The union of `config.promises` over all configurations."""
        return {k: v for c in self.configs for k, v in configs.promises(c).items()}

    @property
    def counts(self) -> tuple[str, ...]:
        """The metrics that are summed within a bin."""
        return (*results.COUNTS, *self.promises)

    def to_json(self) -> dict[str, Any]:
        """The specification in JSON types."""
        return {
            "varied": [*self.varied],
            "configs": [configs.to_json(c) for c in self.configs],
            "seeds": [*self.seeds],
            "episodes": self.episodes,
            "parts": self.parts,
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Spec":
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the content is invalid.
        """
        spec = Spec(
            tuple(content["varied"]),
            tuple(configs.from_saved(c) for c in content["configs"]),
            tuple(content["seeds"]),
            content["episodes"],
            content["parts"],
        )
        for name, low, values in (
            ("seeds", 0, spec.seeds), ("episodes", 0, [spec.episodes]), ("parts", 1, [spec.parts])
        ):  # fmt: skip
            if not values or not all(type(x) is int and x >= low for x in values):
                raise ValueError(f"{name} is {content[name]!r}; it must be an integer >= {low}")
        if not spec.configs or not all(len(p) == len(spec.varied) for p in spec.points):
            raise ValueError(
                f"varied is {content['varied']!r}, for {len(spec.configs)} configurations"
            )
        return spec

    @property
    def following(self) -> Given:
        """The names of code that a sweep inside this one may use: the same."""
        return trust.following({"sweep": self.to_json()})

    @property
    def digest(self) -> str:
        """The digest by which chunks are assigned to their sweep."""
        content = self.to_json()
        for values in content["configs"]:
            # Options at their previous behaviour are omitted, so that older chunks stay valid.
            for name, default in YOUNGER.items():
                if values.get(name, default) == default:
                    values.pop(name, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class SweepDirectory(RunDirectory):
    """The folder of one sweep, locked while it is in use."""

    contents, mark, kind, parent, format = CONTENTS, MARK, "sweep", "sweeps", FORMAT

    @classmethod
    def is_older(cls, content: dict[str, Any]) -> bool:
        """Whether the content is that of an earlier version, which did not write "format"."""
        return all(isinstance(content.get(name), dict) for name in ("sweep", "options"))

    def clear(self) -> None:
        """Delete the sweep; the identifying file last."""
        clear_agents(self.path / "agents")
        clear_jobs(self.path)
        if SweepDirectory.is_one(self.path / "confirm"):
            with SweepDirectory(self.path / "confirm") as inner:
                inner.clear()
            files.delete(self.path / "confirm" / ".lock")
            files.remove_empty(self.path / "confirm")
        for folder, own in (("chunks", CHUNK), ("figures", FIGURE)):
            for path in (self.path / folder).glob("*"):
                if own.fullmatch(path.name):
                    delete(path)
            files.remove_empty(self.path / folder)
        super().clear()


def clear_jobs(path: Path) -> None:
    """Delete orders and logs of SLURM jobs of earlier sessions in the folder of a sweep."""
    for folder in (path / JOBS).glob("*"):
        if JOBS_OF_A_SESSION.fullmatch(folder.name):
            delete(folder)
    files.remove_empty(path / JOBS)


def clear_agents(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete the agents of a sweep, and no other files beside them.

    Args:
        folder: folder of the agents.
        keep: names of the agents to keep.
    """
    for path in folder.glob("*_seed*"):
        if AGENT.fullmatch(path.name) and path.name not in keep and not path.is_symlink():
            clear_agent(path)
    files.remove_empty(folder)


def rename_agents(folder: Path) -> None:
    """Give the agents of an earlier version, `point0000_seed1`, the names that they have now."""
    for path in folder.glob("point*_seed*"):
        new = path.with_name(path.name.replace("point", "configuration", 1))
        if AGENT.fullmatch(path.name) and not path.is_symlink() and not os.path.lexists(new):
            path.rename(new)


def clear_agent(path: Path) -> None:
    """Delete a complete or incomplete agent: its files, and its folder if it is then empty."""
    if path.is_dir():
        clear(path, RunDirectory.contents, RunDirectory.mark)
        delete(path / ".lock")
        files.remove_empty(path)


class Store:
    """Reads and writes the plan, the chunks and the tables of a sweep.

    Args:
        path: folder of the sweep.
        spec: specification of the sweep.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        self.path, self.spec = path, spec

    def describe(self, options: dict[str, Any], cluster: str = "none") -> None:
        """Write sweep.json: everything needed to repeat the sweep, and an entry per session.

        Args:
            options: options that a resumed sweep keeps.
            cluster: kind of cluster on which this session trains.
        """
        path = self.path / MARK
        precisions = (c.matmul_precision for c in self.spec.configs)
        session = {"command": sys.argv, **provenance.record(*precisions)}
        if cluster != "none":
            session["cluster"] = cluster
        earlier = read_sessions(self.path) if path.exists() else []
        content: dict[str, Any] = {"format": FORMAT, "sweep": self.spec.to_json()}
        content["options"] = options
        if signature := trust.sign(content):
            content["signature"] = signature
        content["sessions"] = [*earlier, session]
        manifest.write_json(self.path, MARK, content, of=FORMAT)

    def ran_on(self, device: str) -> None:
        """Write the device of this session's workers into sweep.json."""
        content = _read_mark(self.path)
        content["sessions"][-1]["device"] = device
        manifest.write_json(self.path, MARK, content, of=FORMAT)

    def save_plan(self, chunks: list[Chunk]) -> None:
        """Write the plan before a chunk is trained, which fixes its agents and its width."""
        manifest.write_json(self.path, "plan.json", [c._asdict() for c in chunks])

    def save_chunk(self, finished: Finished) -> None:
        """Write a finished chunk: its arrays, its rows of the table, and last its manifest."""
        path = self._arrays(finished.chunk.number)
        path.parent.mkdir(exist_ok=True)
        with files.replacing(path) as file:
            arrays: dict[str, Any] = {**finished.metrics, "returns": finished.returns}
            np.savez(file, whole=finished.whole, **arrays)
        self._append(finished)
        about = finished.chunk._asdict() | {"sweep": self.spec.digest, "sha256": _sha256(path)}
        files.write_json(path.with_suffix(".json"), about)

    def verified(self) -> tuple[list[Chunk], set[int]]:
        """Verify all chunks: (the plan, the numbers of the finished chunks).

        Raises:
            ConfigError: a file is damaged or belongs to another sweep; the message gives a remedy.
        """
        chunks = read_plan(self.path)
        known = {c.number: c for c in chunks}
        done = set()
        for file in sorted((self.path / "chunks").glob("*.json")):
            number = int(file.stem) if re.fullmatch(r"[0-9]{5,9}", file.stem) else -1
            if number not in known:
                raise ConfigError(f"{file} does not belong to this sweep; move it away")
            self._verify(file, known[number])
            done.add(number)
        return chunks, done

    def clean(self, done: set[int]) -> None:
        """Delete the files of unfinished chunks, and no others."""
        for file in (self.path / "chunks").glob("*.npz"):
            if re.fullmatch(r"\d{5}", file.stem) and int(file.stem) not in done:
                delete(file)
        for file in (self.path / "chunks").glob(".*.tmp"):
            if CHUNK.fullmatch(file.name) or files.TEMPORARY.fullmatch(file.name):
                delete(file)

    def rewrite_table(self, chunks: Sequence[Chunk], done: set[int]) -> None:
        """Rebuild results.csv from the chunks, because a crash may have truncated it."""
        manifest.note(self.path, drop=["results.csv"])  # the file will grow
        with files.replacing(self.path / "results.csv") as binary:
            file = io.TextIOWrapper(binary, newline="", write_through=True)
            csv.writer(file, lineterminator="\n").writerow(COLUMNS)
            for chunk in chunks:
                if chunk.number in done:
                    metrics, returns, _ = self._read(chunk)
                    self._write_rows(file, chunk, metrics, returns)
            file.detach()

    def scores(self, chunks: Sequence[Chunk], done: set[int]) -> dict[int, float]:
        """Agent -> score, for finished agents; NaN for an agent that diverged."""
        found: dict[int, float] = {}
        for chunk in chunks:
            if chunk.number in done:
                metrics, returns, _ = self._read(chunk)
                values = results.scores(metrics, returns)[0]
                values = np.where(results.diverged(metrics), np.nan, values)
                found |= dict(zip(chunk.agents, map(float, values), strict=True))
        return found

    def results(self) -> list[PointResult]:
        """The results of all configurations; diverged agents are not penalised yet.

        Raises:
            ConfigError: the sweep is not finished, or it is damaged.
        """
        count = len(self.spec.seeds)
        parts: dict[int, tuple] = {}
        chunks, done = self.verified()
        for chunk in chunks:
            if chunk.number not in done:
                continue
            metrics, returns, whole = self._read(chunk)
            columns = [*results.scores(metrics, returns), results.diverged(metrics)]
            columns.append((~whole).sum(axis=1))
            curves = results.binned(metrics, self.spec.parts, self.spec.counts)
            for i, agent in enumerate(chunk.agents):
                one = {name: x[i] for name, x in curves.items()}
                parts[agent] = (one, *(column[i] for column in columns))
        missing = len(self.spec.configs) * count - len(parts)
        if missing:
            raise ConfigError(
                f"{missing} of {len(self.spec.configs) * count} agents of {self.path} are not "
                f"trained yet; continue with --resume {self.path}"
            )
        found = []
        for p, (point, config) in enumerate(zip(self.spec.points, self.spec.configs, strict=True)):
            mine, *rest = zip(*(parts[p * count + s] for s in range(count)), strict=True)
            curves = {name: np.stack([m[name] for m in mine]) for name in mine[0]}
            steps = self._env_steps(config)
            found.append(
                PointResult(point, config, self.spec.seeds, steps, curves, *map(np.array, rest))
            )
        return found

    def _env_steps(self, config: TrainConfig) -> np.ndarray:
        cuts = results.edges(config.num_updates, self.spec.parts)[1:]
        return cuts * config.num_envs * config.num_steps

    def _arrays(self, number: int) -> Path:
        return self.path / "chunks" / f"{number:05d}.npz"

    def _verify(self, file: Path, planned: Chunk) -> None:
        again = f"delete {file.parent / file.stem}.* to train the chunk again"
        try:
            content = json.loads(files.read_text(file))
            chunk = Chunk(**{f: content[f] for f in Chunk._fields})
            chunk = chunk._replace(agents=tuple(chunk.agents))
            whole = content["sha256"] == _sha256(file.with_suffix(".npz"))
            sweep = content["sweep"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{file} is damaged ({error!r}); {again}") from error
        if sweep != self.spec.digest:
            raise ConfigError(f"{file} belongs to another sweep; move it away")
        if chunk != planned:
            raise ConfigError(f"{file} does not agree with plan.json; {again}")
        if not whole:
            raise ConfigError(
                f"{file.with_suffix('.npz')} is damaged: it does not match its digest; {again}"
            )

    def _read(self, chunk: Chunk) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        with np.load(self._arrays(chunk.number)) as arrays:
            metrics = {name: arrays[name] for name in arrays.files}
        return metrics, metrics.pop("returns"), metrics.pop("whole")

    def _append(self, finished: Finished) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self.path / "results.csv", flags, 0o666)
        with os.fdopen(descriptor, "a", newline="") as file:
            if not file.tell():
                csv.writer(file, lineterminator="\n").writerow(COLUMNS)
            self._write_rows(file, finished.chunk, finished.metrics, finished.returns)

    def _write_rows(
        self,
        file: Any,
        chunk: Chunk,
        metrics: dict[str, np.ndarray],
        returns: np.ndarray,
    ) -> None:
        """Write rows of a chunk in long format, a row for each value (COLUMNS)."""
        curves = results.binned(metrics, self.spec.parts, self.spec.counts)
        for i, agent in enumerate(chunk.agents):
            point, s = divmod(agent, len(self.spec.seeds))
            steps = self._env_steps(self.spec.configs[point])
            head = f"{point},{self.spec.seeds[s]}"
            for name, x in curves.items():
                file.writelines(
                    f"{head},{step},{name},{value:.7g}\n"
                    for step, value in zip(steps, x[i], strict=True)
                )
            if returns.shape[1]:
                file.write(f"{head},{steps[-1]},eval_return,{returns[i].mean():.7g}\n")


def read_spec(path: Path, given: Given = NOTHING) -> tuple[Spec, dict[str, Any]]:
    """Read a sweep's folder: (specification, further options).

    Args:
        path: folder of the sweep.
        given: names that the user gave in addition to the folder, and whether it is trusted.

    Raises:
        ConfigError: the folder is not a sweep, its sweep.json is damaged, or it names code to
            import and was not signed by this user.
    """
    content = _read_mark(path)
    trust.check(content, given.named, given.trust, path / MARK)
    check_digest(path / MARK, content, given)
    try:
        saved = content["options"]
        options = {name: saved[name if name in saved else OLDER_NAMES[name]] for name in KEPT}
        return Spec.from_json(content["sweep"]), options
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path / MARK} is damaged: {error!r}") from error


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions of a sweep in order: command, device and versions of each.

    Raises:
        ConfigError: the folder is not a sweep, or its sweep.json is damaged.
    """
    sessions = _read_mark(path).get("sessions")
    whole = isinstance(sessions, list) and all(
        isinstance(s, dict) and {"device", "versions"} <= s.keys() for s in sessions
    )
    if not whole or not sessions:
        raise ConfigError(f"{path / MARK} is damaged: its sessions are {sessions!r}")
    return sessions


def _read_mark(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path / MARK):
        what = "a run of ppo_jax.train" if (path / "config.json").exists() else "not a sweep"
        raise ConfigError(f"{path} is {what}: it has no {MARK}")
    try:
        content = json.loads(files.read_text(path / MARK))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path / MARK} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path / MARK} is damaged: it contains {content!r}")
    return content


def read_plan(path: Path) -> list[Chunk]:
    """The chunks of a sweep; [] if none has been planned yet.

    Raises:
        ConfigError: plan.json is damaged, or missing although there are chunks.
    """
    file = path / "plan.json"
    if not os.path.lexists(file):
        if any((path / "chunks").glob("*.json")):
            raise ConfigError(
                f"{file} is missing, which contains the widths of the finished chunks; copy it "
                "back from a backup"
            )
        return []
    manifest.require(path, file.name)
    try:
        return [
            Chunk(**c)._replace(agents=tuple(c["agents"]))
            for c in json.loads(files.read_text(file))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: {error!r}") from error


def _sha256(path: Path) -> str:
    return files.digest(path)
