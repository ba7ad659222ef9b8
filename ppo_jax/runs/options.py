"""How a run is kept, and when it ends. None of it changes what an update computes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError
from ppo_jax.config.options import option
from ppo_jax.runs.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class KeepOptions:
    """What every run has besides training."""

    run_dir: Path | None = option(None, "folder of the run; None: a new folder in runs/")
    resume: Path | None = option(None, "folder of a run to continue")
    overwrite: bool = option(False, "replace an existing run")
    log_every: int = option(
        1, "number of updates per line of metrics.jsonl, which is the mean over them", low=1
    )
    checkpoint_seconds: float = option(30.0, "seconds between checkpoints", low=0)
    eval_every: int | None = option(
        None, "number of updates between evaluations during training; None: none", low=1
    )
    stop_at: float | None = option(
        None,
        "end the run when its score reaches this: the evaluation's where --eval-every is given, "
        "else the mean of the updates since the last look",
    )
    callback: tuple[str, ...] = option(
        (), "functions to call between chunks, each as module:name; one that returns true ends "
        "the run"
    )  # fmt: skip
    debug_nans: bool = option(
        False, "after a number that is not finite, make the update again and name the origin"
    )
    tensorboard: bool = option(False, "write TensorBoard events too")
    wandb: bool = option(False, "log to Weights & Biases too")
    trackio: bool = option(False, "log to trackio too, which keeps runs on this machine")

    @property
    def trackers(self) -> list[str]:
        """The trackers that are asked for."""
        return [name for name in TRACKERS if getattr(self, name)]

    def callbacks(self) -> list[Callable[..., Any]]:
        """The functions that `callback` names.

        Raises:
            ConfigError: one cannot be imported, or is no function.
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
        """Those that a resumed run goes on with unless it is given others."""
        where = ("run_dir", "resume", "overwrite")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in where}


@dataclasses.dataclass(frozen=True)
class RunOptions(KeepOptions):
    """What a training run has besides training. None of it but `init_from` changes what an update
    computes; `stop_at` and callbacks decide when the run ends."""

    eval_episodes: int = option(128, "number of greedy episodes of an evaluation", low=0)
    env_timeout: float | None = option(
        None, "seconds that a step or a reset of one environment on the host may take; None: 600",
        low=0, open_low=True,
    )  # fmt: skip
    env_restarts: int = option(
        0, "number of environments on the host to replace after they raised, ended or hung, in "
        "place of ending the run", low=0,
    )  # fmt: skip
    devices: str = option(
        "1", "number of devices that share the agent's environments and minibatches, or all"
    )
    init_from: Path | None = option(
        None, "folder of a run whose parameters and statistics this one starts from"
    )
