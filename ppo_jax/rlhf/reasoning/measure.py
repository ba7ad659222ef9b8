"""pass@1 and pass@k of an agent on held-out problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.runs.chunk import compiler_options
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


class Held(NamedTuple):
    """The held-out problems of a run, with a compiled function that answers them.

    All agents and all evaluations of a run have the same problems and random numbers.

    Attributes:
        prompts: [H, P] problems.
        respond: function (parameters of one agent, PRNG key, temperature) -> Verified [H].
        samples: k, number of sampled responses to each problem.
        key: PRNG key of the samples.
    """

    prompts: jax.Array
    respond: Callable[..., Verified]
    samples: int
    key: jax.Array


def hold(task: Any, decoder: Decoder, *, problems: int, samples: int, seed: int) -> Held:
    """The held-out problems of a run.

    Args:
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        problems: H, number of problems.
        samples: k, number of sampled responses to each problem.
        seed: seed of problems and samples.
    """
    key = jax.random.key(seed)
    draw = jax.jit(lambda key: task.problems(key, problems, True))
    prompts = draw(jax.random.fold_in(key, PROBLEMS))

    def respond(params: Params, key: jax.Array, temperature: jax.Array) -> Verified:
        return answer(key, params, prompts, task=task, decoder=decoder, temperature=temperature)

    compiled = jax.jit(respond, compiler_options=compiler_options())
    return Held(prompts, compiled, samples, jax.random.fold_in(key, RESPONSES))


def measured(held: Held, params: Params, temperature: float) -> dict[str, float]:
    """The numbers of one agent on held-out problems.

    Args:
        held: the problems.
        params: parameters of the agent.
        temperature: temperature τ of the samples.

    Returns:
        `pass_at_1`, the fraction of problems that the most likely response solves (greedy
        decoding); `pass_at_k`, the fraction that at least one of k samples solves, which is the
        unbiased estimate for k samples; `sampled_pass_at_1`, the fraction of samples that are
        correct; `length`, the mean number of tokens of the samples.

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1.
    """
    keys = jax.random.split(held.key, held.samples)
    greedy = held.respond(params, held.key, jnp.float32(0))
    sampled = [held.respond(params, key, jnp.float32(temperature)) for key in keys]
    solved = np.stack([np.asarray(x.reward) > CORRECT for x in sampled])
    return {
        "pass_at_1": float(np.mean(np.asarray(greedy.reward) > CORRECT)),
        "pass_at_k": float(np.mean(solved.any(axis=0))),
        "sampled_pass_at_1": float(np.mean(solved)),
        "length": float(np.mean([np.asarray(x.mask).sum(axis=1) for x in sampled])),
    }
