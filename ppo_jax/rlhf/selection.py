"""Which responses of a rollout the policy is trained on, and how much each of their tokens counts.

A group is the responses to one prompt. If all have the same score, a method that compares them has
advantages of 0 and learns nothing from the group: it has no spread.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.divergences import importance_ratio
from ppo_jax.types import Metrics


def has_spread(score: jax.Array, group_size: int) -> jax.Array:
    """Whether the responses of a group have different scores.

    Args:
        score: [B] scores, of which each `group_size` consecutive ones are those of a group.
        group_size: number of responses of a group.

    Returns:
        [B / group_size] bool, one for each group.

    Source: Yu et al. 2025, DAPO, section 3.2 (dynamic sampling).
    """
    groups = score.reshape(-1, group_size)
    return jnp.max(groups, axis=1) > jnp.min(groups, axis=1)


def redraw(
    draw: Callable[[jax.Array], Any],
    first: Any,
    score_of: Callable[[Any], jax.Array],
    *,
    tokens_of: Callable[[Any], jax.Array],
    group_size: int,
    max_draws: int,
) -> tuple[Any, jax.Array, jax.Array]:
    """Replace groups without spread by groups of further draws, in order.

    Args:
        draw: function from the number of the draw, from 1 on, to responses like the first.
        first: responses of the first draw, a pytree with leaves [B, ...].
        score_of: function from such responses to their scores [B].
        tokens_of: function from such responses to the number of their tokens [].
        group_size: number of responses of a group.
        max_draws: maximum number of draws, with the first; after them, groups without spread
            remain among the responses.

    Returns:
        (the responses with leaves [B, ...], number of draws [] int32, number of tokens of all draws
        []).
    """
    groups = score_of(first).shape[0] // group_size

    def spread_of(responses: Any) -> jax.Array:
        return has_spread(score_of(responses), group_size)

    def going(state: tuple[Any, ...]) -> jax.Array:
        return (state[1] < max_draws) & ~jnp.all(spread_of(state[0]))

    def draw_more(state: tuple[Any, ...]) -> tuple[Any, ...]:
        kept, draws, tokens = state
        new = draw(draws)
        lacking = ~jnp.concatenate([spread_of(kept), spread_of(new)])
        chosen = jnp.argsort(lacking, stable=True)[:groups]  # those with spread, in their order
        rows = (chosen[:, None] * group_size + jnp.arange(group_size)).reshape(-1)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[rows], kept, new)
        return both, draws + 1, tokens + tokens_of(new)

    return jax.lax.while_loop(going, draw_more, (first, jnp.int32(1), tokens_of(first)))


def counted(score: jax.Array, ended: jax.Array, group_size: int, settings: Any) -> jax.Array | None:
    """Whether a response counts in the losses.

    Args:
        score: [B] scores of the responses.
        ended: [B] bool, whether the response ends with an end token.
        group_size: number of responses of a group.
        settings: settings of the rollout: `dynamic_sampling` and `mask_truncated` are used.

    Returns:
        [B] bool; None if all responses count.

    Source: Yu et al. 2025, DAPO, sections 3.2 and 3.4 (overlong filtering).
    """
    found = None
    if settings.dynamic_sampling != "off":
        found = jnp.repeat(has_spread(score, group_size), group_size)
    if settings.mask_truncated:
        found = ended if found is None else found & ended
    return found


def coefficients(
    weight: jax.Array,
    entropy: jax.Array,
    log_weight: jax.Array,
    *,
    top_fraction: Any,
    cap: Any,
) -> jax.Array | None:
    """The coefficient of each token in the policy loss.

    c_t = min(π_old(y_t) / μ(y_t), C) 1[H_t is among the highest entropies]

    π_old is the policy at the start of the update and μ the distribution that was sampled from.

    Args:
        weight: [B, L] 1 for the tokens that count.
        entropy: [B, L] entropies H_t of the policy in nats.
        log_weight: [B, L] log π_old − log μ of the tokens.
        top_fraction: fraction of the tokens that have a coefficient; None gives one to all tokens.
        cap: C, the largest importance weight; None for weights of 1.

    Returns:
        [B, L] coefficients; None if all are 1.

    Source: Wang et al. 2025, Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective
    Reinforcement Learning (entropies); Ionides 2008, Truncated Importance Sampling (weights);
    Espeholt et al. 2018, IMPALA, section 4.1 (truncated weights of stale samples).
    """
    found = None
    if cap is not None:
        found = jnp.minimum(importance_ratio(log_weight, jnp.zeros_like(log_weight)), cap)
    if top_fraction is not None:
        chosen = highest(entropy, weight, top_fraction).astype(jnp.float32)
        found = chosen if found is None else found * chosen
    return found


def highest(entropy: jax.Array, weight: jax.Array, fraction: Any) -> jax.Array:
    """Whether the entropy of a token is among the ⌈f n⌉ highest of the n tokens that count.

    Args:
        entropy: [B, L] entropies in nats.
        weight: [B, L] 1 for the tokens that count.
        fraction: f, 0 < f ≤ 1.

    Returns:
        [B, L] bool; tokens whose entropy equals the lowest of these are among them.
    """
    real = jnp.where(weight > 0, entropy, -jnp.inf)
    count = jnp.sum(weight > 0)
    # The product of a fraction in float32 may exceed a whole number by rounding.
    number = jnp.ceil(fraction * count * (1.0 - 1e-6)).astype(jnp.int32)
    ordered = jnp.sort(real.reshape(-1), descending=True)
    return (weight > 0) & (real >= ordered[jnp.clip(number - 1, 0, real.size - 1)])


def importance_metrics(log_weight: jax.Array, weight: jax.Array) -> Metrics:
    """Mean, smallest and largest importance weight of the tokens, before they are truncated.

    Args:
        log_weight: [B, L] log π_old − log μ of the tokens.
        weight: [B, L] 1 for the tokens of the responses.
    """
    real = weight > 0
    ratio = importance_ratio(jnp.where(real, log_weight, 0.0), jnp.zeros_like(log_weight))
    return {
        "importance_mean": jnp.sum(jnp.where(real, ratio, 0.0)) / jnp.maximum(jnp.sum(real), 1),
        "importance_min": jnp.min(jnp.where(real, ratio, jnp.inf)),
        "importance_max": jnp.max(jnp.where(real, ratio, -jnp.inf)),
    }
