"""pass@1 and pass@k of an agent on held-out problems, computed in one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.types import Params

# A response is correct if its reward is larger than this number; that of a correct one is 1.
CORRECT = 0.999
# Folded into the seed, for the PRNG keys of held-out problems and of the responses to them.
PROBLEMS, RESPONSES = 0x8E1D, 0x5A4C


class Verified(NamedTuple):
    """Responses with their rewards.

    Attributes:
        tokens: [B, R] token ids of the responses.
        mask: [B, R] mask, 1 for sampled tokens.
        reward: [B] rewards of the task's verifier.
    """

    tokens: jax.Array
    mask: jax.Array
    reward: jax.Array


def answer(
    key: jax.Array,
    params: Params,
    prompts: jax.Array,
    *,
    task: Any,
    decoder: Decoder,
    temperature: Any = 1.0,
) -> Verified:
    """Respond to prompts and verify the responses.

    Args:
        key: PRNG key.
        params: parameters of the decoder.
        prompts: [B, P] token ids, padded on the left.
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        temperature: temperature τ of sampling; 0 takes the most likely token.
    """
    written = generate(
        key,
        params,
        prompts,
        not_padding(prompts),
        decoder=decoder,
        max_new_tokens=task.response_length,
        temperature=temperature,
        eos_id=tokens.EOS,
        pad_id=tokens.PAD,
    )
    reward = jax.vmap(task.reward)(prompts, written.tokens)
    return Verified(written.tokens, written.mask, reward)


def not_padding(ids: jax.Array) -> jax.Array:
    """[B, L] mask of prompts or worked answers, 1 for tokens and 0 for padding."""
    return (ids != tokens.PAD).astype(jnp.int32)


def make_measure(
    task: Any, decoder: Decoder, *, problems: int, samples: int, seed: int
) -> Callable[[Params, jax.Array], dict[str, jax.Array]]:
    """A function that measures an agent on held-out problems.

    All agents and all evaluations of a run use the same problems and the same random numbers.

    Args:
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        problems: number of held-out problems.
        samples: k, number of sampled responses to each problem.
        seed: seed of problems and samples.

    Returns:
        A function (parameters, temperature τ of the samples) -> numbers []:
        `pass_at_1`, the fraction of problems that the most likely response solves (greedy
        decoding); `pass_at_k`, the fraction that at least one of k samples solves, which is the
        unbiased estimate for k samples; `sampled_pass_at_1`, the fraction of samples that are
        correct; `eval_length`, the mean number of tokens of the samples.

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1.
    """
    key = jax.random.fold_in(jax.random.key(seed), PROBLEMS)
    sampling = jax.random.fold_in(jax.random.key(seed), RESPONSES)

    def measure(params: Params, temperature: jax.Array) -> dict[str, jax.Array]:
        prompts = task.problems(key, problems, True)
        model: dict[str, Any] = {"task": task, "decoder": decoder}
        greedy = answer(sampling, params, prompts, temperature=0.0, **model)
        again = jnp.repeat(prompts, samples, axis=0)
        sampled = answer(sampling, params, again, temperature=temperature, **model)
        solved = (sampled.reward > CORRECT).reshape(problems, samples)
        return {
            "pass_at_1": jnp.mean(greedy.reward > CORRECT),
            "pass_at_k": jnp.mean(jnp.any(solved, axis=1)),
            "sampled_pass_at_1": jnp.mean(solved),
            "length": jnp.mean(jnp.sum(sampled.mask, axis=1).astype(jnp.float32)),
        }

    return measure
