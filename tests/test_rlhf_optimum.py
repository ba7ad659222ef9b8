"""The best pass@1 under a KL budget, compared with a search over all policies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf import optimum, tasks
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.tasks import enumeration, tokens


def kl(policy, reference):
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(policy > 0, policy * np.log(policy / reference), 0.0)
    return terms.sum(axis=-1)


def simplex(steps):
    """All probabilities of three responses that are multiples of 1 / steps."""
    counts = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return np.asarray(counts) / steps


@pytest.mark.parametrize("budget", [0.01, 0.1, 0.5])
def test_the_best_policy_under_a_budget_is_that_of_a_search(budget):
    """One prompt with three responses of different scores."""
    reference, score = np.asarray([0.6, 0.3, 0.1]), np.asarray([0.0, 1.0, 3.0])
    policies = simplex(1000)
    allowed = kl(policies, reference) <= budget
    best = (policies[allowed] @ score).max()
    found = optimum.under_budget(score[None], np.log(reference)[None], budget)
    assert best <= found.score[0] + 1e-5
    np.testing.assert_allclose(found.score[0], best, atol=3e-3)
    np.testing.assert_allclose(found.kl[0], budget, atol=1e-4)


@pytest.mark.parametrize("budget", [0.05, 0.4])
def test_several_prompts_share_one_budget(budget):
    """Two prompts: a search over the probabilities of a right response to both."""
    p = np.asarray([0.05, 0.5])
    q = np.linspace(0, 1, 2001)
    each = [kl(np.stack([q, 1 - q], axis=1), np.asarray([x, 1 - x])) for x in p]
    allowed = (each[0][:, None] + each[1]) / 2 <= budget
    best = np.where(allowed, (q[:, None] + q) / 2, 0).max()
    found = enumeration.best_pass_at_1(jnp.log(p), budget)
    np.testing.assert_allclose(jnp.mean(found.score), best, atol=1e-3)
    np.testing.assert_allclose(jnp.mean(found.kl), budget, atol=1e-4)
    beta = float(found.kl_coef)
    tilted = p * np.exp(1 / beta) / (1 - p + p * np.exp(1 / beta))
    np.testing.assert_allclose(found.score, tilted, rtol=1e-3)
    # One budget for each prompt is no better than the same budget for their mean.
    apart = jax.vmap(lambda x: enumeration.best_pass_at_1(x[None], budget))(jnp.log(p))
    np.testing.assert_allclose(apart.kl[:, 0], budget, atol=1e-4)
    assert jnp.mean(apart.score) < jnp.mean(found.score)


def test_large_and_empty_budgets():
    p = jnp.asarray([0.25, 0.5, 0.0, 1.0])  # one prompt has no right response, one no wrong one
    free = enumeration.best_pass_at_1(jnp.log(p), 10.0)
    np.testing.assert_allclose(free.score, [1, 1, 0, 1])
    np.testing.assert_allclose(free.kl, [np.log(4), np.log(2), 0, 0], atol=1e-6)
    assert free.kl_coef == 0
    none = enumeration.best_pass_at_1(jnp.log(p), 0.0)
    np.testing.assert_allclose(none.score, p, atol=1e-4)
    np.testing.assert_allclose(none.kl, 0, atol=1e-6)
    same = optimum.under_budget(jnp.ones((2, 3)), jnp.log(jnp.full((2, 3), 1 / 3)), 0.1)
    np.testing.assert_allclose(same.score, 1)
    np.testing.assert_allclose(same.kl, 0, atol=1e-6)
    with pytest.raises(ValueError, match="same shape"):
        optimum.under_budget(jnp.ones((2, 3)), jnp.ones((3, 2)), 0.1)


@pytest.mark.parametrize("kl_coef", [1e-4, 0.1, 10.0])
def test_moments_of_a_reference_with_probabilities(kl_coef):
    """As many samples as the probabilities are multiples of 1 / 10 are the same reference."""
    counts, score = [6, 3, 1], [0.0, 1.0, 3.0]
    moments = jax.jit(optimum.optimal_moments)
    expected = moments(np.repeat(np.float32(score), counts)[None], kl_coef)
    found = moments(jnp.asarray([score]), kl_coef, np.log(np.float32([counts]) / 10))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    if kl_coef == 1e-4:  # the best response alone
        np.testing.assert_allclose(found["kl"], np.log(10), rtol=1e-5)


def test_all_responses_are_enumerated():
    rows = enumeration.responses(4, 3)
    assert len(rows) == 1 + 3 + 9 + 27 == len({tuple(row) for row in rows})
    assert enumeration.count(4, 3) == len(rows)
    for row in rows:
        end = [*row].index(tokens.EOS) if tokens.EOS in row else 3
        assert all(x == tokens.PAD for x in row[end + 1 :])


class Tiny:
    """A task of two characters, whose right responses are those with as many a as b."""

    vocabulary, prompt_length, response_length = "ab", 2, 3

    def reward(self, prompt, response):
        end = tokens.end(response)
        inside = jnp.arange(3) < end
        a, b = (jnp.sum(inside & (response == i)) for i in (3, 4))
        rest = jnp.all(~inside | (response >= 3))
        return (rest & (a == b) & (end < 3) & (prompt[1] == 3)).astype(jnp.float32)


@pytest.fixture(scope="module")
def tiny():
    """(decoder, parameters, prompts, log-probabilities of a right response)."""
    decoder = Decoder(small(5, eos_ids=(tokens.EOS,), hidden_size=8, num_layers=1, num_heads=2))
    params = jax.jit(lambda key: jax.tree.map(lambda x: 3 * x, decoder.init(key)))(
        jax.random.key(0)
    )
    prompts = np.asarray([[1, 3], [1, 4]], np.int32)
    return (
        decoder,
        params,
        prompts,
        np.asarray(enumeration.right_log_prob(Tiny(), decoder, params, prompts)),
    )


def test_the_probability_of_a_right_response_is_the_sum_over_all(tiny):
    decoder, params, prompts, found = tiny
    assert found[1] == -np.inf  # nothing is right after b
    rows = enumeration.responses(5, 3)[None]
    each = np.asarray(enumeration._log_prob(Tiny(), decoder, params, prompts[:1], rows=rows))
    np.testing.assert_allclose(np.exp(each).sum(), 1.0, atol=1e-4)
    right = np.asarray([[*row] in ([2, 0, 0], [3, 4, 2], [4, 3, 2]) for row in rows[0]])
    assert right.sum() == 3
    np.testing.assert_allclose(np.exp(found[0]), np.exp(each[0])[right].sum(), rtol=1e-4)
    # The two groups have the optimum of all responses.
    for budget in (0.05, 0.3):
        whole = optimum.under_budget(np.float32(right)[None], each, budget)
        groups = enumeration.best_pass_at_1(found[:1], budget)
        np.testing.assert_allclose(whole.score, groups.score, atol=1e-4)
        np.testing.assert_allclose(whole.kl, groups.kl, atol=1e-4)


def test_shared_beginnings_give_the_log_probability_of_each_response(tiny):
    """Each response is also read as a text of its own, in the order of `responses`."""
    decoder, params, prompts, log_right = tiny
    found = np.asarray(enumeration.log_probs(Tiny(), decoder, params, prompts))
    rows = np.broadcast_to(enumeration.responses(5, 3), (2, 85, 3))
    expected = enumeration._log_prob(Tiny(), decoder, params, prompts, rows=rows)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-5)
    right = enumeration.rewards(Tiny(), prompts) > 0
    assert right.sum(axis=1).tolist() == [3, 0]
    np.testing.assert_allclose(np.exp(found[0])[right[0]].sum(), np.exp(log_right[0]), rtol=1e-5)


@pytest.mark.slow
def test_the_probability_of_a_right_response_is_that_of_samples(tiny):
    decoder, params, prompts, found = tiny
    written = jax.jit(
        lambda key: generate(
            key, params, jnp.tile(prompts[:1], (4096, 1)), None, decoder=decoder,
            max_new_tokens=3, eos_id=tokens.EOS,
        )
    )(jax.random.key(1))  # fmt: skip
    right = np.asarray(jax.vmap(Tiny().reward, (None, 0))(prompts[0], written.tokens))
    assert 0.02 < np.exp(found[0]) < 0.98
    assert abs(right.mean() - np.exp(found[0])) < 4 * right.std() / 64


def test_long_responses_are_refused():
    with pytest.raises(ValueError, match="up to 5 tokens"):
        enumeration.right_log_prob(tasks.make("addition", digits=3), None, None, jnp.zeros((1, 9)))


@pytest.mark.slow
def test_the_best_pass_at_1_of_one_digit_sums():
    """07 and 7 are the same number, and no other response is right."""
    task = tasks.make("addition", digits=1)
    prompt = np.asarray([tokens.BOS, *tokens.encode(task.vocabulary, "3+4=")], np.int32)
    size = tokens.size(task.vocabulary)
    decoder = Decoder(small(size, eos_ids=(tokens.EOS,), hidden_size=8, num_layers=1, num_heads=2))
    params = jax.jit(lambda key: jax.tree.map(lambda x: 5 * x, decoder.init(key)))(
        jax.random.key(0)
    )
    (found,) = enumeration.right_log_prob(task, decoder, params, prompt[None])
    rows = [tokens.response_row(task.vocabulary, text, 3) for text in ("7", "70")]
    each = enumeration._log_prob(task, decoder, params, prompt[None], rows=np.stack(rows)[None])
    np.testing.assert_allclose(np.exp(found), np.exp(each).sum(), rtol=1e-4)
    best = enumeration.best_pass_at_1(found[None], 0.5)
    assert np.exp(found) < best.score[0] < 1
    np.testing.assert_allclose(best.kl[0], 0.5, atol=1e-3)
