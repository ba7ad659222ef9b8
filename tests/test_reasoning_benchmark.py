"""`benchmarks.reasoning`: the reward of TRL's process, tables and curves."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import reasoning
from benchmarks.language import reasoning_peer, verifier
from ppo_jax.config import schedules
from ppo_jax.rlhf import tasks


def test_the_reward_of_the_other_process_is_that_of_the_task():
    task, rng = tasks.make("addition"), np.random.default_rng(0)
    characters = [*"0123456789+=", ""]
    for _ in range(2000):
        a, b = rng.integers(0, 100, 2)
        prompt = f"{a:02d}+{b:02d}="
        right = f"{a + b:03d}"[::-1]
        changed = list(right)
        changed[rng.integers(0, 3)] = characters[rng.integers(0, len(characters))]
        for response in (right, right + "0", "".join(changed), "".join(changed)[:2], ""):
            given = verifier.verify(prompt, response, task.response_length)
            assert given == task.python_reward(prompt, response)
            assert given == verifier.verify(f"<bos>{prompt}", response, task.response_length)


def test_a_prompt_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="'12-3=' is not a sum"):
        verifier.verify("12-3=", "9", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("grop",)}, "--methods: unknown 'grop'"),
        ({"parts": ("race",)}, "--parts: unknown 'race'"),
        ({"flags": "--updates 10 --kl-coef=0.1"}, "--flags has --kl-coef, which TRL is not given"),
        ({"flags": "--learning-rate linear(1e-3,0)"}, "--flags is '--learning-rate linear"),
        (
            {"parts": ("methods",), "flags": "--difficulty digits=1"},
            "--flags has --difficulty; the",
        ),
        ({"seeds": 1}, "--seeds is 1; an interval needs at least 2"),
        ({"peer_seeds": 0}, "--peer-seeds is 0; it must be >= 1"),
    ],
)
def test_invalid_options_are_refused(change, message):
    with pytest.raises(SystemExit) as error:
        reasoning.check(dataclasses.replace(reasoning.Options(), **change))
    assert str(error.value).startswith(message)


def test_a_run_with_other_options_is_refused(tmp_path):
    words = ["--seeds", "2", *reasoning.METHODS["gspo"]]
    values, _ = reasoning._values("reason", words, reasoning.KINDS["reason"])
    content = {"stage": "reason", "config": reasoning.flat(values)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    reasoning.check_same(tmp_path, words)
    with pytest.raises(SystemExit, match="with another anneal_updates, seeds, updates;"):
        reasoning.check_same(tmp_path, [*words, "--updates", "7", "--seeds", "3"])


figure = reasoning.style.figure


def finished(folder, scores):
    """The files of a finished run."""
    folder.mkdir(parents=True)
    columns = {f"{reasoning.AGENT}{i}": x for i, x in enumerate(scores)}
    row = {"groups_without_spread": 0.5, "sampling_entropy": 0.1, "kl": 1.0, "response_length": 4.0}
    lines = [
        {"update": 10, "responses": 20, "tokens_per_second": 7.0, **row},
        {"update": 20, "responses": 40, "tokens_per_second": 11.0, **row, **columns},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    summary = {
        "status": "finished",
        "updates": 20,
        "responses": 40,
        "train_seconds": 3.0,
        **columns,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    names = ("start_pass_at_1", "start_pass_at_k", "pass_at_1", "pass_at_k", "length")
    table = [f"{seed},0.25,0.5,{x},1.0,4.0" for seed, x in enumerate(scores)]
    (folder / "results.csv").write_text("\n".join([",".join(["seed", *names]), *table]) + "\n")


def test_a_finished_run_is_not_repeated_and_its_numbers_are_in_the_tables(tmp_path):
    options = reasoning.Options(
        methods=("grpo",), parts=("methods",), runs=tmp_path, out=tmp_path, image=tmp_path
    )
    finished(tmp_path / "grpo", [0.75, 1.0, 1.0, 1.0])
    reasoning.measure("grpo", options)
    (curve,) = reasoning.read(tmp_path / "reasoning_curves.csv")
    assert (curve["update"], curve["seeds"], curve["interquartile_mean"]) == ("20", "4", "1.0")
    rows = reasoning.read(tmp_path / "reasoning.csv")
    assert [row["seed"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["responses"] for row in rows} == {"10"}  # of one agent
    line = (
        "| two digits | ppo_jax | grpo | 4 | 0.250 | 0.938 | 0.812 to 1.000 | 0.750 | 1.000 | 4 |"
    )
    assert f"{line} 9 | 3 |" in reasoning.markdown(tmp_path)
    assert (tmp_path / "reasoning.png").stat().st_size > 0


def test_the_harder_task_has_rows_and_a_panel_of_its_own(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(reasoning, "train", lambda folder, method, flags: given.append(flags))
    options = reasoning.Options(
        methods=("grpo",), parts=("methods", "harder"), runs=tmp_path, out=tmp_path, image=tmp_path
    )
    finished(tmp_path / "grpo", [0.75, 1.0])
    finished(tmp_path / "harder_grpo", [0.5, 0.75])
    panels = []
    monkeypatch.setattr(
        reasoning.style,
        "figure",
        lambda *shape, **options: panels.append(shape[:2]) or figure(*shape, **options),
    )
    reasoning.main(options)
    assert given[0] == ["--seeds", "8"] and "digits=3" in given[1]
    rows = reasoning.read(tmp_path / "reasoning.csv")
    assert [(r["task"], r["pass_at_1"]) for r in rows] == [
        ("two digits", "0.75"), ("two digits", "1.0"),
        ("three digits", "0.5"), ("three digits", "0.75"),
    ]  # fmt: skip
    assert panels[-1] == (1, 2)
    assert "| three digits | ppo_jax | grpo | 2 | 0.250 | 0.625 |" in reasoning.markdown(tmp_path)


def test_agents_that_are_alone_are_rows_of_their_own_beside_those_of_trl(tmp_path, monkeypatch):
    options = reasoning.Options(
        methods=("grpo",), parts=("methods", "trl"), peer_seeds=1, runs=tmp_path, out=tmp_path,
        image=tmp_path,
    )  # fmt: skip
    finished(tmp_path / "grpo", [0.75, 1.0])
    finished(tmp_path / "grpo_seed_0", [0.875])
    numbers = {"start_pass_at_1": 0.25, "start_pass_at_k": 0.5, "pass_at_1": 0.5, "pass_at_k": 0.75}
    found = {"seed": 0, "agents": 1, **numbers, "length": 4.0, "updates": 20, "responses": 40}
    found |= {"train_seconds": 12.0, "tokens_per_second": 3, "versions": "trl=0"}
    monkeypatch.setattr(reasoning.peer, "run", lambda *arguments: found)
    reasoning.main(options)
    rows = reasoning.read(tmp_path / "reasoning.csv")
    agents = [(row["implementation"], row["agents"], row["seed"]) for row in rows]
    assert agents == [
        ("ppo_jax", "2", "0"), ("ppo_jax", "2", "1"), ("ppo_jax", "1", "0"), ("TRL", "1", "0"),
    ]  # fmt: skip
    assert "\nTokens per second, ppo_jax / TRL: 3.00\n" in reasoning.markdown(tmp_path)


def test_the_other_trainer_gets_the_same_learning_rate():
    assert reasoning_peer.schedule_of(1e-3) == {"learning_rate": 1e-3, "warmup": 0.0}
    same = {"learning_rate": 6e-4, "warmup": 0.1, "anneal": True}
    assert reasoning_peer.schedule_of(schedules.parse("linear(6e-4, 0, warmup=0.1)")) == same
    for other in ("cosine(6e-4, 0)", "linear(6e-4, 1e-5)"):
        with pytest.raises(SystemExit, match="TRL decays it linearly to 0"):
            reasoning_peer.schedule_of(schedules.parse(other))
