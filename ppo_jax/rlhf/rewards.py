"""Token rewards, advantages and losses of PPO on language models.

All arrays belong to B responses of at most L tokens. The mask comes from the sampler and is 1 for
the sampled tokens, including EOS. Elements where the mask is 0 are never read, so they may be
infinite or NaN. Masked GAE is `advantages.estimate_gae` with the mask as weight; the policy and
value losses are in `losses`; running statistics of scores are in `normalization`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ppo_jax import divergences, losses, shapes
from ppo_jax.algorithms.ppo_kl import proportional_coefficient
from ppo_jax.config.options import did_you_mean

# Functions of (log p, log q) for samples of q; here q is the policy and p is the reference.
KL_ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "k1": divergences.k1,
    "k2": divergences.k2,
    "k3": divergences.k3,
    "abs": lambda log_p, log_q: jnp.abs(log_q - log_p),
}


def kl_estimate(
    log_prob: jax.Array, ref_log_prob: jax.Array, kind: str, mask: jax.Array | None = None
) -> jax.Array:
    """Estimate of KL(π ‖ π_ref) per token, from tokens sampled by π.

    x = log π(a|s) − log π_ref(a|s)
    k1 = x,   k2 = ½ x²,   k3 = e^{−x} − 1 + x,   abs = |x|

    In the reward, use k1: its sum over a response is an unbiased estimate. In a differentiated
    loss, use k2: the expectation of its gradient is the gradient of the KL, which does not hold for
    k1 and k3.

    Args:
        log_prob: [...] log π, at the temperature the tokens were sampled with.
        ref_log_prob: [...] log π_ref, at the same temperature.
        kind: name of the estimator, a key of KL_ESTIMATORS.
        mask: [...] mask, or None for all ones; where it is 0, the estimate and its gradient are 0.

    Returns:
        [...] estimates in nats.

    Raises:
        ValueError: kind is not the name of an estimator, or the arrays have different shapes.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html).
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {kind!r}: {did_you_mean(kind, KL_ESTIMATORS)}")
    shapes.same("kl_estimate", log_prob=log_prob, ref_log_prob=ref_log_prob, mask=mask)
    if mask is not None:  # before the exponential and the square: 0 · ∞ is NaN in their gradients
        log_prob = jnp.where(mask > 0, log_prob, 0.0)
        ref_log_prob = jnp.where(mask > 0, ref_log_prob, 0.0)
    return KL_ESTIMATORS[kind](ref_log_prob, log_prob)


def last_token(mask: jax.Array) -> jax.Array:
    """The last token of each response: 1[t is the last index with mask 1].

    Args:
        mask: [B, L] mask, 1 for the tokens of the response.

    Returns:
        [B, L] bool, True for one token of each row, or none if the mask of the row is all 0.
    """
    real = mask > 0
    remaining = jnp.cumsum(real[:, ::-1], axis=1)[:, ::-1]
    return real & (remaining == 1)


def token_rewards(
    kl: jax.Array, score: jax.Array, mask: jax.Array, kl_coef: jax.Array | float
) -> jax.Array:
    """The reward of each token: a KL penalty, and for the last token also the score.

    r_t = −β kl_t + 1[t is the last token of the response] score

    The sum over a response is score − β KL, the reward of methods without a critic (RLOO).

    Args:
        kl: [B, L] KL estimates per token in nats, as from `kl_estimate`.
        score: [B] scores of the reward model.
        mask: [B, L] mask, 1 for the tokens of the response.
        kl_coef: [] KL coefficient β; 0 if the KL is a term of the loss instead.

    Returns:
        [B, L] rewards, 0 where mask is 0; all rewards of an empty response are 0.

    Raises:
        ValueError: the arrays have shapes that do not match.

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
        kl: [B, L] KL estimates per token in nats.
        mask: [B, L] mask, 1 for the tokens of the response.

    Returns:
        [B] estimates in nats; `adaptive_kl` controls their mean.

    Raises:
        ValueError: the shapes of mask and kl differ.
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
        coef: [] KL coefficient β.
        kl: [] mean of `sequence_kl` over the n responses, in nats.
        target: target of the mean KL, in nats per response.
        horizon: time constant of the controller, as a number of responses.
        num_sequences: n, the number of responses since the last call.

    Returns:
        [] coefficient β of the next rollout.

    Raises:
        ValueError: an argument is an array instead of a number.

    Source: Ziegler et al. 2019, section 2.2, and their code.
    """
    numbers = {"target": target, "horizon": horizon, "num_sequences": num_sequences}
    shapes.exact("adaptive_kl", (), "a number", coef=coef, kl=kl, **numbers)
    return proportional_coefficient(coef, kl, target, horizon=horizon, samples=num_sequences)


def whiten(x: jax.Array, mask: jax.Array, shift_mean: bool = True, ddof: int = 0) -> jax.Array:
    """Shift and scale the unmasked elements to mean 0 and variance 1.

    (x − μ) / √(σ² + 1e-8),   σ² = Σ m (x − μ)² / (Σ m − ddof)

    μ and σ are those of the whole batch [B, L]; whitening parts of a batch separately gives other
    values.

    Args:
        x: [B, L] advantages or rewards.
        mask: [B, L] mask, 1 for the tokens of the response.
        shift_mean: whether the mean becomes 0; False restores the mean after scaling, which is
            used for rewards.
        ddof: 0 for the population variance; 1 for the sample variance (TRL, verl, tunix), whose
            0 / 0 for a single token is replaced by 0.

    Returns:
        [B, L] whitened elements, 0 where mask is 0.

    Raises:
        ValueError: the shapes of mask and x differ.

    Source: the code of Ziegler et al. 2019, openai/lm-human-preferences; Huang et al. 2024, The N+
    Implementation Details of RLHF with PPO.
    """
    shapes.exact("whiten", jnp.shape(x), "x", mask=mask)
    mean = losses.mean(x, mask)
    centred = jnp.where(mask > 0, x - mean, 0.0)
    # The mean is subtracted twice: of a constant x only the rounding error of the first mean
    # remains, and dividing by √1e-8 would amplify it.
    centred = jnp.where(mask > 0, centred - losses.mean(centred, mask), 0.0)
    count = jnp.maximum(jnp.sum(mask) - ddof, 1.0)
    variance = losses.mean(jnp.square(centred), mask, count)
    whitened = centred * jax.lax.rsqrt(variance + 1e-8)
    return whitened if shift_mean else jnp.where(mask > 0, whitened + mean, 0.0)


def has_eos(tokens: jax.Array, mask: jax.Array, eos_id: int) -> jax.Array:
    """Whether the last token of a response is EOS.

    Args:
        tokens: [B, L] token ids of the responses.
        mask: [B, L] mask, 1 for the tokens of the response; padding with the id of EOS is ignored.
        eos_id: the id of EOS.

    Returns:
        [B] bool, True for responses that end with EOS.

    Raises:
        ValueError: the shapes of mask and tokens differ.
    """
    shapes.exact("has_eos", jnp.shape(tokens), "the tokens", mask=mask)
    return jnp.any(last_token(mask) & (tokens == eos_id), axis=1)


def subtract_without_eos(
    score: jax.Array, ended: jax.Array, penalty: jax.Array | float
) -> jax.Array:
    """A penalty for truncated responses: score − penalty 1[no EOS].

    Args:
        score: [B] scores of the responses.
        ended: [B] bool, whether the response ends with EOS, as from `has_eos`.
        penalty: penalty ≥ 0 of responses without EOS.

    Returns:
        [B] scores after the penalty.

    Raises:
        ValueError: the arrays have different shapes; only scalars are broadcast.

    Source: TRL, missing_eos_penalty.
    """
    shapes.same("subtract_without_eos", score=score, ended=ended, penalty=penalty)
    return jnp.where(ended, score, score - penalty)


def replace_without_eos(score: jax.Array, ended: jax.Array, value: jax.Array | float) -> jax.Array:
    """A constant score for all truncated responses: score if EOS, otherwise value.

    The content of a truncated response then has no influence on its score.

    Args:
        score: [B] scores of the responses.
        ended: [B] bool, whether the response ends with EOS, as from `has_eos`.
        value: score of responses without EOS, −1 in both sources.

    Returns:
        [B] scores after the replacement.

    Raises:
        ValueError: the arrays have different shapes; only scalars are broadcast.

    Source: the code of Ziegler et al. 2019; Huang et al. 2024.
    """
    shapes.same("replace_without_eos", score=score, ended=ended, value=value)
    return jnp.where(ended, score, value)


def leave_one_out(score: jax.Array) -> jax.Array:
    """Advantages of K responses to one prompt, with the mean of the other K − 1 as the baseline.

    Â_k = s_k − 1/(K−1) Σ_{j≠k} s_j

    Args:
        score: [G, K] scores of the responses to G prompts, after subtracting the KL penalty.

    Returns:
        [G, K] advantages.

    Raises:
        ValueError: K is 1, so that a response has no baseline.

    Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!; Ahmadian et al.
    2024, Back to Basics (RLOO).
    """
    count = _group_size(score, "leave-one-out")
    return (score - jnp.mean(score, axis=1, keepdims=True)) * (count / (count - 1))


def group_normalized(score: jax.Array, scale: str = "group") -> jax.Array:
    """Advantages of K responses to one prompt: their scores without the mean, scaled.

    Â_k = (s_k − mean(s)) / scale

    Args:
        score: [G, K] scores of the responses to G prompts.
        scale: name of the denominator, as for `group_scale`.

    Returns:
        [G, K] advantages, all 0 in a group of equal scores.

    Raises:
        ValueError: K is 1, so that the group has no standard deviation.

    Source: Shao et al. 2024, DeepSeekMath, section 4.1.2 (GRPO with outcome supervision); Liu et
    al. 2025, Understanding R1-Zero-Like Training, section 3.2 (scale none: Dr. GRPO).
    """
    _group_size(score, "group-normalised")
    return (score - jnp.mean(score, axis=1, keepdims=True)) / group_scale(score, scale)


def group_scale(score: jax.Array, scale: str, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """The number that divides the advantages of a group.

    group: std(s) + ε of the group;   batch: std + ε of all scores;   mean: mean(s) of the group;
    none: 1

    With the mean, the expected gradient for scores of 0 and 1 approaches that of log P(score = 1)
    instead of P(score = 1) as K grows.

    Args:
        score: [G, K] scores of the responses to G prompts.
        scale: "group", "batch", "mean" or "none".
        ddof: 1 for the sample standard deviation, as in TRL; the papers do not specify it.
        eps: constant ε, 1e-4 as in TRL; the papers have none.

    Returns:
        [G, 1] denominators, or [] if they are all the same. The mean is replaced by infinity where
        it is not positive, so that such a group has advantages of 0.

    Source: Shao et al. 2024, DeepSeekMath, section 4.1.2 (group); TRL,
    scale_rewards="batch" (batch); Tajwar et al. 2026, Maximum Likelihood Reinforcement Learning
    (mean).
    """
    if scale == "group":
        return jnp.std(score, axis=1, ddof=ddof, keepdims=True) + eps
    if scale == "batch":
        return jnp.std(score, ddof=ddof) + eps
    if scale == "mean":
        mean = jnp.mean(score, axis=1, keepdims=True)
        return jnp.where(mean > 0, mean, jnp.inf)
    if scale == "none":
        return jnp.ones(())
    raise ValueError(f"scale is {scale!r}; it must be group, batch, mean or none")


def length_penalty(
    score: jax.Array, mask: jax.Array, penalty: jax.Array | float, start: jax.Array | float
) -> jax.Array:
    """A penalty that grows linearly with the length of long responses.

    s − p clip((|y| − f L) / ((1 − f) L), 0, 1)

    Args:
        score: [B] scores of the responses.
        mask: [B, L] mask, 1 for the tokens of the response.
        penalty: p ≥ 0, the penalty of a response of L tokens.
        start: f < 1, the fraction of L up to which there is no penalty.

    Returns:
        [B] scores after the penalty.

    Source: Yu et al. 2025, DAPO, section 3.4 (soft overlong punishment, p = 1 and f = 0.8).
    """
    limit = mask.shape[1]
    length = jnp.sum(mask > 0, axis=1).astype(score.dtype)
    share = (length - start * limit) / ((1.0 - start) * limit)
    return score - penalty * jnp.clip(share, 0.0, 1.0)


def preference_loss(
    chosen: jax.Array, rejected: jax.Array, margin: jax.Array | float = 0.0
) -> jax.Array:
    """Negative log-likelihood of preferences under the Bradley-Terry model.

    L = −log σ(s_chosen − s_rejected − margin)

    Args:
        chosen: [M] scores of the preferred responses.
        rejected: [M] scores of the other responses.
        margin: [M] score differences that the preferences demand, or one number for all.

    Returns:
        [M] losses; log 2 for equal scores and margin 0.

    Raises:
        ValueError: the arrays have different shapes; only scalars are broadcast.

    Source: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; the margin, Touvron et al. 2023
    (Llama 2), eq. 2.
    """
    shapes.same("preference_loss", chosen=chosen, rejected=rejected, margin=margin)
    return jax.nn.softplus(rejected - chosen + margin)


def centering_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """A regulariser that keeps scores close to 0: (s_chosen + s_rejected)².

    The preference loss depends on score differences only and leaves their mean undetermined.

    Args:
        chosen: [M] scores of the preferred responses.
        rejected: [M] scores of the other responses.

    Returns:
        [M] losses, to be added with a small coefficient (0.01).

    Raises:
        ValueError: the arrays have different shapes; only scalars are broadcast.

    Source: Eisenstein et al. 2023, Helping or Herding?; TRL, center_rewards_coefficient.
    """
    shapes.same("centering_loss", chosen=chosen, rejected=rejected)
    return jnp.square(chosen + rejected)


def _group_size(score: jax.Array, what: str) -> int:
    if score.ndim != 2 or score.shape[1] < 2:
        raise ValueError(
            f"{what} advantages need scores [G, K] with K ≥ 2 responses to each prompt, "
            f"not of shape {score.shape}: sample more responses per prompt"
        )
    return score.shape[1]
