"""The folder of a stage of a language model, and a stage that runs in it."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax import precision
from ppo_jax.config import ConfigError
from ppo_jax.config.options import to_json
from ppo_jax.runs import cache, commands, files, loop, manifest, trackers, trust
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.folder import (
    STAGE_FORMAT,
    RunDirectory,
    check_digest,
    plain,
    shown,
    write_description,
)
from ppo_jax.runs.job import Callback, Job, Result
from ppo_jax.runs.options import StageOptions as RunOptions
from ppo_jax.runs.record import RunRecord
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.trust import NOTHING, Given
from ppo_jax.types import PyTree

# The stages of a demo, each in a folder of its own.
PARTS = ("sft", "reward", "ppo")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MODEL_FILES = {
    manifest.NAME, "config.json", "model.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "reward.json",
}  # fmt: skip
# Options that older runs do not have, and what they did without.
YOUNGER = {"matmul_precision": "default"}


class StageDirectory(RunDirectory):
    """The folder of a stage, or of a demo, which has one for each stage in it."""

    contents = (*RunDirectory.contents, "samples.jsonl", "model", *PARTS)
    kind, format = "run of ppo_jax.rlhf", STAGE_FORMAT

    @classmethod
    def is_older(cls, content: dict[str, Any]) -> bool:
        """Whether a mark is that of an earlier version, which did not say what it is."""
        return isinstance(content.get("stage"), str) and isinstance(content.get("config"), dict)

    def clear(self) -> None:
        """Delete the stage in it, its model, and the stages of a demo; its mark last."""
        for part in PARTS:
            if self.is_one(self.path / part):
                with StageDirectory(self.path / part) as inner:
                    inner.clear()
                files.delete(self.path / part / ".lock")
                files.remove_empty(self.path / part)
        _clear_model(self.path / "model")
        super().clear()


def _clear_model(folder: Path) -> None:
    """Delete a model that a stage wrote: what its manifest lists, or, where it is of an earlier
    version and has none, the files that models are made of."""
    if folder.is_symlink() or not folder.is_dir():
        return
    try:
        listed = [*manifest.read(folder)]
    except manifest.Damaged:
        listed = []
    names = {p.name for p in folder.iterdir()}
    own = {n for n in names if n in MODEL_FILES or SHARD.fullmatch(n)} | ({*listed} & names)
    for name in own:
        files.delete(folder / name)
    files.remove_empty(folder)


def run(
    job: Job,
    kind: str,
    config: dict[str, Any],
    directory: RunDirectory,
    *,
    options: RunOptions,
    signals: Signals,
    callbacks: Sequence[Callback] = (),
    resume: str | None = None,
) -> Result:
    """Train a stage in its folder.

    Args:
        job: of `stages`.
        kind: "sft", "reward" or "ppo".
        config: its flat configuration.
        directory: of `open_directory`.
        options: how it is kept.
        signals: of the command.
        callbacks: called between chunks.
        resume: the command that goes on with it; None: that of the stage.

    Raises:
        As `ppo_jax.runs.loop.run`.
    """
    cache.use()
    about = {"stage": kind, "algorithm": config.get("algorithm", kind), "seed": config.get("seed")}
    record = RunRecord(
        directory.path,
        options,
        **identity_of(config, job.frozen),
        about=about,
        config=config,
        precision=config.get("matmul_precision", "default"),
        resume=commands.command("rlhf", kind) if resume is None else resume,
        next_steps=_next_steps(kind, config, directory.path) if resume is None else {},
        describe=lambda: describe(directory.path, kind, config, options),
    )
    job = precision.apply(config.get("matmul_precision", "default"), job)
    return loop.run(job, record, callbacks=callbacks, signals=signals)


def _next_steps(kind: str, config: dict[str, Any], path: Path) -> dict[str, str]:
    """The commands that may follow a finished stage, by name."""
    model, longer = path / "model", 2 * int(config["updates"])
    write = commands.command("rlhf", "generate", "--model", model, "--max-new-tokens", 32)
    return {
        **({} if kind == "reward" else {"generate": write}),
        **({"evaluate": commands.command("rlhf", "evaluate", path)} if kind == "ppo" else {}),
        "continue": commands.command("rlhf", kind, "--resume", path, "--updates", longer),
    }


def open_directory(kind: str, options: RunOptions, config: dict[str, Any]) -> RunDirectory:
    """The folder of a stage, locked, with config.json in it.

    Raises:
        ConfigError: it holds a run already, or something else, or cannot be written to.
    """
    # What is missing, or cannot be signed, is refused before an earlier run is deleted.
    trackers.require(options.trackers)
    trust.sign(_content(kind, config, options))
    return StageDirectory.opened(
        options, f"rlhf_{kind}", lambda path: describe(path, kind, config, options)
    )


def describe(path: Path, kind: str, config: dict[str, Any], options: RunOptions) -> None:
    """config.json: every value, and each session that went on with it."""
    write_description(path, _content(kind, config, options), config.get("matmul_precision"))


def _content(kind: str, config: dict[str, Any], options: RunOptions) -> dict[str, Any]:
    kept = {name: value for name, value in options.kept().items() if name != "trust"}
    return {"stage": kind, "config": config, "run": shown(kept)}


def identity_of(config: dict[str, Any], frozen: PyTree) -> dict[str, Any]:
    """What the checkpoints of a stage share: `identity`, and its `defaults` for older ones.

    Args:
        config: flat configuration.
        frozen: arrays that the stage learns from.
    """
    identity = YOUNGER | {k: v for k, v in config.items() if k != "updates"}
    identity["frozen"] = digest(frozen)
    # Checkpoints from before say "given", a digest of sums that differs between devices.
    defaults = YOUNGER | {"frozen": identity["frozen"]}
    return {"identity": identity, "defaults": defaults, "older": ("given",)}


def checkpoints_of(path: Path, config: dict[str, Any], frozen: PyTree) -> Checkpoints:
    """The checkpoints of a stage.

    Args:
        path: its folder.
        config: flat configuration.
        frozen: arrays that it learns from.
    """
    path = path.absolute()
    return Checkpoints(path / "checkpoints", **identity_of(config, frozen), folder=path)


def digest(frozen: PyTree) -> str:
    """The bytes of all arrays that a stage learns from, in a few letters."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(frozen):
        array = np.ascontiguousarray(np.asarray(leaf))
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()[:16]


def flat(config: Any) -> dict[str, Any]:
    """The values of a configuration in JSON's types; infinity is the string "inf"."""
    values = config if isinstance(config, dict) else dataclasses.asdict(config)
    return {name: to_json(value) for name, value in values.items()}


def read_stage(run_dir: Path, given: Given = NOTHING) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(kind, configuration, options of the run) of a stage's folder.

    Args:
        run_dir: the folder.
        given: names of code that the person gives, too, and whether the folder is trusted.

    Raises:
        ConfigError: it is none, its config.json is damaged, or it names code to import and is not
            the user's own.
    """
    path = run_dir / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"{run_dir} is not a run of ppo_jax.rlhf: no config.json")
    try:
        content = json.loads(files.read_text(path))
        found = content["stage"], dict(content["config"]), dict(content.get("run") or {})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not the config.json of a run of ppo_jax.rlhf") from error
    trust.check(content, given.named, given.trust, path, callbacks=True)
    check_digest(path, content, given)
    plain(found[2], path)
    return found
