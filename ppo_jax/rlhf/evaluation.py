"""Evaluation of language models on held-out data."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import optimum
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.rollout import Responses, kl_of
from ppo_jax.types import Batch, LossFn, Metrics, Params

# One batch of responses: (PRNG key, (token ids [B, P], mask [B, P], ...)) -> Responses.
Respond = Callable[[jax.Array, tuple[jax.Array, ...]], Responses]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of the probability that at least one of k responses is correct.

    pass@k = 1 − C(n − c, k) / C(n, k)

    Args:
        samples: n, number of responses to the prompt.
        correct: c, number of correct responses among them.
        k: number of responses of which one has to be correct, 1 ≤ k ≤ n.

    Raises:
        ValueError: the numbers do not satisfy 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1, eq. 1.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {correct} correct among {samples} responses is not defined; k must be "
            "from 1 to the number of responses, and no more responses can be correct than there are"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_over_prompts(values: Any) -> tuple[float, float]:
    """The mean of all values and its standard error, with prompts as the independent samples.

    SE = s / √N, where s is the standard deviation of the N means of prompts with N − 1 degrees of
    freedom. Responses to the same prompt are not independent of each other.

    Args:
        values: [N, R] values of the R responses to each of N prompts.

    Returns:
        (mean, standard error; NaN for one prompt).
    """
    means = np.asarray(values, float).mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return float(means.mean()), float(error)


def make_text_metrics(decoder: Decoder) -> LossFn:
    """The loss of fine-tuning per token, and the accuracy of the most likely token.

    Args:
        decoder: architecture of the model.

    Returns:
        A function (params, Batch of `supervised.text_rows`) -> (loss [], {"loss", "accuracy"}),
        means over the tokens that have a weight.
    """

    def measure(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        tokens, mask = rows.obs["tokens"], rows.obs["mask"]
        hidden = decoder.hidden(params, tokens[:, :-1], mask[:, :-1])
        dist = decoder.distribution(params, hidden)
        wanted = tokens[:, 1:]
        log_prob = jnp.where(rows.weight > 0, dist.log_prob(wanted), 0.0)
        right = (dist.mode() == wanted).astype(jnp.float32)
        total = jnp.maximum(jnp.sum(rows.weight), 1.0)
        loss = -jnp.sum(rows.weight * log_prob) / total
        return loss, {"loss": loss, "accuracy": jnp.sum(rows.weight * right) / total}

    return measure


def responses_to(
    respond: Respond, key: jax.Array, prompts: tuple[Any, ...], size: int
) -> Responses:
    """A response to each prompt, sampled in batches of equal size, as arrays of NumPy.

    Args:
        respond: function that samples one batch.
        key: PRNG key.
        prompts: (token ids [N, P], mask [N, P]), and further arrays [N, ...] that `respond` takes.
        size: largest number of responses in a batch.

    Returns:
        Responses with N rows; `gap` is the largest of all batches.
    """
    arrays = [np.asarray(x) for x in prompts]
    count = len(arrays[0])
    batches = -(-count // size)
    size = -(-count // batches)
    parts = []
    for number in range(batches):
        # The last batch is filled up with the first prompts, so that all have the same shape.
        rows = np.arange(number * size, (number + 1) * size) % count
        chosen = tuple(jnp.asarray(x[rows]) for x in arrays)
        parts.append(jax.device_get(respond(jax.random.fold_in(key, number), chosen)))
    joined = jax.tree.map(
        lambda *x: np.max(x) if x[0].ndim == 0 else np.concatenate(x)[:count], *parts
    )
    return Responses(*joined)


def of_policy(responses: Responses, shaped: Any, kl_coef: float, rows: Any) -> dict[str, float]:
    """The objective J = E[r − β KL] of a policy, its standard error and its parts.

    The independent samples of the standard error are the prompts, as in `mean_over_prompts`.

    Args:
        responses: the responses to the evaluation prompts.
        shaped: [B] scores of the responses, after scaling, clipping and penalties.
        kl_coef: KL coefficient β.
        rows: [B] row of the prompt of each response.
    """
    total_kl = kl_of(responses)
    value, _ = optimum.objective(shaped, total_kl, kl_coef)
    each = np.asarray(shaped) - kl_coef * np.asarray(total_kl)
    prompts = np.unique(rows)
    _, error = mean_over_prompts(np.stack([[each[rows == row].mean()] for row in prompts]))
    parts = {name: np.asarray(x) for name, x in responses.score_parts.items()}
    return {
        "objective": value,
        **({} if math.isnan(error) else {"objective_standard_error": error}),
        "score": float(np.mean(responses.raw_score)),
        **{f"score_{n}": float(np.nanmean(x)) for n, x in parts.items() if not np.isnan(x).all()},
        "shaped_score": float(np.mean(shaped)),
        "kl": float(np.mean(total_kl)),
        "eos_rate": float(np.mean(responses.ended)),
        "response_length": float(np.mean(np.sum(responses.mask, axis=1))),
        "log_prob_gap": float(responses.gap),
        "responses": int(np.shape(shaped)[0]),
        "prompts": len(prompts),
    }


def named(found: dict[str, Any], about: str) -> dict[str, Any]:
    """The numbers of an evaluation with the prefix `eval_`, and a text about its data."""
    return {f"eval_{name}": x for name, x in found.items()} | {"eval_data": about}


def of_scores(
    scores: Any, *, threshold: float | None = None, pass_at: Sequence[int] = ()
) -> dict[str, float]:
    """Statistics of the scores of several responses to each prompt.

    Args:
        scores: [N, R] scores of the R responses to each of N prompts.
        threshold: score from which a response counts as correct; None for no accuracy.
        pass_at: values of k of pass@k; empty for 1 and R.

    Returns:
        score, score_standard_error and score_std; with a threshold also pass@k for each k, where
        pass@1 is the fraction of correct responses.
    """
    scores = np.asarray(scores, float)
    mean, error = mean_over_prompts(scores)
    found = {"score": mean, "score_standard_error": error, "score_std": float(scores.std())}
    if threshold is None:
        return found
    samples = scores.shape[1]
    correct = (scores >= threshold).sum(axis=1)
    for k in pass_at or sorted({1, samples}):
        found[f"pass@{k}"] = float(np.mean([pass_at_k(samples, int(c), k) for c in correct]))
    return found
