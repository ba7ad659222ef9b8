"""The fairness of the race: paired ratios, one commit per table, equal devices, one evaluation."""

import importlib
import shutil
import subprocess
import sys
import time
import types
from argparse import Namespace

import gymnax
import jax
import numpy as np
import pytest

from benchmarks import commit
from benchmarks.throughput import trained
from benchmarks.throughput.configurations import CONFIGURATIONS, Configuration
from benchmarks.throughput.contestants import Unsupported, devices_of, ours
from benchmarks.throughput.ratios import FEWEST, TOO_FEW, Ratio, paired, shown, verdict
from ppo_jax.runs.chunk import compiler_options

TINY = Configuration("tiny", 4, 8, hidden=(8,))


def test_a_ratio_is_that_of_neighbouring_rounds():
    """A machine that becomes ten times slower does so for both contestants."""
    drift = np.geomspace(1000, 100, 11)
    assert paired(drift * 1.5, drift) == pytest.approx((1.5, 1.5, 1.5))
    # With medians of rates, the result would depend on the order.
    assert np.median(drift * 1.5) / np.median(drift[::-1]) == pytest.approx(1.5)
    ratios = np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7])
    found = paired(ratios * 7, np.full(7, 7.0))
    assert found.middle == pytest.approx(1.4)
    assert 1.1 <= found.low < 1.4 < found.high <= 1.7
    assert paired(ratios * 7, np.full(7, 7.0)) == found  # the same rounds, the same interval


def test_ratios_need_pairs_and_enough_of_them():
    with pytest.raises(ValueError, match="cannot be compared in pairs"):
        paired([1.0, 2.0], [1.0])
    few = paired([2.0] * (FEWEST - 1), [1.0] * (FEWEST - 1))
    assert few == Ratio(2.0) and shown(few, 2, 1) == TOO_FEW
    assert paired([2.0] * FEWEST, [1.0] * FEWEST) == Ratio(2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("ratio", "mine", "other", "said", "text"),
    [
        (Ratio(1.2, 1.1, 1.3), 120, 100, "faster", "1.20x [1.10, 1.30]"),
        (Ratio(0.8, 0.7, 0.9), 80, 100, "slower", "0.80x [0.70, 0.90]"),
        (Ratio(1.106, 0.94, 1.24), 101, 108, "tie", "tie [0.94, 1.24]"),
        (Ratio(0.95, 0.9, 1.0), 95, 100, "tie", "tie [0.90, 1.00]"),
        # The pairs and the medians disagree: there is no winner.
        (Ratio(1.1, 1.05, 1.2), 99, 100, "tie", "tie [1.05, 1.20]"),
        (Ratio(0.9, 0.8, 0.95), 101, 100, "tie", "tie [0.80, 0.95]"),
        (Ratio(1063.0, 12.34, 2000.0), 9999, 9, "faster", "1,063x [12.3, 2,000]"),
    ],
)
def test_a_win_needs_the_interval_and_the_medians(ratio, mine, other, said, text):
    assert verdict(ratio, mine, other) == said
    assert shown(ratio, mine, other) == text


def test_equals_tie_on_a_machine_that_others_use():
    rng = np.random.default_rng(1)
    ties = 0
    for _ in range(60):
        drift = np.exp(0.5 * rng.standard_normal(11))
        mine, other = (100 * drift * np.exp(0.1 * rng.standard_normal(11)) for _ in range(2))
        found = paired(mine, other)
        ties += verdict(found, float(np.median(mine)), float(np.median(other))) == "tie"
    assert ties >= 54


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    for name in ("ppo_jax", "benchmarks/results"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a").write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e.invalid"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, timeout=60, capture_output=True)
    return tmp_path


def test_a_commit_is_known_and_so_are_changes_after_it(checkout, tmp_path_factory):
    found = commit.of(checkout)
    assert len(found) == commit.LENGTH and set(found) <= set("0123456789abcdef")
    (checkout / "benchmarks/results/a").write_text("2\n")  # written by the measurement
    assert commit.of(checkout) == found
    (checkout / "ppo_jax/new.py").write_text("")
    assert commit.of(checkout) == found + commit.CHANGED
    assert commit.of(tmp_path_factory.mktemp("none")) == commit.UNKNOWN


def test_commits_are_not_mixed(tmp_path):
    path = tmp_path / "t.csv"
    commit.refuse([path], "abc", committed=True, fresh=False)  # no file exists yet
    for wrong in ("abc" + commit.CHANGED, commit.UNKNOWN):
        commit.refuse([path], wrong, committed=False, fresh=False)
        with pytest.raises(SystemExit, match="--out FOLDER"):
            commit.refuse([path], wrong, committed=True, fresh=True)
    path.write_text("a,commit\n1,abc\n2,abc\n")
    commit.refuse([path], "abc", committed=True, fresh=False)
    with pytest.raises(SystemExit, match="of commit abc, but the code is def: .* --fresh"):
        commit.refuse([path], "def", committed=True, fresh=False)
    commit.refuse([path], "def", committed=True, fresh=True)
    path.write_text("a\n1\n")  # written before the column existed
    with pytest.raises(SystemExit, match="no recorded commit"):
        commit.refuse([path], "abc", committed=False, fresh=False)


def test_a_table_has_one_commit():
    assert commit.one([{"commit": "abc"}, {"commit": "abc"}], "t") == "abc"
    assert commit.one([{"a": 1}], "t") == commit.one([], "t") == ""
    with pytest.raises(SystemExit, match="commit abc and of no recorded commit"):
        commit.one([{"commit": "abc"}, {}], "t")


def test_devices_are_equal(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    many = Configuration("many", 4, 8, hidden=(8,), agents=2)
    assert ours.prepare(many, Namespace(devices="one")).devices == 1
    assert ours.prepare(TINY, Namespace(devices="one")).compiler_options == compiler_options()
    assert devices_of(many, "one") == devices_of(TINY, "one") == 1
    with pytest.raises(Unsupported, match="one agent on one device"):
        devices_of(TINY, "all")
    assert jax.device_count() == 1  # of the test process
    for refused in (lambda: ours.prepare(TINY, Namespace(devices="all")),
                    lambda: ours.prepare(many, Namespace(devices="all")),
                    lambda: devices_of(many, "all")):  # fmt: skip
        with pytest.raises(Unsupported, match="only one device"):
            refused()


@pytest.fixture
def rltools(monkeypatch, tmp_path):
    """A contestant, with a stand-in for the package that it imports."""
    stand_in = types.ModuleType("rltools")

    class State:
        def __init__(self, seed):
            self.steps = 0

        def step(self):
            self.steps += 1

    def compile_it(env, **settings):
        stand_in.settings = settings
        return types.SimpleNamespace(State=State)

    stand_in.PPO = compile_it
    name = "benchmarks.throughput.contestants.rltools"
    monkeypatch.setitem(sys.modules, "rltools", stand_in)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "")
    module = importlib.import_module(name)
    yield module
    shutil.rmtree(module.CACHE, ignore_errors=True)
    sys.modules.pop(name, None)


def test_rltools_gets_the_configuration_in_its_words(rltools, monkeypatch):
    monkeypatch.setattr(rltools.shutil, "which", lambda name: name)
    program = rltools.prepare(CONFIGURATIONS["pendulum-64x128"], Namespace(devices="one"))
    folder = rltools.CACHE / "rltools/build/a"
    folder.mkdir(parents=True)
    (folder / "cmd.txt").write_text("g++ -shared -O3 -march=native -Isome/-Other -ffast-math x.cpp")
    program.compile()
    settings = sys.modules["rltools"].settings
    assert settings["N_ENVIRONMENTS"] == 64 and settings["ON_POLICY_RUNNER_STEPS_PER_ENV"] == 128
    assert settings["BATCH_SIZE"] == 64 * 128 // 4 and settings["N_EPOCHS"] == 4
    assert settings["ACTOR_NUM_LAYERS"] == settings["CRITIC_NUM_LAYERS"] == 3  # the head counts
    assert settings["CRITIC_ACTIVATION_FUNCTION"] == "TANH"
    assert program.compiler_options["C++"] == "-O3,-march=native,-ffast-math"
    assert program.run(3) == 3 and program.state.steps == 3 and program.devices == 1
    assert not rltools.CACHE.exists()


def test_rltools_says_what_it_cannot_do(rltools, monkeypatch):
    with pytest.raises(Unsupported, match="continuous actions"):
        rltools.prepare(CONFIGURATIONS["cartpole-4x128"], Namespace(devices="one"))
    with pytest.raises(Unsupported, match="one width"):
        rltools.settings_of(Configuration("a", 4, 8, env="Pendulum-v1", hidden=(8, 16)))
    monkeypatch.delenv("RL_TOOLS_COMPILER", raising=False)
    monkeypatch.setattr(rltools.shutil, "which", lambda name: None)
    with pytest.raises(Unsupported, match=r"needs a C\+\+ compiler: install g\+\+ or clang"):
        rltools.prepare(CONFIGURATIONS["pendulum-64x128"], Namespace(devices="one"))


def test_rltools_has_more_threads_with_mkl_alone(rltools, monkeypatch):
    found = {"mkl": "1"}
    missing = rltools.importlib.metadata.PackageNotFoundError

    def version(name):
        if name not in found:
            raise missing(name)
        return found[name]

    monkeypatch.setattr(rltools.importlib.metadata, "version", version)
    monkeypatch.setattr(rltools, "cores", lambda: 3)
    assert rltools.threads_of("all") == 3 and rltools.threads_of("one") == 1
    found.clear()
    with pytest.raises(Unsupported, match="MKL"):
        rltools.threads_of("all")
    monkeypatch.setattr(rltools, "cores", lambda: 1)
    with pytest.raises(Unsupported, match="only one device"):
        rltools.threads_of("all")


def test_the_referee_swings_like_gymnax():
    env, params = gymnax.make("Pendulum-v1")
    rng = np.random.default_rng(3)
    angle, speed = rng.uniform(-3, 3, 50), rng.uniform(-8, 8, 50)
    torque = rng.uniform(-3, 3, 50)
    _, state = env.reset(jax.random.key(0), params)

    def one(theta, theta_dot, action):
        start = state.replace(theta=theta, theta_dot=theta_dot)
        after = env.step_env(jax.random.key(0), start, action, params)
        return after[1].theta, after[1].theta_dot, after[2]

    theirs = jax.jit(jax.vmap(one))(*(x.astype(np.float32) for x in (angle, speed, torque)))
    for mine, other in zip(trained.swing(angle, speed, torque), theirs, strict=True):
        np.testing.assert_allclose(mine, np.asarray(other).reshape(-1), rtol=1e-4, atol=1e-4)


def test_the_mark_is_between_doing_nothing_and_swinging_up():
    def swing_up(obs):
        """Swing up by pumping energy, and balance near the top."""
        cos, sin, speed = obs.T
        held = -10.0 * np.arctan2(sin, cos) - 2.0 * speed
        pumped = np.sign(speed) * (1.0 - (0.5 * speed**2 + 15.0 * (cos - 1.0)) / 15.0 > 1.0) * 2.0
        return np.where(cos > 0.9, held, pumped)

    assert trained.play(lambda obs: np.zeros(len(obs))) < -1000
    assert trained.play(swing_up) > trained.MARK


def test_the_clock_stops_while_the_referee_plays(monkeypatch):
    returns = iter((-300.0, -250.0, -150.0))

    def play(act):
        time.sleep(0.2)
        return next(returns)

    monkeypatch.setattr(trained, "play", play)
    began = time.time()
    found = trained.until_trained(lambda: 10, None, began)
    assert found["reached"] and found["env_steps"] == 30
    assert 0 <= found["seconds"] < time.time() - began - 0.5


@pytest.mark.slow
def test_agents_are_spread_over_devices():
    """The parallelisation used by PureJaxRL and Rejax, in a process with two devices."""
    code = """
import os
os.environ.pop("JAX_NUM_CPU_DEVICES", None)
import jax, jax.numpy as jnp
from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput import contestants
contestants.cores = lambda: 2
many = Configuration("many", 4, 8, agents=4)
assert contestants.devices_of(many, "all") == 2
try:
    contestants.devices_of(Configuration("odd", 4, 8, agents=3), "all")
except contestants.Unsupported:
    pass
else:
    raise AssertionError
shapes = []
train = lambda key: shapes.append(key.shape) or jax.random.normal(key, (3,))
contestants.compile_training(train, 4, 2)()
assert shapes == [(2,)], shapes
print("spread")
"""
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "spread\n", result.stderr
