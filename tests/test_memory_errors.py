"""Too little memory, too large arrays, and numbers beyond float32: an error in one line each."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import ppo_jax
from ppo_jax import config as configs
from ppo_jax.cli import errors
from ppo_jax.cli import sweep as sweep_command
from ppo_jax.cli import train as train_command
from ppo_jax.config import ConfigError, options
from ppo_jax.config.schedules import Schedule, adaptive, constant, linear
from ppo_jax.experiment import job_of
from ppo_jax.rlhf import supervised
from ppo_jax.runs import memory
from ppo_jax.train import build


def refusal(capsys, main, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--hidden", 200000, 200000), "the state 960.0 GB"),
        (
            ("--num-envs", 10**6, "--num-steps", 1024, "--total-timesteps", "1e12"),
            "a rollout of 1000000 x 1024 steps 26.6 GB",
        ),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch, words, says
):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    common = ["--preset", "none", "--run-dir", tmp_path / "a"]
    line = refusal(capsys, train_command.main, *words, *common)
    assert "out of memory: ppo on CartPole-v1, seed 0 needs at least " in line and says in line
    assert "are available; halve --num-envs or --num-steps" in line
    assert not (tmp_path / "a").exists()


def test_a_sweep_is_refused_likewise(tmp_path, capsys):
    words = (
        "--preset",
        "none",
        "--seeds",
        2,
        "--run-dir",
        tmp_path / "a",
        "--hidden",
        200000,
        200000,
    )
    assert "out of memory" in refusal(capsys, sweep_command.main, *words)
    assert not (tmp_path / "a").exists()


def test_memory_is_looked_up_where_it_is(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  100 kB\nSwapFree: 20 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUPS", ())
    assert memory.available() == 120 * 1024
    files = [tmp_path / name for name in ("max", "current", "stat")]
    for file, text in zip(files, ("50000", "30000", "inactive_file 4000\nanon 7"), strict=True):
        file.write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", (tuple(map(str, files)),))
    assert memory.available() == 24_000
    files[0].write_text("max\n")
    assert memory.available() == 120 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nothing")
    assert memory.available() is None


def test_what_just_fits_is_not_refused(monkeypatch):
    config = configs.make(preset="none")
    job = job_of(config, build(config))
    needed = memory.bytes_of(job.shapes) + sum(job.needs.values())
    monkeypatch.setattr(memory, "available", lambda: needed // jax.local_device_count())
    memory.check(job)
    monkeypatch.setattr(memory, "available", lambda: needed // jax.local_device_count() - 1)
    with pytest.raises(ConfigError, match="out of memory"):
        memory.check(job)


def test_an_exhausted_device_is_one_line(capsys):
    def command():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 4000000 bytes"
        )

    with pytest.raises(SystemExit) as stop:
        errors.exit_without_device(command)
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert (
        err.startswith("error: out of memory while 4.0 MB were requested") and err.count("\n") == 1
    )


# --- ranges ---------------------------------------------------------------------------------


def label(value):
    """The name of a case, which must be the same in all processes; a function's repr is not."""
    return "a function" if callable(value) and not isinstance(value, Schedule) else str(value)


@pytest.mark.parametrize(
    "rate",
    [0, 0.0, -1e-3, math.nan, math.inf, 1e39, 1e-46, 1e-40, constant(0), linear(0, 0),
     linear(3e-4, 1e39), linear(-1e-3, 1e-3), adaptive(0.0, low=0.0),
     constant(1e-50), lambda p: -p, lambda p: 1e39],
    ids=label,
)  # fmt: skip
def test_a_learning_rate_out_of_range_is_refused(rate):
    with pytest.raises(ConfigError, match=r"learning_rate is .* (must|gives)"):
        configs.make(preset="none", learning_rate=rate)
    if not callable(rate):
        field = {f.name: f for f in dataclasses.fields(supervised.Config)}
        with pytest.raises(ConfigError, match="learning_rate is"):
            options.check(field["learning_rate"], rate)


@pytest.mark.parametrize(
    "rate",
    [3e38, 1e-37, linear(3e-4, 0), linear(0, 3e-4), constant(3e-4, warmup=0.1), lambda p: 1e-3 * p],
    ids=label,
)
def test_a_learning_rate_may_fall_to_0_and_rise_from_it(rate):
    assert configs.make(preset="none", learning_rate=rate).hyper.learning_rate == rate


def test_every_option_is_bounded_by_its_type():
    """Floats are limited by float32 and sizes by int32, for all algorithms."""
    for algorithm in ("ppo", "ppo_kl", "a2c", "trpo", "reinforce", "actor_critic"):
        for name, field in configs.fields(algorithm).items():
            kind = options.kind(field)
            wrong = {float: 1e39, int: 2**31 if name != "seed" else 2**32}.get(kind.base)
            if wrong is None or name == "total_timesteps":
                continue
            value = (wrong,) if kind.several else wrong
            with pytest.raises(ConfigError, match=f"{name} is"):
                options.check(field, value)


@pytest.mark.parametrize("hidden", [(10**10,), (2**31,), (10**30,)])
def test_a_width_beyond_every_array_is_refused(hidden):
    with pytest.raises(ConfigError, match=r"hidden is .* <= 2147483647"):
        configs.make(preset="none", hidden=hidden)


def test_python_has_the_same_line_as_the_command(tmp_path):
    with pytest.raises(ConfigError, match="out of memory"):
        ppo_jax.run(configs.make(preset="none", hidden=(200_000, 200_000)), tmp_path / "a")
    assert np.array_equal(list(tmp_path.iterdir()), [])


def test_a_rollout_has_no_more_rows_than_there_are_indices():
    with pytest.raises(ConfigError, match="= 4294967296 samples; there may be at most 2147483647"):
        configs.make(preset="none", num_envs=2**16, num_steps=2**16, total_timesteps=2**33)
