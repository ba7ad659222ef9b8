"""Loading the agent of a run folder."""

from pathlib import Path
from typing import Any

import jax

from ppo_jax.config import CODE, ConfigError, TrainConfig, references
from ppo_jax.runs import manifest
from ppo_jax.runs.folder import checkpoints_of, read_config
from ppo_jax.runs.trust import Given
from ppo_jax.train import Program, build
from ppo_jax.types import TrainState


def load(
    run_dir: Path,
    checkpoint: str = "latest",
    *,
    trust: bool = False,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
    followed: frozenset[str] = frozenset(),
) -> tuple[TrainConfig, Program, TrainState]:
    """Load the agent of a run.

    Args:
        run_dir: folder of the run.
        checkpoint: "latest", "best", or the number of an update.
        trust: whether to import any code that the run names; for runs of this user, that is always
            allowed.
        env, policy, algorithm: names of code in the run that may be imported, or objects that
            replace what the run names.
        followed: further names of code that may be imported.

    Raises:
        ConfigError, CheckpointError: the folder is not a run, it names code and was not signed by
            this user, or it has no valid checkpoint.
    """
    given = Given(env, policy, algorithm, trust, followed)
    config = read_config(run_dir, given)
    manifest.look(run_dir)
    program = build_again(config, given)
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
            f"no checkpoint {checkpoint!r} in {run_dir}; available: latest, best, {known}"
        )
    return config, program, checkpoints.restore(shapes, step)[1]


def build_again(config: TrainConfig, given: Given) -> Program:
    """Build the program of a stored configuration, with the objects that the user gave.

    Args:
        config: configuration of the run.
        given: names, which must be those in the run, and objects. Objects may replace the run's own
            environment or network, but not its algorithm.

    Raises:
        ConfigError: the run has a different part of that name, or only a built-in one.
    """
    objects = {}
    for name in CODE:
        part, kept = getattr(given, name), getattr(config, name)
        if part is None or references.is_text(str(kept)) or references.name_of(part) == kept:
            continue
        if isinstance(part, str) or name == "algorithm" or kept is None:
            raise ConfigError(
                f"{name} is {references.name_of(part)}, but the run has {kept}; omit this argument"
            )
        objects[name] = part
    return build(config, **objects)
