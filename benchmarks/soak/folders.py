"""The kinds of folders that are damaged, with functions that make and read them."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.soak.outcome import digest

Reader = Callable[[Path], Any]
TEXT = "the quick brown fox jumps over the lazy dog"
# Entries of summary.json that differ between two identical sessions.
TIMES = {"compile_seconds", "sessions"}


class Kind(NamedTuple):
    """A kind of folder that is damaged.

    Attributes:
        name: name of the kind.
        make: function that writes an undamaged folder at a path, with commands of the package.
        readers: functions of the path by name; the digests of their results are compared. Readers
            that write into the folder come last.
    """

    name: str
    make: Callable[[Path], None]
    readers: dict[str, Reader]


def command(main: Callable[..., Any], *words: object) -> None:
    """Run a command in this process.

    Args:
        main: function of the command, which takes the list of arguments.
        *words: arguments of the command.

    Raises:
        Refused: the exit code is not 0; the message contains the output of the command.
        Warned: the command succeeded after a warning.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        try:
            main([str(w) for w in words])
        except SystemExit as end:
            if end.code:
                raise Refused(f"exit code {end.code}: {printed.getvalue()}") from end
    if "warning:" in printed.getvalue():
        raise Warned(printed.getvalue())


class Refused(RuntimeError):
    """A command refused its input with one line."""


class Warned(RuntimeError):
    """A command succeeded after a warning."""


# --- runs -----------------------------------------------------------------------------------


def make_run(path: Path) -> None:
    """Make a finished run with two checkpoints."""
    from ppo_jax.cli.train import main

    flags = ["--preset", "none", "--num-envs", 4, "--num-steps", 16, "--hidden", 8]
    flags += ["--eval-episodes", 0, "--checkpoint-seconds", 0, "--anneal-timesteps", 2560]
    command(main, *flags, "--total-timesteps", 640, "--run-dir", path)
    command(main, "--resume", path, "--total-timesteps", 1280)


def read_agent(path: Path) -> Any:
    """Configuration, options and state of a run."""
    from ppo_jax import config as configs
    from ppo_jax.runs.folder import read_run_options
    from ppo_jax.runs.restore import load

    config, _, state = load(path)
    return configs.to_json(config), read_run_options(path), state


def read_rows(path: Path) -> Any:
    """The rows of metrics.jsonl, as `ppo-jax plot` reads them."""
    from ppo_jax.runs import manifest
    from ppo_jax.runs.metrics_log import read_metrics

    manifest.look(path)
    return list(read_metrics(path / "metrics.jsonl"))


def resume_run(path: Path) -> Any:
    """Resume a finished run; returns its summary, rows and state."""
    from ppo_jax.cli.train import main

    command(main, "--resume", path)
    return read_summary(path), read_rows(path), read_agent(path)


def read_summary(path: Path) -> Any:
    """summary.json without entries that differ between sessions."""
    summary = json.loads((path / "summary.json").read_text())
    return {name: x for name, x in summary.items() if name not in TIMES}


# --- sweeps ---------------------------------------------------------------------------------


def make_sweep(path: Path) -> None:
    """Make a finished sweep of two configurations and two seeds that keeps the best agents."""
    from ppo_jax.cli.sweep import main

    flags = ["--preset", "none", "--num-envs", 4, "--num-steps", 16, "--total-timesteps", 320]
    flags += ["--hidden", 8, "--vary", "learning_rate=1e-3,1e-2", "--seeds", 2]
    command(main, *flags, "--agents-per-device", 2, "--eval-episodes", 2, "--run-dir", path)


def read_sweep(path: Path) -> Any:
    """The specification of a sweep and its results."""
    from ppo_jax.sweep.store import Store, read_sessions, read_spec

    spec, options = read_spec(path)
    found = Store(path, spec).results()
    numbers = [{**r.metrics, "score": r.score, "diverged": r.diverged} for r in found]
    return spec.to_json(), options, numbers, len(read_sessions(path))


def read_kept(path: Path) -> Any:
    """The agents that a sweep kept."""
    return [read_agent(p) for p in sorted((path / "agents").iterdir())]


def resume_sweep(path: Path) -> Any:
    """Resume a finished sweep; returns its tables and its summary."""
    from ppo_jax.cli.sweep import main

    command(main, "--resume", path)
    tables = [(path / name).read_text() for name in ("results.csv", "agents.csv", "table.csv")]
    summary = json.loads((path / "summary.json").read_text())
    # A resumed sweep makes deleted files again, which takes time, so times are not compared.
    return tables, {name: x for name, x in summary.items() if name != "last_session"}


# --- language models ------------------------------------------------------------------------


def make_model(path: Path) -> None:
    """Make a small model with its tokenizer."""
    from ppo_jax.rlhf.decoder import Decoder, small
    from ppo_jax.rlhf.hf_io import save_model
    from ppo_jax.rlhf.tokenizer import CharTokenizer

    tokenizer = CharTokenizer(TEXT)
    config = small(
        tokenizer.vocab_size, 16, 1, 2, num_kv_heads=1, max_positions=64,
        eos_ids=(tokenizer.eos_id,),
    )  # fmt: skip
    decoder = Decoder(config)
    path.mkdir(parents=True)
    save_model(path, decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(path)


def make_stage(path: Path) -> None:
    """Make a finished run of fine-tuning, whose folder contains a model."""
    from ppo_jax.cli.rlhf import main

    given = path.with_name(f"{path.name}_given")
    shutil.rmtree(given, ignore_errors=True)
    make_model(given / "model")
    (given / "texts.txt").write_text("\n".join(TEXT.split() * 4))
    words = ["sft", "--model", given / "model", "--data", given / "texts.txt", "--updates", 8]
    command(
        main, *words, "--batch-size", 8, "--eval-fraction", 0, "--run-dir", path
    )  # fmt: skip


def read_model(path: Path) -> Any:
    """Config and weights of a model, and the ids that its tokenizer encodes a text to."""
    from ppo_jax.rlhf.hf_io import load_model
    from ppo_jax.rlhf.tokenizer import load_tokenizer

    decoder, params = load_model(path)
    tokenizer = load_tokenizer(path)
    return repr(decoder.config), params, tokenizer.encode(TEXT), repr(tokenizer.eos_id)


def read_model_of_run(path: Path) -> Any:
    """The model in the folder of a stage."""
    return read_model(path / "model")


def read_stage(path: Path) -> Any:
    """The kind, configuration and options of a stage."""
    from ppo_jax.rlhf.folder import read_stage

    return read_stage(path)


def resume_stage(path: Path) -> Any:
    """Resume a finished stage; returns its summary, rows and model."""
    from ppo_jax.cli.rlhf import main

    command(main, "sft", "--resume", path)
    return read_summary(path), read_rows(path), read_model_of_run(path)


KINDS = (
    Kind("run", make_run, {"load": read_agent, "rows": read_rows, "resume": resume_run}),
    Kind("sweep", make_sweep, {"read": read_sweep, "agents": read_kept, "resume": resume_sweep}),
    Kind("model", make_model, {"load": read_model}),
    Kind(
        "stage",
        make_stage,
        {
            "read": read_stage, "rows": read_rows, "model": read_model_of_run,
            "resume": resume_stage,
        },
    ),
)  # fmt: skip


def digests(kind: Kind, path: Path) -> dict[str, str]:
    """Digests of the results of all readers of a folder."""
    return {name: digest(_plain(reader(path))) for name, reader in kind.readers.items()}


def _plain(value: Any) -> Any:
    """A value with numpy scalars replaced by arrays."""
    return np.asarray(value) if isinstance(value, np.generic) else value
