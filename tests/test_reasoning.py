"""`ppo-jax rlhf reason`: many agents in one program, a run from beginning to end, refusals."""

import csv
import json
import re
import signal
import subprocess
import sys
import time

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import documents
from ppo_jax import guard
from ppo_jax.cli import reason as plans
from ppo_jax.cli import rlhf as command
from ppo_jax.config import ConfigError
from ppo_jax.config.schedules import Schedule
from ppo_jax.rlhf import rollout
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.reasoning import agents, exact, measure, optimise, report, start
from ppo_jax.rlhf.tasks import split, tokens

# The smallest size that includes all parts.
TINY = (
    *("--difficulty", "digits=1", "--hidden-size", "8", "--num-layers", "1", "--num-heads", "2"),
    *("--worked-examples", "8", "--sft-updates", "20", "--sft-batch-size", "4", "--seeds", "2"),
    *("--num-prompts", "2", "--group-size", "2", "--eval-problems", "4", "--eval-samples", "2"),
    *("--updates", "4", "--eval-every", "2", "--minibatches", "1", "--samples", "1"),
)


def run(*arguments):
    return command._refusing(["reason", *map(str, arguments)])


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{n: x for n, x in row.items() if not n.endswith("_per_second")} for row in found]


def values(*arguments):
    return command._values("reason", [*map(str, arguments)], command.KINDS["reason"])[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two configurations with two seeds."""
    folder = tmp_path_factory.mktemp("reason") / "run"
    assert run(*TINY, "--vary", "learning_rate=1e-20,1e-2", "--run-dir", folder) == 0
    return folder


def test_a_run_ends_with_models_numbers_and_figures(trained):
    found = json.loads((trained / "summary.json").read_text())
    assert (found["status"], found["updates"]) == ("finished", 4)
    assert [x["point"] for x in found["configurations"]] == [
        {"learning_rate": pytest.approx(1e-20)},
        {"learning_rate": pytest.approx(0.01)},
    ]
    with (trained / "results.csv").open() as file:
        table = [*csv.DictReader(file)]
    assert [row["seed"] for row in table] == ["0", "1", "0", "1"]
    assert [row["start_pass_at_1"] for row in table[:2]] == [
        row["start_pass_at_1"] for row in table[2:]
    ]
    for row in table[:2]:  # nothing changes at such a small learning rate
        assert row["pass_at_1"] == row["start_pass_at_1"]
    decoder, _ = load_model(trained / "model")
    assert decoder.config.hidden_size == 8
    for name in ("reasoning.png", "learning_curve.png", "fine_tuning/metrics.jsonl"):
        assert (trained / name).stat().st_size > 0


def test_the_log_has_the_metrics_of_the_documentation(trained):
    log = rows(trained)
    assert [row["update"] for row in log] == [1, 2, 3, 4]
    assert [("eval_pass_at_1" in row) for row in log] == [False, True, False, True]
    assert "eval_pass_at_1_low" not in log[1]  # an interval of different configurations
    for name in ("eval_pass_at_2", "eval_pass_at_1_agent_3", "kl",
                 "groups_without_spread", "response_length", "score"):  # fmt: skip
        assert 0 <= log[1][name] <= 10
    each = [log[1][optimise.agent_column(a)] for a in range(4)]
    assert log[1]["eval_pass_at_1"] == pytest.approx(np.mean(each))
    assert log[-1]["responses"] == 4 * 4 * 2 * 2


def test_every_column_of_the_logs_is_in_the_documentation(trained):
    page = (documents.ROOT / "docs/reasoning.md").read_text()
    names = {*rollout.METRICS, *rollout.IMPORTANCE_METRICS, "draws", "kl_loss"}
    for folder in (trained, trained / "fine_tuning"):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            names |= {*json.loads(line)}
    # The page has the numbers of eight samples and of the first agent.
    shown = lambda name: re.sub(r"agent_\d+$", "agent_0", re.sub("pass_at_2$", "pass_at_8", name))
    written = {shown(name) for name in names}
    assert {"eval_pass_at_8", "eval_pass_at_1_agent_0", "share_started"} <= written
    assert [name for name in sorted(written) if f"`{name}`" not in page] == []


def test_the_results_compare_each_agent_with_the_best_at_its_kl(trained):
    last = rows(trained)[-1]
    with (trained / "results.csv").open() as file:
        table = [*csv.DictReader(file)]
    for agent, row in enumerate(table):
        for name in exact.NAMES:
            column = optimise.agent_column(agent, name)
            assert float(row[name]) == pytest.approx(last[column], rel=1e-4, abs=1e-9)
        assert float(row["start_exact_kl"]) == 0.0
        assert float(row["exact_pass_at_1"]) <= float(row["best_pass_at_1"]) + 1e-4
    for row in table[:2]:  # nothing changes at such a small learning rate
        assert abs(float(row["exact_kl"])) < 1e-6


def plan(*arguments):
    return plans.plan_of(values(*TINY, *arguments))


def test_an_agent_that_diverges_stops_alone():
    def step(state, frozen, floats):
        found = guard.check([guard.Part("x", state + floats)])
        return state + floats, {"x": state}, found

    advance = agents.together(step)
    start = jnp.array([1.0, 2.0, 3.0])
    state, metrics, found = advance(start, start, jnp.array([1.0, jnp.inf, 1.0]))
    assert state.tolist() == [2.0, 2.0, 4.0]
    assert float(metrics["x"]) == 2.0  # the mean of the first and the third agent
    assert int(metrics["diverged"]) == 1 and not bool(found.bad)
    assert bool(advance(start, start, jnp.full(3, jnp.nan))[2].bad)


def test_the_measurement_of_a_perfect_model():
    tiny = plan()
    problems = tiny.task.problems(jax.random.key(1), 5, True)
    answers = jax.vmap(tiny.task.solve)(problems)
    assert measure.not_padding(answers).sum(axis=1).tolist() == [3] * 5  # two digits and <eos>
    assert float(jax.vmap(tiny.task.reward)(problems, answers).min()) == 1.0 > measure.CORRECT > 0.5
    assert tokens.decode(tiny.task.vocabulary, np.asarray(answers[0])).isdigit()


def test_pass_at_1_is_greedy_and_pass_at_k_needs_one_correct_sample():
    rewards = {0.0: [1, 1, 0, 1], 1.0: [0, 0, 1, 1], 2.0: [0, 0, 0, 1]}
    keys = jax.random.split(jax.random.key(0), 2)

    def respond(params, key, temperature):
        second = bool(jnp.all(jax.random.key_data(key) == jax.random.key_data(keys[1])))
        reward = rewards[float(temperature) * (1 + second)]
        mask = np.arange(3) < (3 if temperature == 0 else 2)
        return measure.Verified(None, np.tile(mask, (4, 1)), np.array(reward))

    held = measure.Held(None, respond, 2, jax.random.key(0))
    assert measure.measured(held, {}, 1.0) == {
        "pass_at_1": 0.75,
        "pass_at_k": 0.5,
        "sampled_pass_at_1": 0.375,
        "length": 2.0,
    }


def test_the_results_of_a_configuration_are_those_of_its_seeds():
    varied = plan("--vary", "temperature=0.5,1")
    before = {name: np.array([0.1, 0.3, 0.1, 0.3]) for name in ("pass_at_1", "pass_at_k")}
    after = {name: np.array([0.2, 0.4, 0.6, 1.0]) for name in ("pass_at_1", "pass_at_k", "length")}
    first, second = report.configurations(varied, before, after)
    assert (first["point"], second["point"]) == ({"temperature": 0.5}, {"temperature": 1.0})
    assert (first["pass_at_1"], second["pass_at_1"]) == (pytest.approx(0.3), pytest.approx(0.8))
    assert (second["worst"], second["best"], second["start_pass_at_1"]) == (0.6, 1.0, 0.2)
    assert second["interval"] == [0.6, 1.0]  # of two seeds


def test_the_interval_is_that_of_the_seeds_of_one_configuration():
    found = {"pass_at_1": np.array([0.25, 0.75]), "pass_at_k": np.ones(2)}
    one = optimise.summary_of(found, 8)
    assert (one["eval_pass_at_1_low"], one["eval_pass_at_1_high"]) == (0.25, 0.75)
    assert (one["eval_pass_at_1_agent_1"], one["eval_pass_at_8"]) == (0.75, 1.0)
    two = optimise.summary_of(found, 8, configurations=2)
    assert {*one} - {*two} == {"eval_pass_at_1_low", "eval_pass_at_1_high"}


def test_training_has_no_problem_of_the_evaluation():
    tiny = plan()
    held = lambda prompts: jax.vmap(lambda p: split.is_held_out(identity(p)))(prompts)
    identity = lambda p: jnp.sort(tiny.task._summands(p))
    assert bool(held(optimise.held_out(tiny).prompts).all())
    key = jax.random.key(3)
    drawn = jax.jit(jax.vmap(lambda update: tiny.problems(key, update)))(jnp.arange(20))
    drawn = drawn.reshape(40, -1)
    assert not bool(held(drawn).any())
    parts = start._Parts(tiny.task, tiny.decoder, tiny.reason)
    examples = jax.jit(lambda seed: start._rows(seed, parts))(jnp.uint32(0)).obs["tokens"][
        :, : tiny.task.prompt_length
    ]
    assert len(examples) == 8 and not bool(held(examples).any())


@pytest.mark.slow
def test_an_agent_alone_has_the_numbers_that_it_has_among_others():
    # The penalty alone gives rewards to random weights; the default rate begins at 0.
    both = plan("--kl-coef", "1", "--learning-rate", "5e-4")
    params, reference = (both.decoder.init(jax.random.key(i)) for i in (0, 1))
    step = optimise._make_step(both)
    first = jax.jit(lambda seed: optimise.first_state(both, seed, params, {}))
    states = [first(jnp.uint32(seed)) for seed in (0, 1)]
    stack = lambda *leaves: jnp.stack(leaves)
    advance = jax.jit(agents.together(step, may_be_nan=optimise.MAY_BE_NAN))
    twice = jax.tree.map(stack, reference, reference)
    among, _, _ = advance(jax.tree.map(stack, *states), twice, {})
    alone, _, _ = jax.jit(step)(states[1], reference, {})
    apart = agents.take(among, 1)
    assert jnp.array_equal(jax.random.key_data(apart.key), jax.random.key_data(alone.key))
    for name in ("score", "response_length", "kl"):
        near = pytest.approx(float(alone.rollout.metrics[name]), abs=1e-4)
        assert float(apart.rollout.metrics[name]) == near
    flat = lambda state: jax.flatten_util.ravel_pytree(state.learner.params)[0]
    assert jnp.abs(flat(apart) - flat(alone)).max() < 3e-5  # a step is about 5e-4
    assert jnp.abs(flat(apart) - flat(agents.take(among, 0))).max() > 1e-4


def test_a_varied_learning_rate_replaces_the_schedule_of_the_default():
    varied = plan("--vary", "learning_rate=1e-4,3e-4")
    assert isinstance(plan().hyper.learning_rate, Schedule)
    assert isinstance(varied.hyper.learning_rate, float)
    assert [point["learning_rate"] for point in varied.points] == [1e-4, 3e-4]


def test_the_agents_are_all_seeds_of_each_configuration():
    varied = plan("--vary", "temperature=0.5,1", "--vary", "kl_coef=0,0.1")
    assert varied.agents == 8
    assert varied.floats()["temperature"].tolist() == [0.5] * 4 + [1.0] * 4
    assert varied.floats()["kl_coef"].tolist() == pytest.approx([0, 0, 0.1, 0.1] * 2)
    config, hyper = varied.of_agent({"temperature": 0.5, "learning_rate": 7.0})
    assert (config.temperature, hyper.learning_rate, config.kl_coef) == (0.5, 7.0, 0.0)


REFUSALS = {
    ("--task", "additoin"): "unknown task 'additoin'",
    ("--difficulty", "digits"): "write digits=VALUE",
    ("--difficulty", "digits=two"): "task 'addition digits=two'",
    ("--difficulty", "digits=99"): "digits",
    ("--difficulty", "figures=2"): "'figures'",
    ("--num-heads", "3"): "hidden_size is 8",
    ("--vary", "learning_rate"): "--vary is 'learning_rate'",
    ("--vary", "num_prompts=2,4"): "only real numbers can vary",
    ("--vary", "seed=1,2"): "seeds are set by --seeds",
    ("--vary", "temperature=0,1"): "temperature",
    ("--vary", "learning_rate=1e-3,linear(1e-3, 0)"): "learning_rate",
    ("--max-new-tokens", "3"): "unknown option --max-new-tokens",
    ("--group-size", "1"): "group_size is 1",
    ("--minibatches", "3"): "cannot be split evenly",
    ("--stop-at", "0.5", "--eval-every", "none"): "--eval-every",
    ("--sft-updates", "25"): "must be a multiple of 10, because pass@1 is measured after every 10: "
    "use 20 or 30",
    ("--sft-batch-size", "9"): "there are 8 worked examples; use --sft-batch-size 8",
    ("--preset", "n_plus"): "unknown option --preset",
}


@pytest.mark.parametrize("words", REFUSALS, ids=" ".join)
def test_refused_before_anything_is_written(words, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(*TINY, *words, "--run-dir", tmp_path / "run")
    assert REFUSALS[words] in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_fewer_updates_than_a_run_has_are_refused_before_anything_compiles(trained, monkeypatch):
    def compiles(*_):
        raise AssertionError("the fine-tuning was put together")

    monkeypatch.setattr(start, "fine_tuning", compiles)
    config = (trained / "config.json").read_bytes()
    with pytest.raises(
        ConfigError, match="--updates is 3, .* already made 4 updates .* at least 4"
    ):
        run("--resume", trained, "--updates", "3")
    assert (trained / "config.json").read_bytes() == config
    with pytest.raises(AssertionError, match="was put together"):  # as many updates are allowed
        run("--resume", trained, "--updates", "4")


def test_evaluate_refuses_the_run_with_a_remedy(trained):
    with pytest.raises(ConfigError, match="give --prompts FILE and --reward"):
        command._refusing(["evaluate", str(trained)])


@pytest.mark.slow
def test_a_stopped_run_continues_with_the_same_numbers(tmp_path):
    words = [*TINY, "--updates", "2000", "--eval-every", "500", "--checkpoint-seconds", "0"]
    words += ["--run-dir"]
    assert run(*words, tmp_path / "whole") == 0
    part = tmp_path / "part"
    process = subprocess.Popen([sys.executable, "-m", "ppo_jax.rlhf", "reason", *words, str(part)])
    while process.poll() is None and not (part / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT
    assert run("--resume", part) == 0
    assert rows(part) == rows(tmp_path / "whole")
    results = [(folder / "results.csv").read_text() for folder in (part, tmp_path / "whole")]
    assert results[0] == results[1] and "exact_kl" in results[0]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "rloo"])
def test_every_algorithm_trains(algorithm, tmp_path):
    assert run(*TINY, "--algorithm", algorithm, "--run-dir", tmp_path / "run") == 0
    assert all(np.isfinite(row["score"]) for row in rows(tmp_path / "run"))


@pytest.mark.slow
def test_the_default_run_learns_to_add(tmp_path):
    """Two-digit addition with the default options, and fewer evaluations."""
    folder = tmp_path / "run"
    assert run("--run-dir", folder, "--eval-every", "100") == 0
    found = json.loads((folder / "summary.json").read_text())["configurations"][0]
    assert found["start_pass_at_1"] <= 0.5
    assert found["pass_at_1"] >= 0.9
