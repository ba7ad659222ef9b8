"""pass@1 and KL of an agent from all responses of a small task, beside the best possible policy.

A policy's pass@1 is the probability that its response, sampled at temperature 1, is right. It is at
most the best pass@1 of all policies whose mean KL to the reference is not larger
(`ppo_jax.rlhf.optimum.under_budget`), where the reference is the agent after its fine-tuning.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.reasoning.agents import take
from ppo_jax.rlhf.reasoning.measure import CORRECT
from ppo_jax.rlhf.tasks import enumeration, tokens
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.types import Params

# The numbers are left out for tasks with more responses, and are those of at most so many problems.
MOST_RESPONSES, MOST_PROBLEMS = 3_000, 64
NAMES = ("exact_pass_at_1", "exact_kl", "best_pass_at_1")
# (seed of the agent, counted from 0, parameters of the agent) -> name -> number
Compare = Callable[[int, Params], dict[str, float]]


def comparison(task: Any, decoder: Decoder, prompts: jax.Array, reference: Params) -> Compare:
    """The function that compares agents with the best policy at their KL.

    Args:
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        prompts: [H, P] held-out problems, of which the first MOST_PROBLEMS different ones count.
        reference: parameters [S, ...] of the agents after the fine-tuning.

    Returns:
        A function (seed, parameters) -> the numbers of `numbers`; of {} if the task has more than
        MOST_RESPONSES responses.
    """
    if enumeration.count(tokens.size(task.vocabulary), task.response_length) > MOST_RESPONSES:
        return lambda seed, params: {}

    def of_all(params: Params, prompts: jax.Array) -> jax.Array:
        return enumeration.log_probs(task, decoder, params, prompts)

    log_prob = jax.jit(of_all, compiler_options=compiler_options())

    @functools.cache
    def problems() -> tuple[jax.Array, np.ndarray]:
        chosen = jnp.asarray(different(np.asarray(prompts))[:MOST_PROBLEMS])
        return chosen, enumeration.rewards(task, chosen) > CORRECT

    @functools.cache
    def log_ref(seed: int) -> np.ndarray:
        return np.asarray(log_prob(take(reference, seed), problems()[0]))

    def compare(seed: int, params: Params) -> dict[str, float]:
        chosen, right = problems()
        return numbers(np.asarray(log_prob(params, chosen)), log_ref(seed), right)

    return compare


def different(prompts: np.ndarray) -> np.ndarray:
    """The different rows of prompts [H, P], in the order in which they first occur."""
    return prompts[np.sort(np.unique(prompts, axis=0, return_index=True)[1])]


def numbers(log_prob: np.ndarray, log_ref: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """A policy beside the best one at its KL.

    pass@1 = E_x Σ_y π(y|x) right(x, y),   KL = E_x Σ_y π(y|x) (log π(y|x) − log π_ref(y|x))

    Args:
        log_prob: [N, Y] log-probabilities of all responses to N problems under the policy.
        log_ref: [N, Y] log-probabilities under the reference.
        right: [N, Y] whether the responses are right.

    Returns:
        `exact_pass_at_1` and `exact_kl`, in nats per response, of the policy; `best_pass_at_1`, the
        highest pass@1 of all policies with at most this mean KL over the N problems.
    """
    probability = np.exp(log_prob.astype(np.float64))
    kl = np.mean(np.sum(probability * (log_prob - log_ref), axis=1))
    log_right = np.logaddexp.reduce(np.where(right, log_ref, -np.inf), axis=1)
    best = enumeration.best_pass_at_1(jnp.asarray(log_right, jnp.float32), max(float(kl), 0.0))
    return {
        "exact_pass_at_1": float(np.mean(np.sum(probability * right, axis=1))),
        "exact_kl": float(kl),
        "best_pass_at_1": float(jnp.mean(best.score)),
    }
