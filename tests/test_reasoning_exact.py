"""pass@1 and KL from all responses, beside the best policy at this KL."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf import tasks
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.reasoning import exact, optimise, report
from ppo_jax.rlhf.tasks import enumeration, tokens

TASK = tasks.make("subtraction", digits=1)  # 211 responses of at most two tokens


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def policies(seed, scale):
    """Log-probabilities [2, 3, 8] of a policy and of a reference, and the right responses."""
    rng = np.random.default_rng(seed)
    policy, reference = log_softmax(scale * rng.normal(size=(2, 3, 8)))
    right = np.zeros((3, 8), bool)
    right[0, 2] = right[1, 5] = right[1, 6] = True  # nothing is right for the third problem
    return policy, reference, right


def test_the_numbers_are_sums_over_all_responses():
    policy, reference, right = policies(0, 1.0)
    found = exact.numbers(policy, reference, right)
    p, q = np.exp(policy), np.exp(reference)
    solved = (p[0, 2] + p[1, 5] + p[1, 6]) / 3
    kl = sum(p[i, j] * np.log(p[i, j] / q[i, j]) for i, j in np.ndindex(3, 8)) / 3
    assert found["exact_pass_at_1"] == pytest.approx(solved)
    assert found["exact_kl"] == pytest.approx(kl)
    # A search over the probabilities of a right response to both problems that can be solved.
    start = [q[0, 2], q[1, 5] + q[1, 6]]
    grid = np.linspace(1e-6, 1 - 1e-6, 1001)
    each = [grid * np.log(grid / x) + (1 - grid) * np.log((1 - grid) / (1 - x)) for x in start]
    allowed = (each[0][:, None] + each[1]) / 3 <= kl
    best = np.where(allowed, (grid[:, None] + grid) / 3, 0).max()
    assert found["best_pass_at_1"] == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize(("seed", "scale"), [*itertools.product(range(5), (0.01, 1.0, 4.0))])
def test_no_policy_is_above_the_best_at_its_kl(seed, scale):
    found = exact.numbers(*policies(seed, scale))
    assert found["exact_pass_at_1"] <= found["best_pass_at_1"] + 2e-6


@pytest.mark.parametrize("kl_coef", [0.1, 0.5, 2.0, 20.0])
def test_the_optimal_policy_is_on_the_frontier(kl_coef):
    """π ∝ π_ref exp(r / β) with the same β for all problems."""
    _, reference, right = policies(1, 1.0)
    policy = log_softmax(reference + right / kl_coef)
    found = exact.numbers(policy, reference, right)
    assert found["exact_pass_at_1"] == pytest.approx(found["best_pass_at_1"], abs=1e-4)
    apart = log_softmax(reference + right / np.array([[0.2], [5.0], [1.0]]))
    other = exact.numbers(apart, reference, right)
    assert other["exact_pass_at_1"] < other["best_pass_at_1"] - 1e-3


@pytest.fixture(scope="module")
def models():
    """A decoder and the parameters [2, ...] of two references, and of another model."""
    size = tokens.size(TASK.vocabulary)
    decoder = Decoder(small(size, eos_ids=(tokens.EOS,), hidden_size=8, num_layers=1, num_heads=2))
    draw = lambda key: jax.tree.map(lambda x: 4 * x, decoder.init(key))
    both = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0)))
    return decoder, both, jax.jit(draw)(jax.random.key(5))


def test_agents_are_compared_with_the_reference_of_their_seed(models):
    decoder, references, params = models
    prompts = TASK.problems(jax.random.key(1), 40, True)
    compare = exact.comparison(TASK, decoder, prompts, references)
    for seed in (0, 1):
        same = compare(seed, jax.tree.map(lambda x, i=seed: x[i], references))
        assert same["exact_kl"] == 0.0
        assert same["best_pass_at_1"] == pytest.approx(same["exact_pass_at_1"], abs=1e-4)
        found = compare(seed, params)
        assert found["exact_kl"] > 0.1
        assert found["exact_pass_at_1"] <= found["best_pass_at_1"]
    assert compare(0, params)["exact_kl"] != compare(1, params)["exact_kl"]
    # Each problem counts once, however often it is drawn.
    again = exact.comparison(TASK, decoder, jnp.concatenate([prompts, prompts[:7]]), references)
    assert again(0, params) == compare(0, params)


def test_pass_at_1_is_that_of_all_responses_read_one_by_one(models):
    decoder, references, params = models
    prompts = exact.different(np.asarray(TASK.problems(jax.random.key(1), 40, True)))
    found = exact.comparison(TASK, decoder, prompts, references)(0, params)
    right = enumeration.right_log_prob(TASK, decoder, params, prompts)
    assert found["exact_pass_at_1"] == pytest.approx(float(jnp.exp(right).mean()), abs=1e-5)


def test_at_most_so_many_different_problems_count(models, monkeypatch):
    decoder, references, params = models
    prompts = exact.different(np.asarray(TASK.problems(jax.random.key(1), 40, True)))
    expected = exact.comparison(TASK, decoder, prompts[:3], references)(0, params)
    monkeypatch.setattr(exact, "MOST_PROBLEMS", 3)
    assert len(prompts) > 3
    assert exact.comparison(TASK, decoder, prompts, references)(0, params) == expected


def test_different_problems_keep_their_order():
    prompts = np.array([[3, 1], [2, 9], [3, 1], [0, 5], [2, 9]])
    assert exact.different(prompts).tolist() == [[3, 1], [2, 9], [0, 5]]


def test_the_numbers_are_left_out_for_tasks_with_many_responses(models):
    """Two-digit sums have 41,371 responses, and nothing is computed for them."""
    large = tasks.make("addition", digits=2)
    assert exact.comparison(large, None, None, None)(0, None) == {}
    assert report.exact_table([{"pass_at_1": 0.5}]) is None


def test_metrics_have_a_column_for_each_agent():
    found = {name: np.array([0.25, 0.75]) for name in ("pass_at_1", "length", *exact.NAMES)}
    row = optimise.summary_of(found, 8)
    assert (row["eval_exact_kl"], row["eval_best_pass_at_1_agent_1"]) == (0.5, 0.75)
    assert "eval_length_agent_0" not in row
    one = optimise.summary_of({name: x[:1] for name, x in found.items()}, 8)
    assert one["eval_exact_pass_at_1"] == 0.25 and "eval_exact_pass_at_1_agent_0" not in one


def test_the_table_has_a_row_for_each_configuration():
    points = [{"kl_coef": 0.0}, {"kl_coef": 0.1}]
    found = [
        {"point": x, "exact_pass_at_1": 0.5, "exact_kl": 1.25, "best_pass_at_1": 0.75}
        for x in points
    ]
    table = report.exact_table(found)
    assert table.row_count == 2
    assert [[*column.cells][1] for column in table.columns[1:]] == ["0.500", "1.250", "0.750"]
