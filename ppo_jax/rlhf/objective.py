"""The policy loss of language models, one function whose options are the published variants.

    L = (1 / N) Σ_i Σ_t a_it c_it l_it

    l_it   loss of token t of response i: the clipped objective of PPO or that of CISPO, of the
           probability ratio of the token or of the whole response
    c_it   coefficient of the token (`ppo_jax.rlhf.selection`): importance weight, and 0 where its
           entropy is too low
    a_it   weight of the token in the mean: `token_weights`

`ppo_jax.config.rlhf.METHODS` lists the options of each algorithm by name.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax import losses
from ppo_jax.divergences import MAX_LOG_RATIO
from ppo_jax.types import Batch, Metrics


def surrogate(new: losses.Prediction, rows: Batch, config: Any) -> tuple[jax.Array, Metrics]:
    """The loss of each token, times its coefficient and its weight in the mean.

    Args:
        new: prediction for M responses, from `losses.predict`.
        rows: Batch with leaves [M, L]. `extra` may have "coefficient" and "aggregation", [M, L].
        config: Config with clip_eps, clip_eps_high, dual_clip, ratio and objective.

    Returns:
        (losses [M, L], metrics [M, L]: whether the ratio of a token is outside the clip range, and
        whether the loss therefore has no gradient at the lower and at the upper bound).
    """
    log_ratio = log_ratios(new.log_prob - rows.log_prob, rows.weight, config.ratio)
    low = config.clip_eps
    high = low if config.clip_eps_high is None else config.clip_eps_high
    ratio = jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO))
    below, above = ratio < 1.0 - low, ratio > 1.0 + high
    if config.objective == "cispo":
        loss = cispo(new.log_prob, log_ratio, rows.advantage, high)
        metrics = {"clip_fraction": above, "clip_fraction_low": jnp.zeros_like(above)}
        metrics["clip_fraction_high"] = above
    else:
        old = jnp.zeros_like(log_ratio)
        loss = losses.clipped_surrogate(log_ratio, old, rows.advantage, low, clip_eps_high=high)
        if config.dual_clip is not None:
            loss = dual_clipped(loss, rows.advantage, config.dual_clip)
        metrics = {"clip_fraction": below | above}
        metrics["clip_fraction_low"] = below & (rows.advantage < 0)
        metrics["clip_fraction_high"] = above & (rows.advantage > 0)
    for name in ("coefficient", "aggregation"):
        if name in rows.extra:
            loss = loss * rows.extra[name]
    return loss, metrics


def log_ratios(log_ratio: jax.Array, weight: jax.Array, kind: str) -> jax.Array:
    """The logarithm of the probability ratio by which the loss of a token is weighted.

    token:     log ρ_t = log π_θ(y_t) − log π_old(y_t)
    sequence:  log s = 1/|y| Σ_t log ρ_t for every token of the response y

    Args:
        log_ratio: [M, L] log ρ_t, 0 where the weight is 0.
        weight: [M, L] 1 for the tokens of the response.
        kind: "token" or "sequence".

    Returns:
        [M, L] log-ratios in nats.

    Source: Schulman et al. 2017, section 3 (token); Zheng et al. 2025, Group Sequence Policy
    Optimization, section 4 (sequence).
    """
    if kind == "token":
        return log_ratio
    count = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    mean = jnp.sum(weight * log_ratio, axis=1, keepdims=True) / count
    return jnp.broadcast_to(mean, log_ratio.shape)


def dual_clipped(loss: jax.Array, advantage: jax.Array, bound: jax.Array | float) -> jax.Array:
    """The clipped loss with a bound c of the ratio where the advantage is negative.

    L = min(L_clip, −c Â) if Â < 0, otherwise L_clip,   c > 1 + ε_high

    Without it, the loss of an unlikely token that became likely grows without bound.

    Args:
        loss: [...] losses L_clip from `losses.clipped_surrogate`.
        advantage: [...] advantages Â.
        bound: bound c of the ratio.

    Returns:
        [...] losses, without a gradient where the bound is reached.

    Source: Ye et al. 2020, Mastering Complex Control in MOBA Games with Deep Reinforcement
    Learning (dual-clip PPO); `delta` in TRL.
    """
    return jnp.where(advantage < 0, jnp.minimum(loss, -bound * advantage), loss)


def cispo(
    log_prob: jax.Array, log_ratio: jax.Array, advantage: jax.Array, clip_eps_high: Any
) -> jax.Array:
    """The policy gradient with a bounded importance weight, which has no gradient of its own.

    L = −sg(min(ρ, 1 + ε_high)) Â log π_θ

    Unlike with the clipped objective, every token has a gradient, however large its ratio is. As
    in the experiments of the paper, the ratio has no lower bound.

    Args:
        log_prob: [...] log π_θ of the tokens.
        log_ratio: [...] log ρ, from `log_ratios`.
        advantage: [...] advantages Â.
        clip_eps_high: ε_high; other implementations state the bound 1 + ε_high itself.

    Returns:
        [...] losses.

    Source: MiniMax 2025, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning
    Attention, section 3.1.
    """
    bounded = jnp.minimum(jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO)), 1.0 + clip_eps_high)
    return -jax.lax.stop_gradient(bounded) * advantage * log_prob


def token_weights(weight: jax.Array, aggregation: str) -> jax.Array:
    """Weights a_it with which the mean over the tokens of a minibatch is another mean.

    With n_i tokens of response i, N responses that have tokens, and n = Σ n_i:

    token:     1                 1/n Σ_i Σ_t l_it
    sequence:  n / (N n_i)       1/N Σ_i 1/n_i Σ_t l_it
    constant:  n / (N L)         1/N Σ_i 1/L Σ_t l_it

    Args:
        weight: [M, L] 1 for the tokens of a minibatch that count, and 0 for the others.
        aggregation: name of the mean.

    Returns:
        [M, L] weights a_it. They are the same when the minibatch is computed in several parts,
        whose means are weighted by their number of tokens.

    Source: Yu et al. 2025, DAPO, section 3.3 (token); Shao et al. 2024, DeepSeekMath, eq. 3
    (sequence); Liu et al. 2025, Understanding R1-Zero-Like Training: A Critical Perspective,
    section 3.2 (constant: Dr. GRPO).
    """
    tokens = jnp.sum(weight, axis=1, keepdims=True)
    responses = jnp.maximum(jnp.sum(tokens > 0), 1)
    length = {
        "token": jnp.maximum(jnp.sum(tokens), 1.0) / responses,
        "sequence": jnp.maximum(tokens, 1.0),
        "constant": jnp.float32(weight.shape[1]),
    }[aggregation]
    return jnp.broadcast_to(jnp.sum(tokens) / (responses * length), weight.shape)


def with_token_weights(rows: Batch, aggregation: str) -> Batch:
    """A minibatch with its `token_weights` in `extra`; unchanged for the mean over tokens.

    Args:
        rows: Batch with leaves [M, L], the whole minibatch.
        aggregation: name of the mean.
    """
    if aggregation == "token":
        return rows
    weights = token_weights(rows.weight, aggregation)
    return dataclasses.replace(rows, extra={**rows.extra, "aggregation": weights})
