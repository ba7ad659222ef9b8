"""From the scores of responses to the rewards of tokens: what PPO on a language model learns from.

B responses of at most L tokens; the mask is 1 on the tokens the policy chose, its EOS among them,
and comes from the sampler. What stands where it is 0 is never read, so it may be infinite or NaN.
Masked GAE is `advantages.estimate_gae` with the mask as weight, the losses are those of `losses`,
and running moments of scores are `normalization`'s.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppo_jax import divergences, losses, shapes
from ppo_jax.algorithms.ppo_kl import proportional_coefficient
from ppo_jax.config.options import did_you_mean

# In terms of (log p, log q) for samples of q; here q is the policy and p the reference.
KL_ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "k1": divergences.k1,
    "k2": divergences.k2,
    "k3": divergences.k3,
    "abs": lambda log_p, log_q: jnp.abs(log_q - log_p),
}


def kl_estimate(
    log_prob: jax.Array, ref_log_prob: jax.Array, kind: str, mask: jax.Array | None = None
) -> jax.Array:
    """KL(π ‖ π_ref) per token, from the tokens that π sampled.

    x = log π(a|s) − log π_ref(a|s)
    k1 = x,   k2 = ½ x²,   k3 = e^{−x} − 1 + x,   abs = |x|

    As a reward take k1: summed over a response it is unbiased. As a differentiated loss take k2:
    its gradient is the gradient of the KL in expectation, those of k1 and k3 are not.

    Args:
        log_prob: [...] log π, at the temperature the tokens were sampled with.
        ref_log_prob: [...] log π_ref, at the same temperature.
        kind: a name in KL_ESTIMATORS.
        mask: [...] or None for all ones; where it is 0 so is the estimate, and no gradient passes.

    Returns:
        [...] in nats.

    Raises:
        ValueError: kind is none of them, or arrays of different shapes.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html).
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"no KL estimator is called {kind!r}: {did_you_mean(kind, KL_ESTIMATORS)}")
    shapes.same("kl_estimate", log_prob=log_prob, ref_log_prob=ref_log_prob, mask=mask)
    if mask is not None:  # before the exponential and the square: 0 · ∞ is NaN in their gradients
        log_prob = jnp.where(mask > 0, log_prob, 0.0)
        ref_log_prob = jnp.where(mask > 0, ref_log_prob, 0.0)
    return KL_ESTIMATORS[kind](ref_log_prob, log_prob)


def last_token(mask: jax.Array) -> jax.Array:
    """Where each response ends: 1[t is the last index with mask 1].

    Args:
        mask: [B, L].

    Returns:
        [B, L] bool, one True a row; none in a row of zeros.
    """
    real = mask > 0
    remaining = jnp.cumsum(real[:, ::-1], axis=1)[:, ::-1]
    return real & (remaining == 1)


def token_rewards(
    kl: jax.Array, score: jax.Array, mask: jax.Array, kl_coef: jax.Array | float
) -> jax.Array:
    """The reward of every token: a KL penalty each, and the score for the last.

    r_t = −β kl_t + 1[t is the last token of the response] score

    Their sum is score − β KL of the response, the reward of methods without a critic (RLOO).

    Args:
        kl: [B, L] estimate per token, `kl_estimate`.
        score: [B] of the reward model.
        mask: [B, L] 1 on the tokens of the response.
        kl_coef: [] β; 0 where the KL is a term of the loss instead.

    Returns:
        [B, L] floats, 0 where mask is 0; a response of no tokens is paid nothing.

    Raises:
        ValueError: shapes that do not belong together.

    Source: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, eq. 2;
    Ouyang et al. 2022 (InstructGPT), eq. 2.
    """
    shapes.rank("token_rewards", "[B, L]", mask=mask)
    shapes.exact("token_rewards", mask.shape, "the mask", kl=kl)
    shapes.exact("token_rewards", mask.shape[:1], "the responses", score=score)
    shapes.exact("token_rewards", (), "a number", kl_coef=kl_coef)
    dtype = jnp.result_type(kl, score, kl_coef, jnp.float32)
    penalty = kl_coef * jnp.where(mask > 0, kl, 0.0).astype(dtype)
    paid = jnp.where(last_token(mask), score[:, None].astype(dtype), 0.0)
    return paid - penalty


def sequence_kl(kl: jax.Array, mask: jax.Array) -> jax.Array:
    """KL of whole responses: Σ_t kl_t over the tokens with mask 1.

    Args:
        kl: [B, L] per token.
        mask: [B, L].

    Returns:
        [B] in nats; its mean is what `adaptive_kl` controls.

    Raises:
        ValueError: a mask whose shape is not that of kl.
    """
    shapes.exact("sequence_kl", jnp.shape(kl), "kl", mask=mask)
    return jnp.sum(jnp.where(mask > 0, kl, 0.0), axis=1)


def adaptive_kl(
    coef: jax.Array,
    kl: jax.Array,
    target: jax.Array | float,
    horizon: jax.Array | float,
    num_sequences: jax.Array | float,
) -> jax.Array:
    """The next KL coefficient: a proportional controller in log space.

    β ← β (1 + clip(KL / target − 1, −0.2, 0.2) n / horizon)

    Args:
        coef: [] β.
        kl: [] mean over the n responses of their `sequence_kl`.
        target: in nats per response.
        horizon: in responses.
        num_sequences: n.

    Returns:
        [] β.

    Raises:
        ValueError: a KL for each response instead of their mean.

    Source: Ziegler et al. 2019, section 2.2, and their code.
    """
    numbers = {"target": target, "horizon": horizon, "num_sequences": num_sequences}
    shapes.exact("adaptive_kl", (), "a number", coef=coef, kl=kl, **numbers)
    return proportional_coefficient(coef, kl, target, horizon=horizon, samples=num_sequences)


def whiten(x: jax.Array, mask: jax.Array, shift_mean: bool = True, ddof: int = 0) -> jax.Array:
    """Shift and scale the real elements to mean 0 and variance 1.

    (x − μ) / √(σ² + 1e-8),   σ² = Σ m (x − μ)² / (Σ m − ddof)

    Over all B × L at once: on a part of the batch it would be another quantity.

    Args:
        x: [B, L] advantages, or rewards.
        mask: [B, L].
        shift_mean: False leaves the mean where it was, for rewards.
        ddof: 0 for the population's variance, which a single token has too; 1 for the sample's
            (TRL, verl, tunix), 0 / 0 of which is taken as 0.

    Returns:
        [B, L], 0 where mask is 0.

    Raises:
        ValueError: a mask whose shape is not that of x.

    Source: the code of Ziegler et al. 2019, openai/lm-human-preferences; Huang et al. 2024, The N+
    Implementation Details of RLHF with PPO.
    """
    shapes.exact("whiten", jnp.shape(x), "x", mask=mask)
    mean = losses.mean(x, mask)
    centred = jnp.where(mask > 0, x - mean, 0.0)
    # Once more: the rounding error of the first mean would be all there is of a constant x.
    centred = jnp.where(mask > 0, centred - losses.mean(centred, mask), 0.0)
    count = jnp.maximum(jnp.sum(mask) - ddof, 1.0)
    variance = losses.mean(jnp.square(centred), mask, count)
    whitened = centred * jax.lax.rsqrt(variance + 1e-8)
    return whitened if shift_mean else jnp.where(mask > 0, whitened + mean, 0.0)


def has_eos(tokens: jax.Array, mask: jax.Array, eos_id: int) -> jax.Array:
    """Whether a response came to its end: its last token is EOS.

    Args:
        tokens: [B, L] of the responses.
        mask: [B, L]; a padding token that equals EOS does not count.
        eos_id: the id of EOS.

    Returns:
        [B] bool.

    Raises:
        ValueError: a mask whose shape is not that of the tokens.
    """
    shapes.exact("has_eos", jnp.shape(tokens), "the tokens", mask=mask)
    return jnp.any(last_token(mask) & (tokens == eos_id), axis=1)


def subtract_without_eos(
    score: jax.Array, ended: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """A penalty for responses that were cut off: score − penalty 1[no EOS].

    Args:
        score: [B].
        ended: [B] bool, `has_eos`.
        penalty: ≥ 0.

    Returns:
        [B].

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: TRL, missing_eos_penalty.
    """
    shapes.same("subtract_without_eos", score=score, ended=ended, penalty=penalty)
    return jnp.where(ended, score, score - penalty)


def replace_without_eos(score: jax.Array, ended: jax.Array, value: jax.Array | float) -> jax.Array:
    """One score for all responses that were cut off: score if EOS, else value.

    Whatever such a response says counts for nothing, so there is nothing to gain by it.

    Args:
        score: [B].
        ended: [B] bool, `has_eos`.
        value: their score, −1 in both sources.

    Returns:
        [B].

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: the code of Ziegler et al. 2019; Huang et al. 2024.
    """
    shapes.same("replace_without_eos", score=score, ended=ended, value=value)
    return jnp.where(ended, score, value)


def leave_one_out(score: jax.Array) -> jax.Array:
    """Advantages of K responses to one prompt, each with the other ones' mean as its baseline.

    Â_k = s_k − 1/(K−1) Σ_{j≠k} s_j

    Args:
        score: [G, K] of G prompts, the KL penalty of whole responses already in it.

    Returns:
        [G, K].

    Raises:
        ValueError: K is 1: there is no other.

    Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!; Ahmadian et al.
    2024, Back to Basics (RLOO).
    """
    count = _group_size(score, "leave-one-out")
    return (score - jnp.mean(score, axis=1, keepdims=True)) * (count / (count - 1))


def group_normalized(score: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """Advantages of K responses to one prompt, shifted and scaled within their group.

    Â_k = (s_k − mean(s)) / (std(s) + ε)

    Args:
        score: [G, K] of G prompts.
        ddof: 1 for the sample deviation, as in TRL; the paper writes std and says no more.
        eps: ε, 1e-4 as in TRL; the paper has none.

    Returns:
        [G, K]; a group of equal scores gets zeros.

    Raises:
        ValueError: K is 1: it has no deviation.

    Source: Shao et al. 2024, DeepSeekMath, section 4.1.2 (GRPO with outcome supervision).
    """
    _group_size(score, "group-normalised")
    return jax.vmap(lambda group: _standardized(group, ddof, eps))(score)


def preference_loss(
    chosen: jax.Array, rejected: jax.Array, margin: jax.Array | float = 0.0
) -> jax.Array:
    """How surprising it is to a reward model that one response was preferred to the other.

    L = −log σ(s_chosen − s_rejected − margin)

    Args:
        chosen: [M] scores.
        rejected: [M] scores.
        margin: [M] or one number: by how much the one should beat the other.

    Returns:
        [M]; log 2 where the scores are equal.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; the margin, Touvron et al. 2023
    (Llama 2), eq. 2.
    """
    shapes.same("preference_loss", chosen=chosen, rejected=rejected, margin=margin)
    return jax.nn.softplus(rejected - chosen + margin)


def centering_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """What keeps scores about 0, which preferences alone leave open: (s_chosen + s_rejected)².

    Args:
        chosen: [M] scores.
        rejected: [M] scores.

    Returns:
        [M], to be added with a small coefficient (0.01).

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Eisenstein et al. 2023, Helping or Herding?; TRL, center_rewards_coefficient.
    """
    shapes.same("centering_loss", chosen=chosen, rejected=rejected)
    return jnp.square(chosen + rejected)


def _group_size(score: jax.Array, what: str) -> int:
    if score.ndim != 2 or score.shape[1] < 2:
        raise ValueError(
            f"{what} advantages need scores [G, K] with K ≥ 2 responses to each prompt, "
            f"not {score.shape}: sample more responses per prompt"
        )
    return score.shape[1]


def _standardized(group: jax.Array, ddof: int, eps: float) -> jax.Array:
    centred = group - jnp.mean(group)
    return centred / (jnp.std(group, ddof=ddof) + eps)
