"""TRL's GRPOTrainer with the start, the problems and the rewards of a finished run of ppo_jax."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import rlhf
from ppo_jax.cli.language import restored
from ppo_jax.cli.reason import plan_of
from ppo_jax.cli.rlhf import KINDS
from ppo_jax.config.schedules import Schedule
from ppo_jax.rlhf.folder import checkpoints_of, read_stage
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.reasoning import measure, start
from ppo_jax.rlhf.reasoning.agents import take
from ppo_jax.rlhf.reasoning.optimise import Plan, first_state, held_out
from ppo_jax.rlhf.reasoning.session import FINE_TUNING
from ppo_jax.rlhf.stages import Language, write_model
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.rlhf.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[2]
# Options of updates and rollouts that both contestants have.
SHARED = (
    "updates", "num_prompts", "group_size", "minibatches", "epochs", "temperature", "kl_coef",
    "clip_eps", "learning_rate", "anneal", "max_grad_norm", "adam_eps",
)  # fmt: skip


def run(finished: Path, folder: Path, environment: Path | None) -> dict[str, Any]:
    """Train TRL, or read what an earlier call measured.

    Args:
        finished: folder of a finished run of grpo.
        folder: folder of TRL's files.
        environment: virtual environment of TRL; None for one in the user's cache.

    Returns:
        The columns of a row of reasoning.csv.

    Raises:
        SystemExit: TRL could not be installed, or its process failed.
    """
    _, config, _ = read_stage(finished)
    plan = plan_of(restored(config, KINDS["reason"]))
    before = _written(folder)
    _prepare(plan, finished, config, folder)
    if not (folder / "measured.json").exists() or before != _written(folder):
        words = [
            rlhf.python(environment),
            "-m",
            "benchmarks.language.trl_grpo",
            str(folder / "settings.json"),
        ]
        own = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subprocess.run(words, cwd=ROOT, env=own, check=False).returncode:
            raise SystemExit("the process of TRL failed; its message is above")
    return _row(plan, folder)


def _written(folder: Path) -> list[bytes]:
    """What TRL is given: a measurement with another start or other problems is made again."""
    names = ("settings.json", "prompts.json", "start/model.safetensors")
    return [(folder / n).read_bytes() for n in names if (folder / n).exists()]


def _prepare(plan: Plan, finished: Path, config: dict[str, Any], folder: Path) -> None:
    """Write the start of the first seed, all problems in their order, and the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    params = _started(plan, finished)
    language = Language(CharTokenizer(plan.task.vocabulary))
    (folder / "start").mkdir(exist_ok=True)
    write_model(folder / "start", plan.decoder, params, language)
    key = first_state(plan, plan.reason.seed, params, {}).rollout.data_key
    problems = jax.jit(lambda update: plan.problems(key, update))
    rows = [np.asarray(problems(update)) for update in range(plan.config.updates)]
    # Without the token that begins a text, which the tokenizer of the folder adds.
    rows = np.concatenate(rows)
    texts = [tokens.decode(plan.task.vocabulary, row) for row in rows]
    (folder / "prompts.json").write_text(json.dumps(texts))
    settings = {name: config[name] for name in SHARED} | {"first_prompt": rows[0].tolist()}
    settings |= {"response_length": plan.task.response_length, "seed": plan.reason.seed}
    settings |= schedule_of(plan.hyper.learning_rate)
    (folder / "settings.json").write_text(json.dumps(settings))


def schedule_of(rate: float | Schedule) -> dict[str, Any]:
    """The learning rate and the fraction of its warm-up.

    Raises:
        SystemExit: it is a schedule that TRL's trainer does not have in the same form.
    """
    if not isinstance(rate, Schedule):
        return {"learning_rate": rate, "warmup": 0.0}
    if rate.kind != "linear" or rate.parameters["end"] != 0:
        raise SystemExit(f"--learning-rate is {rate}; TRL decays it linearly to 0")
    start, warmup = rate.parameters["start"], rate.parameters["warmup"]
    return {"learning_rate": start, "warmup": warmup, "anneal": True}


def _started(plan: Plan, finished: Path) -> Any:
    """Parameters of the first seed after the fine-tuning."""
    job = start.fine_tuning(plan.task, plan.decoder, plan.reason)
    _, config, _ = read_stage(finished / FINE_TUNING)
    _, state = checkpoints_of(finished / FINE_TUNING, config, job.frozen).restore(job.shapes)
    return take(state.train.learner.params, 0)


def _row(plan: Plan, folder: Path) -> dict[str, Any]:
    """The measurements of TRL's model on the held-out problems of the run."""
    measured = json.loads((folder / "measured.json").read_text())
    held = held_out(plan)
    heat = plan.config.temperature
    found = [
        measure.measured(held, load_model(folder / name)[1], heat) for name in ("start", "model")
    ]
    responses = plan.config.num_prompts * plan.config.group_size
    return {
        "seed": plan.reason.seed,
        "agents": 1,
        "start_pass_at_1": found[0]["pass_at_1"],
        "start_pass_at_k": found[0]["pass_at_k"],
        **{name: found[1][name] for name in ("pass_at_1", "pass_at_k", "length")},
        "updates": plan.config.updates,
        "responses": plan.config.updates * responses,
        "train_seconds": round(measured["train_seconds"], 2),
        "tokens_per_second": round(measured["tokens_per_second"]),
        "versions": measured["versions"],
    }
