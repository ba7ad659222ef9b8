"""`check_env` finds all faults of an environment in JAX, and describes how to correct them."""

import dataclasses

import numpy as np
import pytest

import faulty_jax
from ppo_jax import envs
from ppo_jax.cli import main as front
from ppo_jax.envs import check_jax
from ppo_jax.envs.check_values import corners, outside
from ppo_jax.envs.spaces import Box, Discrete, MultiBinary, MultiDiscrete

# Found by looking at a trace, before anything runs.
STATIC = {
    "Lacks": "lacks reset, step, params, observation_space, action_space, time_limit",
    "Limit": "time_limit is '20'; it must be >= 1 or None",
    "Four": "4 values; .* these are those of Gym before 0.26, .*done as terminated",
    "Five": "5 values; .* in Gymnasium's order, without a state: return the state second",
    "OldGymnax": "5 values; .* these are those of gymnax 0.x, with one done",
    "Order": "returned six values in another order",
    "NoInfo": "an info that is a NoneType; return a dict",
    "NumPy": r"a traced value to NumPy.*\(faulty_jax.py, line \d+\).* of jax.numpy",
    "Decides": r"in Python \(if, while.*\(faulty_jax.py, line \d+\).*; use jnp.where, jax.lax.cond",
    "Counts": r"needs the value of a traced array.*\(faulty_jax.py, .*jax.lax.fori_loop",
    "ObsOnly": "reset returned an array alone; return two, obs and state",
    "StateFirst": "reset returned state and obs; return them in the order obs, state",
    "Shorter": r"observation is float32\[2\] from reset but float32\[1\] from step; give both",
    "Text": r"state of step\['name'\] is a str; keep numbers and arrays alone",
    "TextParams": r"params\[0\] is a str; keep numbers and arrays alone",
    "Raises": r"TypeError: tuple indices.*\(faulty_jax.py, line \d+\).*; correct it",
    "VectorReward": r"reward of float32\[1\]; expected float32\[\]: .*x\[0\], or x.squeeze",
    "IntReward": r"reward of int32\[\]; expected float32\[\]: jnp.float32",
    "NumberDone": r"terminated of float32\[\]; expected bool\[\]: a comparison",
}
# Found by running it.
RUNNING = {
    "Remembers": "writes to self.time, which happens once.*keep what changes in the state",
    "Appends": "writes to self.seen, which happens once",
    "NumPyRandom": "called twice with the same key, reset's observation differs; .*jax.random",
    "RandomReward": "called twice with the same key, reward differs",
    "Outside": r"the observation holds .*, outside of its space, \[-1, 1\] there; correct",
    "NanReward": "the reward is nan .*; rewards are finite",
    "NanObs": "the observation holds nan; look for a division by 0",
    "Divides": r"the reward is -?inf after action \[-1.  1.\]",
    "Both": "terminated and truncated are the same in every step; terminated is the end of",
    "Late": "goes on after step 10, its time_limit.*return truncated = time >= 10",
    "Early": "truncated after 20 steps, but time_limit is 50; set time_limit to",
}


@pytest.mark.parametrize("name", STATIC)
def test_what_a_trace_shows(name):
    with pytest.raises(envs.InvalidEnvironment, match=STATIC[name]):
        envs.check_protocol(getattr(faulty_jax, name)())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNNING])
def test_what_running_shows(name):
    with pytest.raises(envs.InvalidEnvironment, match=RUNNING[name]):
        envs.check_env(getattr(faulty_jax, name), steps=100)


def test_all_faults_are_listed_and_a_command_says_so(capsys):
    with pytest.raises(SystemExit) as end:
        front.main(["check-env", "faulty_jax:Many", "--steps", "100"])
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("problem: ")]
    expected = (
        "an info that is a NoneType",
        "a reward of int32[]",
        "a truncated of float32[]",
        "outside of its space, [-1, 1]",
        "truncated after 20 steps, but time_limit is 50",
    )
    assert end.value.code == 1 and lines[-1] == "5 problems"
    for problem, text in zip(problems, expected, strict=True):
        assert text in problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0", "Catch-bsuite"])
def test_good_environments_pass(name):
    report = envs.check_env(name, steps=100)
    assert report.problems == [] and len(report.checked) > 4


def steps_of(terminated, truncated, counters=None):
    """Two copies whose episodes end at given steps: [T, 2]."""
    terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
    length, lengths = np.zeros(2, int), []
    for done in terminated | truncated:
        length = length + 1
        lengths.append(length)
        length = np.where(done, 0, length)
    zeros, lengths = np.zeros(terminated.shape, np.float32), np.array(lengths)
    counters = np.zeros((*zeros.shape, 0), int) if counters is None else counters(lengths)
    return check_jax.Steps(zeros, zeros, terminated, truncated, lengths, counters)


def said(found, **attributes):
    report = envs.Report("Env", "JAX environment")
    env = faulty_jax.Good()
    env.__dict__.update(attributes)
    check_jax._look_at_episodes(report, env, found)
    return " ".join(report.problems)


NO, LAST = [[0, 0]] * 4, [[0, 0]] * 3 + [[1, 1]]


@pytest.mark.parametrize(
    ("found", "attributes", "message"),
    [
        (steps_of(NO, LAST), {"time_limit": 4}, ""),
        (steps_of(LAST, NO), {"time_limit": 4}, ""),
        (steps_of(LAST, LAST), {"time_limit": 4}, ""),  # both, at the limit
        (steps_of(LAST, LAST), {"time_limit": None}, "are the same in every step"),
        (steps_of(NO, LAST), {"time_limit": 5}, "truncated after 4 steps, but time_limit is 5"),
        (steps_of(NO, LAST), {"time_limit": np.inf}, "but time_limit is inf"),
        (steps_of(NO, LAST), {"time_limit": None}, ""),
        (steps_of(NO, NO), {"time_limit": 4}, "goes on after step 4"),
        (steps_of(LAST, NO), {"shortest_episode": 5}, "ended after 4 steps, but shortest_episode"),
        (steps_of(LAST, NO, lambda n: n[..., None]), {}, ""),
        (steps_of(LAST, NO, lambda n: n[..., None] % 4), {}, "restarts the episode by itself"),
    ],
)
def test_ends_of_episodes(found, attributes, message):
    assert (message in said(found, **attributes)) if message else not said(found, **attributes)


@pytest.mark.parametrize(
    ("space", "count", "some"),
    [
        (Discrete(3), 3, [0, 1, 2]),
        (Discrete(1000), 33, [0, 999]),
        (MultiDiscrete((3, 2)), 4, [[0, 0], [2, 1]]),
        (MultiBinary(2), 4, [[0, 0], [1, 1]]),
        (Box(-1, 2, (2,)), 5, [[-1, -1], [2, -1], [0.5, 0.5]]),
        (Box(0, np.inf, ()), 3, [0, 6]),
        (Box(-1, 1, (10,)), 13, [[-1] * 10, [1] + [-1] * 9]),
    ],
)
def test_edges_of_actions(space, count, some):
    found = corners(space).tolist()
    assert len(found) == count
    assert all(action in found for action in some)


@pytest.mark.parametrize(
    ("space", "values", "problem"),
    [
        (Box(-1, 1, ()), [0.0, 1.0 + 1e-6], None),
        (Box(-1, 1, ()), [0.0, 1.1], "holds 1.1, outside of its space, [-1, 1]"),
        (Box(-np.inf, np.inf, ()), [1e9, np.nan], "holds nan"),
        (Discrete(3), [0, 2], None),
        (Discrete(3), [0, 3], "holds 3, outside of its space, [0, 2]"),
        (MultiBinary(2), [[0, 2]], "holds 2, outside of its space, [0, 1]"),
        (MultiDiscrete((2, 3)), [[1, 2], [2, 0]], "holds 2, outside of its space, [0, 1]"),
    ],
)
def test_values_outside_of_a_space(space, values, problem):
    found = [text for _, text in outside(space, np.asarray(values))]
    assert (not found) if problem is None else problem in found[0]


def test_reports_say_a_thing_once():
    report = envs.Report("Env", "JAX environment")
    for _ in range(2):
        report.problem("a")
        report.note("b")
    assert (report.problems, report.notes) == (["a"], ["b"])
    assert dataclasses.is_dataclass(report)
