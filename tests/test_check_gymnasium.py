"""`check_env` for Gymnasium environments finds at least the faults found by Gymnasium and SB3."""

import sys
import threading

import numpy as np
import pytest

from ppo_jax import envs
from ppo_jax.cli import main as front

pytest.importorskip("gymnasium")

import faulty_gymnasium

FAULTS = {
    "NanReward": "a reward of nan; rewards must be finite",
    "InfiniteReward": "a reward of inf; rewards must be finite",
    "ArrayReward": r"a reward of shape \(1,\); return one number",
    "TextReward": "a reward that is a str; return one number",
    "NumberDone": "an int as terminated; return a bool",
    "NoInfo": "an info that is a NoneType; return a dict",
    "Doubles": r"observation of type float64; .*astype\(np.float32\)",
    "ListObs": "observation that is a list; its space is Box.*: return np.array",
    "Shorter": r"observation of shape \(1,\); its space is Box.*; ?|correct one of the two",
    "Outside": "observation that holds .*, outside its space Box.*; correct the bounds",
    "NanObs": "observation that holds NaN; look for a division",
    "Both": "terminated and truncated are equal in every step",
    "ObsOnly": "reset returned one value, an ndarray; return two values: obs, info",
    "Old": "step returned 4 values; return five.*Gym before 0.26",
    "Six": "step returned 6 values; return five.*gymnax, for an environment in JAX",
    "Order": "a float as terminated; return a bool.*in the order obs, reward, terminated",
    "NoSeed": r"the same seed and actions give another episode.*super\(\).reset\(seed=seed\)",
    "OwnGenerator": r"does not seed self.np_random; call super\(\).reset\(seed=seed\)",
    "ChangesAction": "changes its argument action; work on a copy",
    "Refuses": r"step\(2\), an action of its action_space, raised AssertionError: no such action",
    "Reuses": r"writes into an observation that was returned earlier; return a copy: obs.copy\(\)",
    "NoSpace": "action_space is None; set it to a space of gymnasium.spaces",
    "Words": "whose values have no fixed shape",
    "OneOfTwo": r"an observation that is \['a'\]; its space is a Dict of \['a', 'b'\]",
    "TooLarge": r"an observation\['b'\] 5, outside its space Discrete\(2\); return 0 to 1",
    "CannotClose": r"close raised RuntimeError: still open \(faulty_gymnasium.py",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    report = envs.find_problems(getattr(faulty_gymnasium, name), steps=60)
    assert len(report.problems) >= 1
    with pytest.raises(envs.InvalidEnvironment, match=FAULTS[name]):
        envs.check_env(getattr(faulty_gymnasium, name), steps=60)


@pytest.mark.parametrize("name", ["Good", "OffCentre"])
def test_good_ones_pass(name):
    report = envs.check_env(getattr(faulty_gymnasium, name), steps=60)
    assert report.problems == [] and len(report.checked) > 4
    assert ("away from 0" in " ".join(report.notes)) == (name == "OffCentre")


def test_masked_actions_are_not_tried():
    report = envs.check_env(faulty_gymnasium.Masked, steps=60)
    assert "actions are masked: only legal ones were tried" in report.notes


def test_all_faults_are_listed():
    report = envs.find_problems("faulty_gymnasium:Plain", steps=20)
    expected = (
        "must inherit from gymnasium.Env",
        "takes no options",
        "takes no seed",
        "reset returned one value",
        "step returned 4 values",
        "of type float64",
        "holds 7.0, outside",
        "a reward of nan",
    )
    for problem, text in zip(report.problems, expected, strict=True):
        assert text in problem


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_gymnasiums_own_pass(name):
    assert envs.check_env(f"gymnasium:{name}", steps=300).problems == []


def test_the_command(capsys):
    for name, code, last in (("Good", 0, "no problems"), ("Old", 1, "1 problem")):
        with pytest.raises(SystemExit) as end:
            front.main(["check-env", f"faulty_gymnasium:{name}", "--steps", "30"])
        assert end.value.code == code
        assert capsys.readouterr().out.splitlines()[-1] == last
    with pytest.raises(SystemExit) as end:
        front.main(["check-env", "gymnasium:NotThere-v0"])
    assert end.value.code == 2 and "unknown environment" in capsys.readouterr().err


def test_a_mask_without_a_legal_action_is_a_problem():
    class Stuck(faulty_gymnasium.Masked):
        def mask(self):
            return np.arange(3) != (self.time % 3 if self.time < 3 else np.arange(3))

    report = envs.find_problems(Stuck, steps=20)
    assert any("step returned a mask in which no action is legal" in p for p in report.problems)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_environment_that_hangs_ends_the_command(monkeypatch, capsys):
    over, codes = threading.Event(), []

    class Hangs(faulty_gymnasium.Good):
        def step(self, action):
            over.wait(10)
            return super().step(action)

    def exit_(code):
        codes.append(code)
        over.set()
        sys.exit()  # ends the watching thread

    monkeypatch.setattr(faulty_gymnasium, "Good", Hangs)
    monkeypatch.setattr("os._exit", exit_)
    monkeypatch.setattr("ppo_jax.cli.check_env.SECONDS", 0.3)
    with pytest.raises(SystemExit):
        front.main(["check-env", "faulty_gymnasium:Good", "--steps", "5"])
    assert codes == [2]
    assert "Good did not answer within 0.3 s in step(" in capsys.readouterr().err
