"""The agent of a run directory."""

from pathlib import Path

import jax

from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.runs.folder import checkpoints_of, read_config
from ppo_jax.train import Program, build
from ppo_jax.types import TrainState


def load(run_dir: Path, checkpoint: str = "latest") -> tuple[TrainConfig, Program, TrainState]:
    """The agent of a run.

    Args:
        run_dir: run directory.
        checkpoint: "latest", "best", or the number of an update.

    Raises:
        ConfigError, CheckpointError: not a run, or nothing whole to restore.
    """
    config = read_config(run_dir)
    program = build(config)
    checkpoints = checkpoints_of(run_dir, config)
    shapes = jax.eval_shape(program.init, jax.random.key(0))
    if checkpoint == "latest":
        step = None
    elif checkpoint == "best":
        step = checkpoints.best()
    elif checkpoint.isdigit() and int(checkpoint) in checkpoints.steps():
        step = int(checkpoint)
    else:
        known = ", ".join(map(str, checkpoints.steps())) or "none"
        raise ConfigError(
            f"no checkpoint {checkpoint!r} in {run_dir}; there are: latest, best, {known}"
        )
    return config, program, checkpoints.restore(shapes, step)[1]
