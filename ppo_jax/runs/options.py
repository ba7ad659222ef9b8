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
