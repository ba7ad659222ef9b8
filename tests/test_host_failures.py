"""Gymnasium environments that fail: reported values, and how runs end."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odd_host_envs as odd
from ppo_jax import config as configs
from ppo_jax import envs, rollout
from ppo_jax.config import ConfigError
from ppo_jax.envs import InvalidEnvironment
from ppo_jax.envs.copies import Copies
from ppo_jax.envs.supervision import SimulatorFailed, ended_if, limited
from ppo_jax.evaluate import evaluate
from ppo_jax.experiment import RunOptions, evaluate_run, train
from ppo_jax.networks import make_policy
from ppo_jax.runs.job import RunFailed

KEY = jax.random.key(0)
SAME_STEP = gymnasium.vector.AutoresetMode.SAME_STEP
NEXT_STEP = gymnasium.vector.AutoresetMode.NEXT_STEP


def copies_of(make, count=2, *, processes=False, **supervision):
    """N started copies, without JAX."""
    env = envs.as_env(odd.Plain)
    venv = envs.HostEnv(
        "odd", env.spaces, lambda n: lambda: Copies([make] * n, processes=processes)
    )
    venv.supervision.begin(**supervision)
    vector = venv.vector(count)
    vector.start()
    return vector._venv


def played(copies, steps):
    """The VectorSteps of several steps."""
    copies.reset(0)
    return [copies.step(np.zeros(copies.num_envs, np.int64)) for _ in range(steps)]


class Beyond(odd.Plain):
    """Observes a value outside its space at the third step."""

    observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(3, start=2)})
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"a": 4}, {}

    def step(self, action):
        self.steps += 1
        return {"a": 4 + self.steps // 3}, 1.0, False, False, {}


class Interrupted(odd.Plain):
    """Installs its own handler for Ctrl-C, which raises an exception."""

    def step(self, action):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (
            Beyond,
            r"step 3: returned the observation\['a'\] 5, which is not in Discrete\(3, start=2",
        ),
        (Interrupted, "step 1: raised KeyboardInterrupt"),
    ],
)
def test_what_no_run_can_go_on_with_is_named(cls, said):
    env = envs.HostEnv("odd", (cls.observation_space, cls.action_space), lambda n: lambda: copies)
    copies = Copies([cls] * 2)
    vector = env.vector(2)
    vector.start()
    with pytest.raises(SimulatorFailed, match=f"index 0 of 2, {said}"):
        played(copies, 3)


class Stuck(odd.Plain):
    """The mask forbids all actions at the third step, and after the end of an episode."""

    observation_space = gymnasium.spaces.Dict(
        {"x": gymnasium.spaces.Box(-1, 1, (1,)), "action_mask": gymnasium.spaces.MultiBinary(2)}
    )
    stuck, length = 3, 5

    def obs(self):
        mask = np.full(2, self.t not in (self.stuck, self.length), np.int8)
        return {"x": np.zeros(1, np.float32), "action_mask": mask}


class StuckInRows(Stuck):
    """The mask forbids all choices of the second component; masks beyond the sizes are ignored."""

    action_space = gymnasium.spaces.MultiDiscrete([3, 2])
    observation_space = gymnasium.spaces.Dict(
        {"action_mask": gymnasium.spaces.Box(0, 1, (2, 3), np.int8)}
    )

    def obs(self):
        legal = self.t not in (self.stuck, self.length)
        return {"action_mask": np.array([[1, 1, 1], [legal, legal, 1]], np.int8)}


MASKED_WAYS = {
    "copies": lambda n, cls: lambda: Copies([cls] * n),
    "same step": lambda n, cls: lambda: vector_of(cls, SAME_STEP),
    "next step": lambda n, cls: lambda: vector_of(cls, NEXT_STEP),
}


@pytest.mark.parametrize("way", MASKED_WAYS)
@pytest.mark.parametrize("cls", [Stuck, StuckInRows])
def test_a_mask_without_a_legal_action_is_named(monkeypatch, cls, way):
    spaces = cls.observation_space, cls.action_space
    env = envs.HostEnv("odd", spaces, lambda n: MASKED_WAYS[way](n, cls))

    def play():
        vector = dataclasses.replace(env, _kept={}).vector(2)
        vector.start()
        vector._venv.reset(0)
        action = np.zeros((2, *vector.action_space.shape), np.int64)
        return [vector._venv.step(action) for _ in range(7)]

    with pytest.raises(SimulatorFailed, match="step 3: .*by which no action is legal") as failed:
        play()
    assert "index 0 of 2" in str(failed.value)
    monkeypatch.setattr(cls, "stuck", -1)
    assert play()[4].terminated.all()  # the last observation needs no legal action
    monkeypatch.setattr(cls, "stuck", 0)
    with pytest.raises(InvalidEnvironment, match="reset returned a mask by which no action"):
        envs.as_env(cls)


def vector_of(cls, mode):
    return gymnasium.vector.SyncVectorEnv([cls] * 2, autoreset_mode=mode)


WAYS = {
    "copies": lambda cls: cls,
    "same step": lambda cls: vector_of(cls, SAME_STEP),
    "next step": lambda cls: vector_of(cls, NEXT_STEP),
    "async": lambda cls: envs.make(f"gymnasium:odd_host_envs:{cls.__name__}-v0", backend="async"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [odd.Reuses, odd.ReusesDict])
def test_final_observations_survive_arrays_that_are_used_again(cls, way):
    made = WAYS[way](cls)
    env = (made if isinstance(made, envs.HostEnv) else envs.as_env(made)).vector(2)
    env.start()
    first = env._venv.reset(0)
    steps = [env._venv.step(np.zeros(2, np.int64)) for _ in range(7)]
    shown = np.array([first[0]] + [s.obs[0] for s in steps]).squeeze(-1)[:, 0]
    if way == "next step":
        np.testing.assert_array_equal(shown, [0, 1, 2, 3, 4, 5, 0, 1])
    else:
        np.testing.assert_array_equal(shown, [0, 1, 2, 3, 4, 0, 1, 2])
        for leaf in steps[4].final:
            np.testing.assert_array_equal(leaf.reshape(-1), 5)
    assert steps[4].truncated.all() and not steps[3].truncated.any()
    env.close()


def collected(env, num_envs=2, num_steps=32):
    """(policy, params, trajectory, state) of one rollout."""
    vector = envs.vectorize(env, num_envs)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    state = rollout.init(KEY, policy, vector)
    params = policy.init(jax.random.key(1), state.obs)
    params["critic"]["head"]["kernel"] *= 100.0  # makes a wrong successor visible
    collect = functools.partial(
        rollout.collect, env=vector, policy=policy, num_steps=num_steps, gamma=0.9
    )
    state, trajectory = jax.jit(collect)(KEY, params, state)
    return policy, params, jax.tree.map(np.asarray, trajectory), state


def test_a_time_limit_is_the_longest_that_an_episode_can_be():
    """100 steps with episodes of 3, 7 and 4: each truncation has the value of its final
    observation."""
    env = envs.make("gymnasium:odd_host_envs:odd/Sooner-v0")
    assert env.time_limit == 100
    policy, params, rows, state = collected(env)
    cut = rows.done & ~rows.terminated
    assert np.flatnonzero(cut[:, 0]).tolist() == [2, 9, 13, 16, 23, 27, 30]
    final = rows.obs + np.array([0.0, 1.0])  # the same episode, one step later
    expected = policy.apply(params, jnp.asarray(final))[1]
    np.testing.assert_allclose(rows.next_value[cut], expected[cut], rtol=1e-4)
    assert state.metrics["lost_cuts"] == 0


def test_infos_are_read_by_nobody():
    for processes in (False, True):
        copies = copies_of(odd.Ragged, processes=processes)
        assert played(copies, 12)[9].terminated.all()
        copies.close()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (odd.OldStep, "step returned 4 values, expected obs, reward, terminated, truncated, info"),
        (odd.OldReset, "reset returned one ndarray, expected obs, info"),
        (odd.Liar, r"observation 7, which is not in Discrete\(4\).* reward nan"),
        (functools.partial(odd.Raises, after=2), "its step raised RuntimeError: a wheel fell off"),
        (functools.partial(odd.Grows, after=2), r"shape \(3,\); its observation_space has \(2,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_first_environment_is_looked_at(cls, message):
    with pytest.raises(InvalidEnvironment, match=message) as refused:
        envs.as_env(lambda: cls())
    assert "\n" not in str(refused.value)


def test_gymnasium_s_checker_is_passed_on():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs.as_env(odd.Careless)
        envs.make("gymnasium:odd_host_envs:Careless-v0")
        envs.make("CartPole-v1")
    said = [str(w.message) for w in caught]
    for name in ("Careless", "gymnasium:odd_host_envs:Careless-v0"):
        for method in ("reset", "step"):
            text = f"{name}: The obs returned by the `{method}()` method is not within"
            assert any(s.startswith(text) for s in said), text
    assert not any(s.startswith("The obs") for s in said)
    assert all("\x1b" not in s and "\n" not in s for s in said)


FAILURES = [
    (odd.Raises, r"raised RuntimeError: a wheel fell off \(odd_host_envs.py, line \d+\)"),
    (odd.Grows, r"returned an observation of shape \(3,\); its observation_space has \(2,\)"),
    (odd.Text, "returned an observation of type str"),
    (odd.RaisesInReset, "raised RuntimeError: no scene"),
]
ENDS = [
    (odd.Exits, "its process exited with status 3"),
    (odd.Killed, "its process was ended by SIGKILL"),
    (odd.Hangs, r"does not answer within 1 s \(--env-timeout\)"),
]


@pytest.mark.parametrize(
    ("cls", "message", "processes"),
    [(*f, p) for f in FAILURES for p in (False, True)] + [(*e, True) for e in ENDS],
)
def test_a_failure_names_environment_index_and_step(cls, message, processes):
    copies = copies_of(cls, processes=processes, timeout=1)
    with pytest.raises(
        SimulatorFailed, match=rf"^environment odd, index 0 of 2, step \d+: {message}"
    ) as failed:
        played(copies, 21)
    assert "\n" not in str(failed.value)
    copies.close()


def test_a_copy_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setattr(odd.FewCopies, "made", 0)
    with pytest.raises(InvalidEnvironment, match="index 2 of 3: cannot be made: it raised .*licen"):
        copies_of(odd.FewCopies, 3)


def test_a_copy_that_failed_is_replaced(tmp_path):
    make = functools.partial(odd.Killed, str(tmp_path / "flag"), 4)
    copies = copies_of(make, processes=True, restarts=1)
    steps = played(copies, 6)
    abandoned = np.array([s.abandoned for s in steps])
    assert abandoned.sum() == 1 and abandoned[3].any()
    n = int(np.flatnonzero(abandoned[3])[0])
    assert not steps[3].valid[n] and steps[3].reward[n] == 0 and not steps[3].terminated[n]
    shown = [s.obs[0][:, 1].tolist() for s in steps]
    assert [row[n] for row in shown] == [1, 2, 3, 0, 1, 2]
    assert [row[1 - n] for row in shown] == [1, 2, 3, 4, 5, 6]
    copies.close()


def test_copies_are_replaced_so_often_and_no_more():
    copies = copies_of(functools.partial(odd.Raises, after=2), restarts=3)
    with pytest.raises(SimulatorFailed, match="a wheel fell off.*; 3 were replaced"):
        played(copies, 9)


def test_the_episode_of_a_copy_that_failed_counts_nowhere(tmp_path):
    env = envs.as_env(functools.partial(odd.Raises, str(tmp_path / "flag"), 14))
    env.supervision.begin(restarts=1)
    policy, params, rows, state = collected(env, num_steps=24)
    broken = rows.weight == 0
    assert broken.sum() == 1 and broken[13].any()
    n = int(np.flatnonzero(broken[13])[0])
    # Steps 0 to 9 are one episode; 10 to 12 start one that is abandoned.
    assert np.flatnonzero(rows.done[:14, n]).tolist() == [9, 12]
    assert not rows.terminated[12, n] and rows.obs[13, n].tolist() == [13, 3]
    value = policy.apply(params, jnp.asarray(rows.obs))[1]
    np.testing.assert_allclose(rows.next_value[12, n], value[13, n], rtol=1e-4)
    assert rows.obs[14, n].tolist() == [0, 0]
    assert state.metrics["episodes"] == 4 and state.metrics["episode_length"] == 10
    assert state.episodes.episode_length[n] == 0 == state.episodes.episode_length[1 - n] - 4


@pytest.mark.slow
def test_an_evaluation_plays_the_episode_of_a_copy_that_failed_again(tmp_path):
    env = envs.as_env(functools.partial(odd.Raises, str(tmp_path / "flag"), 8))
    env.supervision.begin(restarts=1)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    params = policy.init(KEY, jnp.zeros((2, 2)))
    result = evaluate(KEY, params, rollout.Moments(), env=env, policy=policy, episodes=2)
    assert env.supervision.replaced == 1
    assert result.episode_return.tolist() == [10, 10] == result.episode_length.tolist()


def settings(env, updates=6, **values):
    values = {"preset": "none", "num_envs": 2, "num_steps": 8, "hidden": (8,), **values}
    return configs.make(env=env, total_timesteps=updates * 16, **values)


def test_options_for_the_host_are_refused_elsewhere(tmp_path):
    options = RunOptions(run_dir=tmp_path / "run", env_restarts=2)
    with pytest.raises(ConfigError, match="--env-restarts is 2, but .* does not run on the host"):
        train(settings("CartPole-v1"), options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_environment_fails_keeps_what_is_finished(tmp_path, monkeypatch):
    """The run continues from the saved state; a failing evaluation does not print a traceback."""
    monkeypatch.setattr("ppo_jax.runs.chunk.CHUNK_SECONDS", 0.0)  # one update at a time
    path = tmp_path / "run"
    config = settings("gymnasium:odd_host_envs:Raises-v0", env_args=("after=35",))
    with pytest.raises(RunFailed, match=r"index 0 of 2, step 35: .*after 64 .*--resume") as failed:
        train(config, RunOptions(run_dir=path, eval_episodes=0, checkpoint_seconds=1e9))
    assert "\n" not in str(failed.value)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["status"], summary["updates"]) == ("failed", 4)
    assert "a wheel fell off" in summary["reason"]
    assert train(config, RunOptions(resume=path, eval_episodes=0)).summary["updates"] == 6
    with pytest.raises(RunFailed, match=r"index 0 of 16, step \d+: raised RuntimeError"):
        evaluate_run(path, 64)


@pytest.fixture
def exits(monkeypatch):
    """Exit codes with which the process ends; the hanging call is released then."""
    codes = []

    def exit_(code):
        codes.append(code)
        odd.HangsAtOnce.over.set()
        sys.exit()  # ends the watching thread

    monkeypatch.setattr("os._exit", exit_)
    monkeypatch.setattr(odd.HangsAtOnce, "over", threading.Event())
    return codes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("at", "doing"),
    [(1, "it was made"), (2, "its first reset was looked at"), (3, "its first steps were looked")],
)
def test_a_first_environment_that_hangs_ends_the_process(exits, capsys, at, doing):
    with limited(0.2):
        envs.make("gymnasium:odd_host_envs:HangsAtOnce-v0", at=at)
    assert exits == [2]
    said = capsys.readouterr().err
    assert f"HangsAtOnce-v0 did not answer within 0.2 s while {doing}" in said
    assert "--env-timeout" in said and said.count("\n") == 1
    envs.make("gymnasium:odd_host_envs:HangsAtOnce-v0", at=at)  # without a limit
    assert exits == [2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_second_environment_that_hangs_ends_the_process(exits, capsys, monkeypatch):
    monkeypatch.setattr("ppo_jax.envs.supervision.TIMEOUT", 0.2)
    env = envs.as_env(lambda: odd.HangsAtOnce(at=0))
    slow = envs.HostEnv("odd", env.spaces, lambda n: lambda: Copies([odd.HangsAtOnce] * n))
    slow.supervision.begin(timeout=0.1)
    with ended_if(slow.supervision.stuck):
        slow.vector(2).start()
    assert exits == [2]
    assert "odd, index 0 of 2, while it is made: does not answer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_env_timeout_holds_from_the_first_call_on(tmp_path, at):
    options = ("--env", "gymnasium:odd_host_envs:HangsAtOnce-v0", "--env-timeout", "3")
    process = command(tmp_path / "run", *options, "--env-args", f"at={at}")
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and not (tmp_path / "run").exists()
    assert error.startswith("error: environment ") and error.count("\n") == 1
    assert "did not answer within 3 s while" in error


def command(path, *arguments, **options):
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-m", "ppo_jax.train", "--num-envs", "2", "--num-steps", "8", "--hidden",
         "8", "--eval-episodes", "0", "--run-dir", str(path), "--total-timesteps", "1e7",
         *arguments],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(here.parent)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        **options,
    )  # fmt: skip


def wait_for_rows(path, process, count=3):
    for _ in range(900):
        log = path / "metrics.jsonl"
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    pytest.fail("no rows")


def workers_of(process):
    path = Path(f"/proc/{process.pid}/task")
    found = " ".join(p.read_text() for p in path.glob("*/children"))
    return [int(pid) for pid in found.split()]


def running(pids):
    """Processes that still exist and are not waiting to be reaped by their parent."""
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    return [p for p in states if p.exists() and p.read_text().rpartition(") ")[2][0] != "Z"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_a_run_in_order(tmp_path, number):
    """As sent by a terminal; workers are in their own process group, and ignore the signal
    anyway."""
    path = tmp_path / "run"
    options = ("--env", "gymnasium:odd_host_envs:Start-v0", "--env-args", "backend=async")
    process = command(path, *options)
    wait_for_rows(path, process)
    workers = workers_of(process)
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, number)
    os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == f"stopped by {number.name}" and summary["updates"] >= 3
    assert not running(workers)


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    path = tmp_path / "run"
    options = ("--env", "gymnasium:odd_host_envs:Start-v0", "--env-args", "backend=async")
    process = command(path, *options)
    wait_for_rows(path, process)
    workers = workers_of(process)
    process.kill()
    process.wait()
    time.sleep(1)
    assert len(workers) == 2 and not running(workers)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("ends", ["timeout", "signal"])
def test_an_environment_that_hangs_ends_in_time(tmp_path, backend, ends):
    path = tmp_path / "run"
    options = ("--env", "gymnasium:odd_host_envs:Hangs-v0")
    limit = ("--env-timeout", "2") if ends == "timeout" else ()
    process = command(path, *options, "--env-args", "after=60", f"backend={backend}", *limit)
    wait_for_rows(path, process, count=1)
    if ends == "signal":
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == (1 if ends == "timeout" else 143), error
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == ("failed" if ends == "timeout" else "stopped by SIGTERM")
    assert summary["updates"] >= 1 and "Traceback" not in error
    assert "index 0" in error and "step 60" in error
