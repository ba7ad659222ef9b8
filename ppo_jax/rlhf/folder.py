"""The run folder of a stage of language-model training, and running the stage in it."""

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
from ppo_jax.config import ConfigError, commands
from ppo_jax.config.options import to_json
from ppo_jax.config.rlhf import ALGORITHMS, OLDER
from ppo_jax.runs import cache, files, loop, manifest, trackers, trust
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

# The stages of a demo or of `reason` that have a folder of their own.
PARTS = ("sft", "reward", "ppo", "fine_tuning")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MODEL_FILES = {
    manifest.NAME, "config.json", "model.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "reward.json", "adapter_config.json", "adapter_model.safetensors",
}  # fmt: skip
# Options that did not exist when older runs were made, and the values that those runs used.
YOUNGER: dict[str, Any] = {
    "matmul_precision": "default",
    "param_dtype": "float32",
    "assistant_only_loss": False,
    "chat_template_kwargs": [],
    "length_buckets": 1,
    "weight_decay": 0.0,
    "attention": "plain",
    "lora_rank": 0,
    "lora_alpha": 16.0,
    "lora_targets": ["q", "v"],
    "lora_critic": False,
    "adam_reset": False,
    "length_penalty": 0.0,
    "length_penalty_start": 0.8,
    "mask_truncated": False,
    "max_draws": 4,
    "stale": False,
    **dict.fromkeys(
        (
            "advantage_scale",
            "aggregation",
            "clip_eps_high",
            "dual_clip",
            "dynamic_sampling",
            "entropy_top_fraction",
            "importance_cap",
            "objective",
            "ratio",
        )
    ),
    **OLDER,
}
# Options that a checkpoint does not depend on: the horizon of the run, and how it is evaluated. The
# split into training and held-out data is part of the digest of the training data.
FREE = ("updates", "anneal_updates", "eval_data", "eval_fraction", "eval_responses")
# Parts of the identity of older checkpoints that are ignored: a digest of sums, which differs
# between devices and is replaced by "frozen", and an option that is now in FREE.
IGNORED = ("given", "validation_fraction")


class StageDirectory(RunDirectory):
    """The folder of a stage; the folder of a demo contains one for each of its stages."""

    contents = (
        *RunDirectory.contents,
        "samples.jsonl",
        "between_stages.json",
        "model",
        "adapter",
        "results.csv",
        "reasoning.png",
        *PARTS,
    )
    kind, format = "run of ppo_jax.rlhf", STAGE_FORMAT

    @classmethod
    def is_older(cls, content: dict[str, Any]) -> bool:
        """Whether config.json was written by an earlier version, which did not store the kind."""
        return isinstance(content.get("stage"), str) and isinstance(content.get("config"), dict)

    def clear(self) -> None:
        """Delete the files of the stage, its model, and the stages of a demo; config.json last."""
        for part in PARTS:
            if self.is_one(self.path / part):
                with StageDirectory(self.path / part) as inner:
                    inner.clear()
                files.delete(self.path / part / ".lock")
                files.remove_empty(self.path / part)
        _clear_model(self.path / "model")
        _clear_model(self.path / "adapter")
        super().clear()


def _clear_model(folder: Path) -> None:
    """Delete a model that a stage wrote: the files in its manifest and those with names of model
    files, because earlier versions wrote no manifest."""
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
        job: the stage, made by a function of `stages`.
        kind: name of the stage, "sft", "reward" or "ppo".
        config: flat configuration of the stage.
        directory: the locked folder from `open_directory`.
        options: options of the run: checkpoints, logging and samples.
        signals: signal handlers of the command.
        callbacks: functions called between chunks of updates.
        resume: the command that resumes the run, as printed; None for the command of the stage.

    Returns:
        The last state, the summary and the exit code.

    Raises:
        Exception: any exception of `ppo_jax.runs.loop.run`.
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
    longer = 2 * int(config["updates"])
    length = config.get("max_new_tokens", 32)  # that of the responses in training, if it had any
    write = commands.command("rlhf", "generate", path, "--max-new-tokens", length)
    evaluate = commands.command("rlhf", "evaluate", path)
    further = ("--updates", longer, "--anneal-updates", longer)
    return {
        **({} if kind == "reward" else {"generate": write}),
        **({} if kind == "reason" else {"evaluate": evaluate}),
        "plot": commands.command("plot", path),
        "continue": commands.command("rlhf", kind, "--resume", path, *further),
    }


def open_directory(kind: str, options: RunOptions, config: dict[str, Any]) -> RunDirectory:
    """The folder of a stage, locked, with config.json in it.

    Args:
        kind: name of the stage, "sft", "reward", "ppo" or "demo".
        options: options of the run, among them the path of the folder.
        config: flat configuration of the stage.

    Raises:
        ConfigError: the folder already holds a run or other files, or cannot be written to.
    """
    # A missing tracker or an unsignable configuration is refused before an earlier run is deleted.
    trackers.require(options.trackers)
    trust.sign(_content(kind, config, options))
    return StageDirectory.opened(
        options, f"rlhf_{kind}", lambda path: describe(path, kind, config, options)
    )


def describe(path: Path, kind: str, config: dict[str, Any], options: RunOptions) -> None:
    """Write config.json, with all values and a record of each session that trained the stage."""
    write_description(path, _content(kind, config, options), config.get("matmul_precision"))


def _content(kind: str, config: dict[str, Any], options: RunOptions) -> dict[str, Any]:
    kept = {name: value for name, value in options.kept().items() if name != "trust"}
    return {"stage": kind, "config": config, "run": shown(kept)}


def identity_of(config: dict[str, Any], frozen: PyTree) -> dict[str, Any]:
    """The values that must agree between a checkpoint and the run that restores it.

    Args:
        config: flat configuration of the stage.
        frozen: arrays that the stage reads and never changes.

    Returns:
        Keyword arguments of `Checkpoints`: `identity`; `defaults`, used for values that older
        checkpoints do not have; `older`, names in older checkpoints that are ignored.
    """
    identity = YOUNGER | {k: v for k, v in config.items() if k not in FREE}
    identity["frozen"] = digest(frozen)
    defaults = YOUNGER | {"frozen": identity["frozen"]}
    return {"identity": identity, "defaults": defaults, "older": IGNORED}


def checkpoints_of(path: Path, config: dict[str, Any], frozen: PyTree) -> Checkpoints:
    """The checkpoints of a stage.

    Args:
        path: folder of the stage.
        config: flat configuration of the stage.
        frozen: arrays that the stage reads and never changes.
    """
    path = path.absolute()
    return Checkpoints(path / "checkpoints", **identity_of(config, frozen), folder=path)


def digest(frozen: PyTree) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the names and bytes of all arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(frozen):
        array = np.ascontiguousarray(np.asarray(leaf))
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()[:16]


def flat(config: Any) -> dict[str, Any]:
    """The values of a configuration as JSON types; infinity becomes the string "inf"."""
    values = config if isinstance(config, dict) else dataclasses.asdict(config)
    return {name: to_json(value) for name, value in values.items()}


def read_stage(run_dir: Path, given: Given = NOTHING) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read config.json of a stage's folder.

    Args:
        run_dir: path of the folder.
        given: names of code on the command line, and whether the folder is trusted.

    Returns:
        (kind of the stage, its configuration, its options).

    Raises:
        ConfigError: the folder is not one of a stage, its config.json is damaged, or it names code
            to import and was not written by this user.
    """
    path = run_dir / "config.json"
    if not os.path.lexists(path):
        raise ConfigError(f"{run_dir} is not a run of ppo_jax.rlhf: no config.json")
    try:
        content = json.loads(files.read_text(path))
        config = YOUNGER | dict(content["config"])
        found = content["stage"], config, dict(content.get("run") or {})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not the config.json of a run of ppo_jax.rlhf") from error
    # A stage chooses its algorithm from these names and imports no module of such a name.
    named = given.named | set(ALGORITHMS)
    trust.check(content, named, given.trust, path, callbacks=True)
    check_digest(path, content, given)
    plain(found[2], path)
    return found
