"""An ask/tell loop around `run_sweep` compiles once, with the results of a new process."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

import documents
import probe_envs
from ppo_jax import config as configs
from ppo_jax.sweep import program, run_seeds, run_sweep

PROGRAMS = ("jit(chunk)", "jit(finish)", "jit(init)")


def small(**changes):
    values = {"num_envs": 4, "num_steps": 16, "total_timesteps": 256, "hidden": (8,)}
    return configs.make(preset="none", **values | changes)


@pytest.fixture
def compiled():
    """The names of functions that were compiled, or read from the cache on disk."""
    names = []

    def listen(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(more["fun_name"])

    program.release()
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def assert_same(found, expected):
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


class Sampler:
    """A small sampler with Optuna's interface: random at first, then near the best value so far."""

    def __init__(self, direction):
        assert direction == "maximize"
        self.rng, self.told, self.on_tell = np.random.default_rng(0), [], lambda: None

    def ask(self):
        return self

    def suggest_float(self, name, low, high, log):
        assert log
        if len(self.told) < 2:
            self.latest = float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        else:
            best = max(self.told)[1]
            self.latest = float(np.clip(best * np.exp(self.rng.normal() / 4), low, high))
        return self.latest

    def tell(self, trial, value):
        self.told.append((value, trial.latest))
        self.on_tell()

    @property
    def best_value(self):
        return max(self.told)[0]

    @property
    def best_params(self):
        return {"learning_rate": max(self.told)[1]}


def test_the_loop_of_the_sweeps_page_compiles_once(compiled, monkeypatch, capsys):
    """The documented example, with our sampler instead of Optuna's and shorter training."""
    counts = []

    def create_study(direction):
        study = Sampler(direction)
        study.on_tell = lambda: counts.append(len(compiled))
        return study

    (code,) = (b for b in documents.python_blocks(documents.ROOT / "docs/sweeps.md") if "ask" in b)
    assert len(code.strip().splitlines()) <= 15
    for written, short in (("20_000", "1_024"), ("range(10)", "range(5)"), ("seeds=8", "seeds=2")):
        assert written in code
        code = code.replace(written, short)
    monkeypatch.setitem(sys.modules, "optuna", types.SimpleNamespace(create_study=create_study))
    exec(compile(code, "sweeps.md", "exec"), {})
    assert sorted(n for n in compiled if n in PROGRAMS) == sorted(PROGRAMS)
    assert len(counts) == 10 and {*counts} == {len(compiled)}  # no compilation after the first ask
    assert re.fullmatch(r"[\d.]+ \{'learning_rate': [\d.]+\}\n", capsys.readouterr().out)


def test_batches_of_trials_share_a_width_and_the_bits_are_those_of_a_first_call(compiled):
    """One, three, five and seven trials of four seeds, with different values each time."""

    def ask(trials, first):
        rates = [1e-3 * (k + first) for k in range(trials)]
        seeds = range(first, first + 4)
        return run_sweep(small(), {"learning_rate": rates}, seeds, episodes=2)[1]

    ask(1, 1)
    ready = len(compiled)
    assert sorted(n for n in compiled if n in PROGRAMS) == sorted(PROGRAMS)
    found = [ask(trials, trials) for trials in (3, 5, 7)]
    assert len(compiled) == ready, compiled[ready:]
    program.release()
    jax.clear_caches()
    assert_same(found[-1], ask(7, 7))
    assert compiled.count("jit(chunk)") == 2


def test_numbers_of_agents_lead_to_few_widths_on_cpus():
    widths = [program.even_width(agents, program.CPU_WIDTH, 1) for agents in range(1, 200)]
    assert widths[:9] == [1, 2, 3, 4, 3, 3, 4, 4, 3] and {*widths[9:]} == {4}


@pytest.mark.slow
def test_what_decides_a_program_compiles_again(compiled):
    """A static value, a JAX setting, and back: results never come from another program."""

    def asks():
        first = run_seeds(small(), 2)[1]
        with jax.default_matmul_precision("bfloat16"):
            setting = run_seeds(small(), 2)[1]
        return first, run_seeds(small(num_steps=32), 2)[1], setting, run_seeds(small(), 2)[1]

    first, static, _, again = asks()
    assert compiled.count("jit(chunk)") == 3
    assert_same(again, first)
    assert static["loss"].shape == (2, 2) and first["loss"].shape == (2, 4)
    program.release()
    jax.clear_caches()
    assert_same(run_seeds(small(num_steps=32), 2)[1], static)


class Paid(probe_envs.ConstantReward):
    """The reward is an attribute, which may change, and the object cannot be hashed."""

    __hash__ = None
    amount = 1.0

    def step(self, *arguments):
        obs, state, reward, *rest = super().step(*arguments)
        return obs, state, reward * self.amount, *rest


@dataclasses.dataclass(frozen=True)
class PaidValue:
    """The same as a value type: equal if all fields are equal."""

    amount: float = 1.0

    def __getattr__(self, name):
        return getattr(probe_envs.ConstantReward(), name)

    def step(self, *arguments):
        obs, state, reward, *rest = probe_envs.ConstantReward().step(*arguments)
        return obs, state, reward * self.amount, *rest


def returns(env):
    return np.unique(run_seeds(small(), 2, env=env)[1]["episode_return"]).tolist()


def test_an_environment_that_was_changed_is_traced_again():
    env = Paid()
    assert returns(env) == [1.0]
    object.__setattr__(env, "amount", 3.0)
    assert returns(env) == [3.0]


def test_an_environment_that_is_a_value_is_not(compiled):
    assert returns(PaidValue()) == [1.0]
    ready = len(compiled)
    assert returns(PaidValue()) == [1.0] and len(compiled) == ready
    assert returns(PaidValue(3.0)) == [3.0] and compiled[ready:].count("jit(chunk)") == 1


def test_threads_share_what_is_compiled(compiled):
    expected = run_seeds(small(), 2)[1]
    ready, found = len(compiled), {}

    def train(k):
        found[k] = run_seeds(small(), 2)[1]

    threads = [threading.Thread(target=train, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == ready and len(found) == 3
    for metrics in found.values():
        assert_same(metrics, expected)


def test_few_programs_are_kept_and_jax_frees_them(compiled):
    client = jax.devices()[0].client
    before = len(client.live_executables())
    run_seeds(small(), 2)
    run_seeds(small(), 2, env=Paid())  # objects without a value are not cached
    assert program._functions.cache_info().currsize == 1
    assert len(client.live_executables()) > before
    jax.clear_caches()
    assert len(client.live_executables()) <= before
    for steps in range(2, 4 + program.KEPT_PROGRAMS):
        static, _ = program.structure(small(num_steps=steps, minibatches=1))
        program._functions(static, None, 4, (jax.devices()[0],), episodes=0)
    assert program._functions.cache_info().currsize == program.KEPT_PROGRAMS


FRESH = """
import sys
import numpy as np
from ppo_jax import config
from ppo_jax.sweep import run_sweep
small = config.make(preset="none", num_envs=4, num_steps=16, total_timesteps=256, hidden=(8,))
points = [{"learning_rate": 3e-3, "clip_eps": 0.1}]
_, metrics = run_sweep(small, points, [5, 6, 7, 8], episodes=2)
np.savez(sys.argv[1], **metrics)
"""


@pytest.mark.slow
def test_a_later_call_has_the_bits_of_a_fresh_process(tmp_path):
    """The new process compiles all programs itself."""
    run_sweep(small(), {"learning_rate": [1e-3, 2e-3]}, 4, episodes=2)
    points = [{"learning_rate": 3e-3, "clip_eps": 0.1}]
    _, found = run_sweep(small(), points, [5, 6, 7, 8], episodes=2)
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    file = tmp_path / "fresh.npz"
    subprocess.run([sys.executable, "-c", FRESH, file], env=environment, check=True, timeout=300)
    assert_same(found, dict(np.load(file)))
