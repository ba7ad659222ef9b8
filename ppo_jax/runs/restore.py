"""The agent of a run directory."""

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
    """The agent of a run.

    Args:
        run_dir: run directory.
        checkpoint: "latest", "best", or the number of an update.
        trust: whether the run may name any code to import. One of the user's own may.
        env, policy, algorithm: names of code that the run names, which may then be imported; or the
            objects themselves, in place of what it names.
        followed: more names of code that may be imported.

    Raises:
        ConfigError, CheckpointError: not a run, one that names code and is not the user's own, or
            nothing whole to restore.
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
            f"no checkpoint {checkpoint!r} in {run_dir}; there are: latest, best, {known}"
        )
    return config, program, checkpoints.restore(shapes, step)[1]


def build_again(config: TrainConfig, given: Given) -> Program:
    """The program of a configuration that was read, with the objects that were given.

    Args:
        config: of the run.
        given: names must be those of the run. Objects take the place of an environment or a network
            of the user's own; an algorithm is the run's.

    Raises:
        ConfigError: the run has another part than was given, or none of the user's own.
    """
    objects = {}
    for name in CODE:
        part, kept = getattr(given, name), getattr(config, name)
        if part is None or references.is_text(str(kept)) or references.name_of(part) == kept:
            continue
        if isinstance(part, str) or name == "algorithm" or kept is None:
            raise ConfigError(
                f"{name} is {references.name_of(part)}, but that of the run is {kept}; leave it out"
            )
        objects[name] = part
    return build(config, **objects)
