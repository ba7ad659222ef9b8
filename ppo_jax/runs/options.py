"""How a run is kept, and when it ends. None of these options changes what an update computes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError
from ppo_jax.config.options import option
from ppo_jax.runs.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class KeepOptions:
    """Options of every run besides those of training."""

    run_dir: Path | None = option(None, "folder of the run; None: a new folder in runs/")
    resume: Path | None = option(None, "folder of a run to continue")
    overwrite: bool = option(False, "replace an existing run")
    log_every: int = option(
        1, "number of updates per line of metrics.jsonl, which holds their mean", low=1
    )
    checkpoint_seconds: float = option(30.0, "number of seconds between checkpoints", low=0)
    eval_every: int | None = option(
        None, "number of updates between evaluations during training; None: no evaluations", low=1
    )
    stop_at: float | None = option(
        None,
        "score at which the run ends: the return of an evaluation if --eval-every is given, "
        "otherwise the mean score of the latest updates; None: the run does not end early",
    )
    callback: tuple[str, ...] = option(
        (),
        "functions to call between updates, each as MODULE:NAME; a function that returns true ends "
        "the run",
    )
    debug_nans: bool = option(
        False, "repeat an update that produced a number that is not finite, and name its origin"
    )
    tensorboard: bool = option(False, "also write event files for TensorBoard")
    wandb: bool = option(False, "also log to Weights & Biases")
    trackio: bool = option(False, "also log to trackio, which stores runs on this machine")

    @property
    def trackers(self) -> list[str]:
        """The trackers that the run logs to."""
        return [name for name in TRACKERS if getattr(self, name)]

    def callbacks(self) -> list[Callable[..., Any]]:
        """The functions that `callback` names.

        Raises:
            ConfigError: a function cannot be imported, or is not a function.
        """
        if not self.callback:
            return []
        from ppo_jax.config import references

        found = [references.load(name, "callback") for name in self.callback]
        for name, function in zip(self.callback, found, strict=True):
            if not callable(function):
                raise ConfigError(
                    f"callback {name} is a {type(function).__name__}; it must be a function of "
                    "(progress, state)"
                )
        return found

    def kept(self) -> dict[str, Any]:
        """The options that a resumed run keeps unless it is given others."""
        where = ("run_dir", "resume", "overwrite")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in where}


@dataclasses.dataclass(frozen=True)
class RunOptions(KeepOptions):
    """Options of a training run besides those of training. Only `init_from` changes what an update
    computes; `stop_at` and callbacks decide when the run ends."""

    eval_episodes: int = option(128, "number of greedy episodes of an evaluation", low=0)
    env_timeout: float | None = option(
        None,
        "largest number of seconds that a step or a reset of one Python environment may take; "
        "None: 600",
        low=0,
        open_low=True,
    )
    env_restarts: int = option(
        0,
        "number of Python environments that are replaced after they raise, exit or hang, instead "
        "of ending the run",
        low=0,
    )
    devices: str = option(
        "1", "number of devices that share the environments and minibatches of the agent, or all"
    )
    init_from: Path | None = option(
        None, "folder of a run whose parameters and running statistics are the initial ones"
    )


@dataclasses.dataclass(frozen=True)
class StageOptions(KeepOptions):
    """Options of a stage of a language model besides those of training; none changes an update."""

    checkpoint_seconds: float = option(60.0, "number of seconds between checkpoints", low=0)
    stop_at: float | None = option(
        None,
        "value of an evaluation (--eval-every) at which a run ends: an eval_loss as low (sft), or "
        "an eval_accuracy (reward) or eval_objective (ppo) as high; None: the run does not end "
        "early",
    )
    sample_seconds: float = option(
        20.0, "number of seconds between the samples that are shown", low=0
    )
    samples: int = option(4, "number of responses that are shown at a time", low=0)
    final_model: str = option(
        "best",
        "state whose model is written at the end: the one with the best evaluation during training "
        "(--eval-every), or the last one",
        choices=("best", "last"),
    )
    trust: bool = option(
        False, "allow a folder that is resumed and not your own to name code to import"
    )
