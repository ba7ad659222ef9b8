"""`ppo-jax rlhf reason`: fine-tuning and reinforcement learning in one folder."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import precision
from ppo_jax.config import ConfigError
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.export import save_folder
from ppo_jax.rlhf.folder import RunOptions, open_directory, run
from ppo_jax.rlhf.reasoning import report, start
from ppo_jax.rlhf.reasoning.agents import take
from ppo_jax.rlhf.reasoning.optimise import Plan, optimisation
from ppo_jax.rlhf.stages import Language, write_model
from ppo_jax.rlhf.tokenizer import CharTokenizer
from ppo_jax.runs import loop, terminal
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.job import Callback, Job
from ppo_jax.runs.signals import Signals
from ppo_jax.types import Params, TrainState

# The folder of the fine-tuning inside that of the run.
FINE_TUNING = "fine_tuning"
# Options of the run that determine the fine-tuning.
OF_START = (
    "task", "difficulty", "hidden_size", "num_layers", "num_heads", "worked_examples",
    "sft_updates", "sft_batch_size", "sft_learning_rate", "start_at", "seed", "seeds",
    "matmul_precision",
)  # fmt: skip


def prepared(plan: Plan, options: RunOptions, config: dict[str, Any]) -> Callable[[], int]:
    """The command, ready to run; problems are drawn, but nothing is trained or written yet.

    Args:
        plan: the task, the model and the options of the run.
        options: options of the run directory.
        config: flat configuration, as it is stored.

    Returns:
        A function that returns the exit code.

    Raises:
        ValueError: options that cannot be combined, or a resumed run that has made more updates.
    """
    callbacks = options.callbacks()
    start.check(plan.reason)
    if options.resume is not None:
        _check_updates(plan, options.resume)
    begin = start.fine_tuning(plan.task, plan.decoder, plan.reason)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), begin.shapes.train.learner.params)
    loop.check(optimisation(plan, blank, _result(plan)), options)
    return lambda: _run(plan, begin, options, config=config, callbacks=callbacks)


def _check_updates(plan: Plan, folder: Path) -> None:
    """Refuse fewer updates than a resumed run has made, before the fine-tuning is restored.

    Raises:
        ConfigError: the message states both numbers.
    """
    made = Checkpoints(folder.absolute() / "checkpoints", {}).latest() or 0
    if made > plan.config.updates:
        raise ConfigError(
            f"--updates is {plan.config.updates:,}, but {folder} has already made {made:,} updates "
            f"of reinforcement learning; give at least {made:,}, or start a new run"
        )


def _run(
    plan: Plan,
    begin: Job,
    options: RunOptions,
    *,
    config: dict[str, Any],
    callbacks: Sequence[Callback],
) -> int:
    with open_directory("reason", options, config) as directory, Signals() as signals:
        path = directory.path
        started = _fine_tune(begin, options, config, path=path, signals=signals)
        if started is None:
            return signals.exit_code
        job = precision.apply(
            plan.reason.matmul_precision, optimisation(plan, started, _result(plan))
        )
        shown = [report.teller(plan), *callbacks]
        result = run(
            job, "reason", config, directory, options=options, signals=signals, callbacks=shown
        )
        if not result.exit_code and job.samples is not None:
            _tell(plan, result.summary, job.samples(result.state, max(1, options.samples)))
            terminal.say(f"the model of the best agent is in {path / 'model'}")
    return signals.exit_code


def _fine_tune(
    begin: Job, options: RunOptions, config: dict[str, Any], *, path: Path, signals: Signals
) -> Params | None:
    """Parameters [S, ...] after the fine-tuning; None if a signal ended it."""
    inner = path / FINE_TUNING
    resumed = (inner / "config.json").exists()
    where: dict[str, Any] = {"resume": inner} if resumed else {"run_dir": inner, "resume": None}
    options = dataclasses.replace(
        start.options_of(options), **{"run_dir": None, "overwrite": False} | where
    )
    mine = {name: config[name] for name in OF_START} | {"updates": begin.updates}
    with open_directory(FINE_TUNING, options, mine) as directory:
        found = run(
            precision.apply(config["matmul_precision"], begin), FINE_TUNING, mine, directory,
            options=options, signals=signals, resume="",
        )  # fmt: skip
    if found.exit_code:
        terminal.say(f"stopped; continue with: ppo-jax rlhf reason --resume {path}")
        return None
    solved = np.asarray(found.state.pass_at_1)
    terminal.say(
        f"after fine-tuning, greedy decoding solves {solved.mean():.1%} of training problems"
        + (f" ({solved.min():.1%} to {solved.max():.1%})" if solved.size > 1 else "")
    )
    return found.state.train.learner.params


def _result(plan: Plan) -> Callable[..., dict[str, Any]]:
    """The function that writes the results into the folder, and returns those of summary.json."""
    language = Language(CharTokenizer(plan.task.vocabulary))

    def result(
        state: TrainState, before: dict[str, Any], after: dict[str, Any], path: Path
    ) -> dict[str, Any]:
        best = int(np.argmax(after["pass_at_1"]))
        params = take(state.learner.params["actor"], best)
        decoder: Decoder = plan.decoder
        save_folder(path / "model", lambda folder: write_model(folder, decoder, params, language))
        report.write_results(path, plan, before, after)
        report.draw(path, plan, before)
        return {
            "configurations": report.configurations(plan, before, after),
            "model_seed": plan.reason.seed + best % plan.reason.seeds,
            "model_point": plan.points[best // plan.reason.seeds],
        }

    return result


def _tell(plan: Plan, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """Print the table and samples."""
    terminal.say(report.table_of(plan, summary["configurations"]))
    table = report.exact_table(summary["configurations"])
    if table is not None:
        terminal.say(table)
    report.print_samples(samples)
