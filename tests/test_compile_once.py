"""Programs that run once are compiled with few optimisations, and compute the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ppo_jax.experiment import EMITTERS, compile_once
from ppo_jax.runs.chunk import compiler_options


class Lowered:
    """A program that records its compiler options."""

    def __init__(self, refused=""):
        self.refused, self.tried = refused, []

    def compile(self, options):
        self.tried.append(options)
        if self.refused in options:
            raise jax.errors.JaxRuntimeError(f"No such compile option: {self.refused!r}")
        return options


def test_a_program_that_runs_once_goes_without_xlas_emitters(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    quick = {**compiler_options(), EMITTERS: False}
    assert len(quick) == 2
    assert compile_once(Lowered()) == quick


def test_an_xla_without_the_option_does_without_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    lowered = Lowered(refused=EMITTERS)
    assert compile_once(lowered) == compiler_options() and len(lowered.tried) == 2


def test_what_xla_flags_say_is_not_said_again(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{EMITTERS}=true --xla_backend_optimization_level=2")
    lowered = Lowered()
    assert compile_once(lowered) == {} and len(lowered.tried) == 1


@pytest.mark.slow
def test_first_states_are_the_same_to_the_bit():
    """In a process that compiles as for users; see conftest.py."""
    code = """
import jax, numpy as np
from ppo_jax import config as configs
from ppo_jax.experiment import compile_once
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.train import build
for env in ("CartPole-v1", "Pendulum-v1"):
    init, key = jax.jit(build(configs.make(env=env)).init), jax.random.key(3)
    once, often = compile_once(init.lower(key)), init.lower(key).compile(compiler_options())
    for x, y in zip(jax.tree.leaves(once(key)), jax.tree.leaves(often(key)), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), env
print("same")
"""
    flags = os.environ.get("PPO_JAX_TEST_USER_XLA_FLAGS", "")
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stdout == "same\n", result.stderr[-2000:]
