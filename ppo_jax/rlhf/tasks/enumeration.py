"""The best pass@1 of a task under a KL budget, from all of its responses.

pass@1 is the probability that one response, sampled at temperature 1, is right. A reward of 0 or 1
divides the responses to a prompt into right and wrong ones. Within both groups the optimal policy
has the proportions of the reference, so that the probability p of a right response determines the
optimum:

q = p e^{1/β} / (1 − p + p e^{1/β}),   KL = q log(q / p) + (1 − q) log((1 − q) / (1 − p))
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import optimum
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import TokenInputs, log_prob_of
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.rlhf.tasks.protocol import Task
from ppo_jax.types import Params

MOST_TOKENS = 4  # of a response: 15 token ids have 41,371 responses of at most 4 tokens


def responses(num_tokens: int, length: int) -> np.ndarray:
    """All responses: those that end with <eos>, followed by padding, and those without <eos>.

    Args:
        num_tokens: V, number of token ids.
        length: R, maximum number of tokens of a response.

    Returns:
        [Y, R] int32 token ids, Y = Σ_{k<=R} (V − 1)^k.
    """
    others = [i for i in range(num_tokens) if i != tokens.EOS]
    rows = [
        (*start, tokens.EOS, *[tokens.PAD] * (length - k - 1))
        for k in range(length)
        for start in itertools.product(others, repeat=k)
    ]
    rows += itertools.product(others, repeat=length)
    return np.asarray(rows, np.int32)


def count(num_tokens: int, length: int) -> int:
    """Y, the number of responses that `responses` lists, from V token ids and R tokens."""
    return sum((num_tokens - 1) ** k for k in range(length + 1))


def rewards(task: Task, prompts: jax.Array) -> np.ndarray:
    """Rewards [N, Y] of all responses to each of N prompts [N, P], in the order of `responses`."""
    rows = responses(tokens.size(task.vocabulary), task.response_length)
    reward = jax.jit(jax.vmap(task.reward, (None, 0)))
    return np.stack([np.asarray(reward(prompt, rows)) for prompt in prompts])


def log_probs(task: Task, decoder: Decoder, params: Params, prompts: jax.Array) -> jax.Array:
    """Log-probabilities of all responses at temperature 1; their probabilities sum to 1.

    Responses with the same beginning share its distributions of the next token, so that the model
    reads (V − 1)^{R − 1} texts for each prompt instead of Y.

    Args:
        task: the task.
        decoder: architecture of the model.
        params: parameters of the model.
        prompts: [N, P] prompts.

    Returns:
        [N, Y] log-probabilities in nats, in the order of `responses`.
    """
    size, length = tokens.size(task.vocabulary), task.response_length
    others = np.array([i for i in range(size) if i != tokens.EOS], np.int32)
    starts = np.array([*itertools.product(others, repeat=length - 1)], np.int32)

    def of_prompt(prompt: jax.Array) -> jax.Array:
        before = jnp.broadcast_to(prompt, (len(starts), prompt.shape[0]))
        hidden = decoder.hidden(params, jnp.concatenate([before, starts], axis=1), last=length)
        step = jax.nn.log_softmax(decoder.logits(params, hidden)[..., :size])
        begun, ended = jnp.zeros(1), []
        for k in range(length):
            after = step[:: len(others) ** (length - 1 - k), k]  # each start of k tokens once
            ended.append(begun + after[:, tokens.EOS])
            begun = (begun[:, None] + after[:, others]).reshape(-1)
        return jnp.concatenate([*ended, begun])

    return jax.lax.map(of_prompt, prompts)


def right_log_prob(task: Task, decoder: Decoder, params: Params, prompts: jax.Array) -> jax.Array:
    """Log-probabilities log p that a model answers right, over all responses of a task.

    Args:
        task: the task, whose responses have at most `MOST_TOKENS` tokens.
        decoder: architecture of the model.
        params: parameters of the model.
        prompts: [N, P] prompts.

    Returns:
        [N] log-probabilities; −∞ for a prompt without a right response.

    Raises:
        ValueError: the responses of the task are too long to be enumerated.
    """
    if task.response_length > MOST_TOKENS:
        raise ValueError(
            f"{task} has responses of up to {task.response_length} tokens; all responses can be "
            f"enumerated up to {MOST_TOKENS} tokens, for example with fewer digits"
        )
    rows = responses(tokens.size(task.vocabulary), task.response_length)
    right = rewards(task, prompts) > 0
    most = int(max(right.sum(axis=1).max(), 1))
    # The right responses of each prompt, and others up to the same number, which do not count.
    chosen = np.argsort(~right, axis=1, kind="stable")[:, :most]
    counts = np.take_along_axis(right, chosen, axis=1)
    log_prob = _log_prob(task, decoder, params, prompts, rows=rows[chosen])
    return jnp.asarray(np.logaddexp.reduce(np.where(counts, log_prob, -np.inf), axis=1))


def _log_prob(
    task: Task, decoder: Decoder, params: Params, prompts: jax.Array, *, rows: np.ndarray
) -> jax.Array:
    """Log-probabilities [N, M] of M responses [N, M, R] to each prompt [N, P]."""
    length, size = task.response_length, tokens.size(task.vocabulary)

    @jax.jit
    def of_prompt(prompt: jax.Array, response: jax.Array) -> jax.Array:
        start = jnp.broadcast_to(prompt, (response.shape[0], prompt.shape[0]))
        row = jnp.concatenate([start, response], axis=1)[:, None]
        each = log_prob_of(
            decoder, params, TokenInputs(row, jnp.ones_like(row)), length, valid_vocab=size
        )
        ended = jnp.cumsum(response == tokens.EOS, axis=1) - (response == tokens.EOS)
        return jnp.sum(jnp.where(ended > 0, 0.0, each), axis=1)

    return jnp.stack([of_prompt(*pair) for pair in zip(prompts, jnp.asarray(rows), strict=True)])


@jax.jit
def best_pass_at_1(log_right: jax.Array, budget: jax.Array | float) -> optimum.BestPolicy:
    """The best pass@1 of a policy whose mean KL to the reference is within a budget.

    Args:
        log_right: [N] log-probabilities log p that the reference answers right.
        budget: [] budget in nats per response, for the mean over the prompts.

    Returns:
        `optimum.under_budget`, whose scores are the probabilities of a right response.
    """
    p = jnp.exp(log_right)
    log_wrong = jnp.where(p < 1, jnp.log1p(-jnp.minimum(p, 1.0)), -jnp.inf)
    log_ref = jnp.stack([log_right, log_wrong], axis=1)
    score = jnp.broadcast_to(jnp.asarray([1.0, 0.0]), log_ref.shape)
    return optimum.under_budget(score, log_ref, budget)
