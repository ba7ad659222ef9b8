"""Collection of responses, with the interface of `ppo_jax.rollout`; an episode is a response.

A response is a trajectory and each token is an action. The outputs of the frozen models become the
rewards of the tokens, so that advantages, losses and updates are those of control tasks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import losses, normalization, watch
from ppo_jax.rlhf import rewards, selection
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import Generation, generate
from ppo_jax.rlhf.policy import LanguagePolicy, TokenInputs, log_prob_of
from ppo_jax.rlhf.sharding import data_size, in_parts, spread
from ppo_jax.types import Metrics, Params, PyTree, Trajectory


@struct.dataclass
class RolloutState:
    """The part of the training state that `collect` changes.

    Attributes:
        data_key: PRNG key of the order of the prompts.
        cursor: [] number of prompts used so far.
        kl_coef: [] current KL coefficient β.
        moments: running statistics of the scores, `RunningMoments`; () if scores are not scaled.
        metrics: metrics of the last rollout, arrays of shape [].
        sampler: parameters that the next rollout is sampled with; () for those of the learner.
    """

    data_key: jax.Array
    cursor: jax.Array
    kl_coef: jax.Array
    moments: PyTree
    metrics: Metrics
    sampler: PyTree = ()


class Settings(NamedTuple):
    """Settings of sampling and rewards. Floats may be tracers.

    Attributes:
        num_prompts: number of prompts per rollout.
        group_size: number of responses to each prompt.
        eos_id: id or ids of the tokens that end a response; None if no token does.
        kl_coef: initial KL coefficient β.
        kl_kind: name of the KL estimator, a key of `KL_ESTIMATORS`.
        kl_in: "reward" or "loss", the place of the KL penalty.
        kl_target: mean KL per response, in nats, that β is adapted to; None for a constant β.
        kl_horizon: time constant of the adaptation, as a number of responses.
        reward_clip: scores are clipped to [−reward_clip, reward_clip]; infinity for no clipping.
        missing_eos_penalty: number subtracted from the score of a truncated response.
        missing_eos_score: score of every truncated response; None for its own score.
        scale_scores: whether scores are divided by their running standard deviation.
        length_penalty: penalty of a response of the maximum length.
        length_penalty_start: fraction of the maximum length up to which there is no penalty.
        mask_truncated: whether truncated responses are left out of the losses.
        dynamic_sampling: "off", "mask" or "redraw", the treatment of groups without spread.
        max_draws: maximum number of draws of "redraw".
        entropy_top_fraction: fraction of the tokens, those with the highest entropy, that the
            policy is trained on; None for all tokens.
        importance_cap: largest importance weight of a token; None for no weights.
        stale: whether a rollout is sampled with the parameters before the last update.
        sampling_temperature: temperature in sampling alone; None for that of the policy.
        top_k: number of most likely tokens that are sampled from; None for no limit.
        top_p: total probability of the tokens that are sampled from; None for no limit.
        rollout_batch: number of responses that are sampled and evaluated at a time; None evaluates
            all responses at once.
        mesh: device mesh that the responses are distributed over; None for one device.
        reward_names: names of the rewards whose mean scores are metrics of their own.
    """

    num_prompts: int
    group_size: int = 1
    eos_id: int | tuple[int, ...] | None = None
    kl_coef: Any = 0.1
    kl_kind: str = "k1"
    kl_in: str = "reward"
    kl_target: Any = None
    kl_horizon: Any = 10_000.0
    reward_clip: Any = jnp.inf
    missing_eos_penalty: Any = 0.0
    missing_eos_score: Any = None
    scale_scores: bool = False
    length_penalty: Any = 0.0
    length_penalty_start: Any = 0.8
    mask_truncated: bool = False
    dynamic_sampling: str = "off"
    max_draws: int = 4
    entropy_top_fraction: Any = None
    importance_cap: Any = None
    stale: bool = False
    sampling_temperature: Any = None
    top_k: int | None = None
    top_p: Any = None
    rollout_batch: int | None = None
    mesh: Any = None
    reward_names: tuple[str, ...] = ()


class Responses(NamedTuple):
    """B responses of at most L tokens, with the outputs of all four models.

    Attributes:
        inputs: prompts and responses [B, 1, P + L].
        tokens: [B, L] token ids of the responses.
        mask: [B, L] mask, 1 for sampled tokens, including EOS.
        ended: [B] bool, True for responses that end with EOS, False for truncated ones.
        gap: [] largest absolute difference between the log-probability of a token during sampling
            and in the forward pass over the whole response, in nats.
        log_prob: [B, L] log-probabilities under the policy, at its temperature.
        ref_log_prob: [B, L] log-probabilities under the reference, at the same temperature.
        value: [B, L] values of the critic.
        raw_score: [B] scores of the reward, before scaling and clipping.
        entropy: [B, L] entropies of the policy in nats.
        log_weight: [B, L] log-probabilities under the policy minus those during sampling.
        score_parts: name of a reward -> its scores [B], if there are several rewards with names.
    """

    inputs: TokenInputs
    tokens: jax.Array
    mask: jax.Array
    ended: jax.Array
    gap: jax.Array
    log_prob: jax.Array
    ref_log_prob: jax.Array
    value: jax.Array
    raw_score: jax.Array
    entropy: jax.Array
    log_weight: jax.Array
    score_parts: dict[str, jax.Array] = {}  # noqa: RUF012


# Returns scores [B], or `scoring.Scores` if there are several rewards with names.
Score = Callable[[PyTree, TokenInputs, int], Any]


def init(key: jax.Array, settings: Settings) -> RolloutState:
    """The state before the first rollout.

    Args:
        key: PRNG key of the order of the prompts.
        settings: settings of the rollouts, on which the names of the metrics depend.
    """
    moments = normalization.init(()) if settings.scale_scores else ()
    metrics = {name: jnp.zeros(()) for name in metric_names(settings)}
    coef = jnp.asarray(settings.kl_coef, jnp.float32)
    return RolloutState(key, jnp.zeros((), jnp.int32), coef, moments, metrics)


def collect(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    frozen: PyTree,
    *,
    policy: LanguagePolicy,
    reference: Decoder,
    score: Score,
    settings: Settings,
) -> tuple[RolloutState, Trajectory]:
    """Sample responses to the next prompts.

    Args:
        key: PRNG key.
        params: parameters of the policy.
        state: state after the last rollout.
        frozen: arrays that do not change: "reference", parameters of the reference; "reward",
            arrays of the reward; "prompts" and "prompt_mask" [N, P].
        policy: the policy that generates the responses.
        reference: architecture of the reference model.
        score: function of the reward, (frozen["reward"], inputs, L) -> [B] scores.
        settings: settings of the rollout.

    Returns:
        (RolloutState with the metrics of this rollout, Trajectory [L, B]). Each prompt has
        `group_size` consecutive responses among the B. `extra` holds the reference's
        log-probabilities and β, for losses with a KL term; and, where the settings select
        responses or tokens, "counts" and "coefficient" (`ppo_jax.rlhf.selection`).
    """
    ask = functools.partial(_ask, state, frozen, settings)
    write = functools.partial(respond, policy=policy, reference=reference, score=score)
    sampler = state.sampler if settings.stale else params
    own: dict[str, Any] = {"params": params, "sampler": sampler, "group_size": settings.group_size}
    write = functools.partial(write, frozen=frozen, settings=settings, **own)
    responses = write(key, prompts=ask(jnp.int32(0)))
    moments = state.moments
    if settings.scale_scores:
        moments = normalization.update(moments, responses.raw_score)
    shaped = shape_scores(moments, responses, settings)
    network = {
        "log_prob": responses.log_prob,
        "value": responses.value,
        "reference": responses.ref_log_prob,
    }
    watch.see("responses", network=network, score=responses.raw_score, reward=shaped)
    total_kl = kl_of(responses)
    # Only the first draw is a sample of all prompts: those that are kept afterwards are selected.
    # Its tokens and those of further draws are added up below.
    metrics = _metrics(responses, shaped, total_kl, state.kl_coef, settings=settings)
    draws = jnp.int32(1)
    if settings.dynamic_sampling == "redraw":
        draw = lambda i: write(jax.random.fold_in(key, i), prompts=ask(i))
        responses, draws, tokens = _redraw(draw, responses, moments, settings)
        shaped = shape_scores(moments, responses, settings)
        metrics |= {"draws": draws.astype(jnp.float32), "tokens": tokens}
    trajectory = _trajectory(responses, shaped, state.kl_coef, settings)
    state = dataclasses.replace(
        state,
        cursor=state.cursor + draws * settings.num_prompts,
        kl_coef=_adapt(state.kl_coef, jnp.mean(total_kl), total_kl.size, settings),
        moments=moments,
        metrics=metrics,
        sampler=params if settings.stale else (),
    )
    return state, trajectory


def _ask(
    state: RolloutState, frozen: PyTree, settings: Settings, draw: jax.Array
) -> tuple[jax.Array, ...]:
    """The prompts of a draw, each `group_size` times: (token ids, mask, row in the data)."""
    state = dataclasses.replace(state, cursor=state.cursor + draw * settings.num_prompts)
    rows = next_rows(state, frozen["prompts"].shape[0], settings.num_prompts)
    rows = jnp.repeat(rows, settings.group_size)
    return frozen["prompts"][rows], frozen["prompt_mask"][rows], rows


def _redraw(
    draw: Callable[[jax.Array], Responses], first: Responses, moments: PyTree, settings: Settings
) -> tuple[Responses, jax.Array, jax.Array]:
    """Responses with groups without spread replaced, the number of draws, and that of tokens."""
    by_row = lambda responses: responses._replace(
        gap=jnp.broadcast_to(responses.gap, responses.raw_score.shape)
    )
    kept, draws, tokens = selection.redraw(
        lambda i: by_row(draw(i)),
        by_row(first),
        lambda responses: shape_scores(moments, responses, settings),
        tokens_of=lambda responses: jnp.sum(responses.mask).astype(jnp.float32),
        group_size=settings.group_size,
        max_draws=settings.max_draws,
    )
    return spread(kept, settings.mesh)._replace(gap=jnp.max(kept.gap)), draws, tokens


def respond(
    key: jax.Array,
    params: Params,
    frozen: PyTree,
    prompts: tuple[jax.Array, ...],
    *,
    policy: LanguagePolicy,
    reference: Decoder,
    score: Score,
    settings: Settings,
    sampler: Params | None = None,
    group_size: int = 1,
) -> Responses:
    """Sample a response to each prompt and evaluate it with all four models.

    At most `settings.rollout_batch` responses are sampled and evaluated at a time, so that the
    cache and the activations of a part are the most memory that is needed. Every response has a
    PRNG key of its own: responses do not depend on the number of parts, except for rounding.

    Args:
        key: PRNG key.
        params: parameters of the policy.
        frozen: arrays that do not change, see `collect`.
        prompts: (token ids [B, P], padded on the left; their mask [B, P]); optionally also the
            row [B] of each prompt in the data, with which reward functions find its columns.
        policy, reference, score: the models, see `collect`.
        settings: settings of the rollout: those of sampling, `eos_id`, `rollout_batch` and `mesh`
            are used.
        sampler: parameters that the responses are sampled with; None for `params`.
        group_size: number of consecutive rows with the same prompt. The sampler reads it once for
            all of them, if no part separates them.

    Returns:
        The B responses with the outputs of the models.
    """
    sampler = policy.join(params if sampler is None else sampler, frozen)
    params = policy.join(params, frozen)
    keys = jax.random.split(key, len(prompts[0]))

    def part(rows: tuple) -> Responses:
        keys, prompts = rows
        whole = len(keys) // data_size(settings.mesh) % group_size == 0
        same = group_size if whole else 1
        inputs, written = _write(
            keys, sampler, prompts, policy=policy, settings=settings, samples=same
        )
        ended = _ended(written.tokens, written.mask, settings.eos_id)
        models: dict[str, Any] = {"policy": policy, "reference": reference, "score": score}
        return _evaluated(params, frozen, inputs, written, ended=ended, **models)

    rows = spread((keys, prompts), settings.mesh)
    responses = in_parts(part, rows, settings.rollout_batch or len(keys), settings.mesh)
    return responses._replace(gap=jnp.max(responses.gap))


def _write(
    keys: jax.Array,
    params: Params,
    prompts: tuple[jax.Array, ...],
    *,
    policy: LanguagePolicy,
    settings: Settings,
    samples: int,
) -> tuple[TokenInputs, Generation]:
    """Sample a response to each prompt: (inputs of the models [B, 1, P + L], tokens [B, L]).

    Every `samples` consecutive prompts are the same.
    """
    # Reshaped before it is sliced: rows that are distributed over devices stay where they are.
    prompt, prompt_mask = (x.reshape(-1, samples, x.shape[1])[:, 0] for x in prompts[:2])
    temperature = settings.sampling_temperature
    written = generate(
        keys,
        params["actor"],
        prompt,
        prompt_mask,
        decoder=policy.actor,
        max_new_tokens=policy.length,
        temperature=policy.temperature if temperature is None else temperature,
        eos_id=settings.eos_id,
        top_k=settings.top_k,
        top_p=settings.top_p,
        valid_vocab=policy.valid_vocab,
        truncated=True,
        samples=samples,
    )
    inputs = _inputs(prompts, written)
    return inputs, written


def _evaluated(
    params: Params,
    frozen: PyTree,
    inputs: TokenInputs,
    written: Generation,
    *,
    ended: jax.Array,
    policy: LanguagePolicy,
    reference: Decoder,
    score: Score,
) -> Responses:
    """Evaluate responses with all four models; `gap` is [B], that of each response."""
    # Log-probabilities come from a forward pass like the one of the loss, not from the sampler:
    # before the first gradient step the ratio then differs from 1 by rounding error only.
    dist, value = policy.apply(params, inputs)
    log_prob, entropy = dist.log_prob_and_entropy(written.tokens)
    ref_log_prob = log_prob_of(
        reference,
        frozen["reference"],
        inputs,
        policy.length,
        temperature=policy.temperature,
        valid_vocab=policy.valid_vocab,
    )
    log_weight = jnp.where(written.mask > 0, log_prob - written.log_prob, 0.0)
    raw_score, parts = scores(score(frozen["reward"], inputs, policy.length))
    return Responses(
        inputs=inputs,
        tokens=written.tokens,
        mask=written.mask,
        ended=ended,
        gap=jnp.max(jnp.abs(log_weight), axis=1),
        log_prob=log_prob,
        ref_log_prob=ref_log_prob,
        value=value,
        raw_score=raw_score,
        entropy=entropy,
        log_weight=log_weight,
        score_parts=parts,
    )


def _inputs(prompts: tuple[jax.Array, ...], written: Generation) -> TokenInputs:
    """Prompts and responses as the inputs of the models."""
    prompt, mask, *row = prompts
    tokens = jnp.concatenate([prompt, written.tokens], axis=1)
    mask = jnp.concatenate([mask, written.mask.astype(mask.dtype)], axis=1)
    return TokenInputs(tokens[:, None], mask[:, None], *row)


def scores(scored: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(scores [B], the scores of each reward with a name)."""
    return scored if isinstance(scored, tuple) else (scored, {})


def kl_of(responses: Responses) -> jax.Array:
    """[B] Σ_t log π − log π_ref, an estimate of the KL of each response in nats."""
    return rewards.sequence_kl(responses.log_prob - responses.ref_log_prob, responses.mask)


def next_rows(state: RolloutState, num_rows: int, count: int) -> jax.Array:
    """Indices of the next prompts; every pass over the prompts has a random order of its own.

    Args:
        state: state with the key of the order and the number of prompts used so far.
        num_rows: N, the number of prompts in the data.
        count: number of indices.

    Returns:
        [count] row indices.
    """
    passes = 1 + -(-(count - 1) // num_rows)  # the most passes that `count` prompts can span
    position = state.cursor + jnp.arange(count)
    first = state.cursor // num_rows

    def order(epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(state.data_key, epoch), num_rows)

    orders = jax.lax.map(order, first + jnp.arange(passes))
    return orders[position // num_rows - first, position % num_rows]


def shape_scores(moments: PyTree, responses: Responses, settings: Settings) -> jax.Array:
    """Scores after scaling, clipping, and the penalties for truncated and for long responses.

    Args:
        moments: running statistics of the scores; () if scores are not scaled.
        responses: the responses with raw scores [B].
        settings: settings of the rollout.

    Returns:
        [B] scores that become rewards.
    """
    score = responses.raw_score
    if settings.scale_scores:
        score = normalization.scale(moments, score, clip=jnp.inf)
    score = jnp.clip(score, -settings.reward_clip, settings.reward_clip)
    if settings.missing_eos_score is not None:
        score = rewards.replace_without_eos(score, responses.ended, settings.missing_eos_score)
    score = rewards.subtract_without_eos(score, responses.ended, settings.missing_eos_penalty)
    if isinstance(settings.length_penalty, float) and settings.length_penalty == 0:
        return score
    penalty, start = settings.length_penalty, settings.length_penalty_start
    return rewards.length_penalty(score, responses.mask, penalty, start)


def _trajectory(
    responses: Responses, score: jax.Array, kl_coef: jax.Array, settings: Settings
) -> Trajectory:
    kl = rewards.kl_estimate(responses.log_prob, responses.ref_log_prob, settings.kl_kind)
    in_reward = kl_coef if settings.kl_in == "reward" else 0.0
    reward = rewards.token_rewards(kl, score, responses.mask, in_reward)
    # A response that reaches the maximum length is treated as terminated, as in other
    # implementations of RLHF.
    last = jnp.sum(responses.mask, axis=1).astype(int)[:, None] - 1
    terminated = jnp.arange(responses.mask.shape[1]) == last
    following = jnp.roll(responses.value, -1, axis=1)
    extra = {
        "ref_log_prob": responses.ref_log_prob,
        "kl_coef": jnp.broadcast_to(kl_coef, responses.log_prob.shape),
        **_selected(responses, score, settings),
    }
    steps_first = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    return Trajectory(
        obs=steps_first(responses.inputs.replace(row=None)),  # type: ignore[attr-defined]
        action=responses.tokens.T,
        log_prob=responses.log_prob.T,
        value=responses.value.T,
        next_value=jnp.where(terminated, 0.0, following).T,
        reward=reward.T,
        terminated=terminated.T,
        done=terminated.T,
        weight=responses.mask.T.astype(jnp.float32),
        extra=steps_first(extra),
    )


def _selected(responses: Responses, score: jax.Array, settings: Settings) -> dict[str, jax.Array]:
    """The leaves of `Trajectory.extra` with which responses and tokens are selected, [B, L]."""
    found, weight = {}, responses.mask.astype(jnp.float32)
    counts = selection.counted(score, responses.ended, settings.group_size, settings)
    if counts is not None:
        found["counts"] = jnp.broadcast_to(counts[:, None].astype(jnp.float32), weight.shape)
        weight = weight * found["counts"]
    coefficient = selection.coefficients(
        weight,
        responses.entropy,
        responses.log_weight,
        top_fraction=settings.entropy_top_fraction,
        cap=settings.importance_cap,
    )
    return found if coefficient is None else found | {"coefficient": coefficient}


def _ended(tokens: jax.Array, mask: jax.Array, eos_id: int | tuple[int, ...] | None) -> jax.Array:
    """[B] bool, whether the last token is in `eos_id`; all True if no token ends a response."""
    if eos_id is None:
        return jnp.ones(tokens.shape[0], bool)
    ends = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    return functools.reduce(jnp.logical_or, [rewards.has_eos(tokens, mask, x) for x in ends])


def _adapt(kl_coef: jax.Array, kl: jax.Array, count: int, settings: Settings) -> jax.Array:
    if settings.kl_target is None:
        return kl_coef
    return rewards.adaptive_kl(kl_coef, kl, settings.kl_target, settings.kl_horizon, count)


METRICS = (
    "score",
    "score_std",
    "shaped_score",
    "kl",
    "kl_coef",
    "objective",
    "sampling_entropy",
    "response_length",
    "eos_rate",
    "tokens",
    "log_prob_gap",
)
IMPORTANCE_METRICS = ("importance_mean", "importance_min", "importance_max")


def metric_names(settings: Settings) -> tuple[str, ...]:
    """The names of the metrics of a rollout.

    Args:
        settings: settings of the rollout.
    """
    groups = ("groups_without_spread",) if settings.group_size > 1 else ()
    draws = ("draws",) if settings.dynamic_sampling == "redraw" else ()
    parts = tuple(f"score_{name}" for name in settings.reward_names)
    weights = () if settings.importance_cap is None else IMPORTANCE_METRICS
    return (*METRICS, *groups, *draws, *weights, *parts)


def _group_metrics(responses: Responses, shaped: jax.Array, settings: Settings) -> Metrics:
    """Metrics of groups and of importance weights, where there are any."""
    found = {}
    if settings.group_size > 1:
        lacking = ~selection.has_spread(shaped, settings.group_size)
        found["groups_without_spread"] = jnp.mean(lacking.astype(jnp.float32))
    if settings.importance_cap is not None:
        found |= selection.importance_metrics(responses.log_weight, responses.mask)
    return found


def _metrics(
    responses: Responses,
    shaped: jax.Array,
    total_kl: jax.Array,
    kl_coef: jax.Array,
    *,
    settings: Settings,
) -> Metrics:
    """The objective J = E[r − β KL] of the policy, its parts, and statistics of the responses."""
    length = jnp.sum(responses.mask, axis=1).astype(jnp.float32)
    return {
        "score": jnp.mean(responses.raw_score),
        "score_std": jnp.std(responses.raw_score),
        "shaped_score": jnp.mean(shaped),
        "kl": jnp.mean(total_kl),
        "kl_coef": kl_coef,
        "objective": jnp.mean(shaped - kl_coef * total_kl),
        "sampling_entropy": losses.mean(responses.entropy, responses.mask.astype(jnp.float32)),
        "response_length": jnp.mean(length),
        "eos_rate": jnp.mean(responses.ended.astype(jnp.float32)),
        "tokens": jnp.sum(length),
        "log_prob_gap": responses.gap,
        **_group_metrics(responses, shaped, settings),
        **part_means(responses),
    }


def part_means(responses: Responses) -> Metrics:
    """The mean score of each reward with a name, over the responses that it scores."""
    given = {name: ~jnp.isnan(x) for name, x in responses.score_parts.items()}
    return {
        f"score_{name}": losses.mean(jnp.where(given[name], x, 0.0), given[name].astype(x.dtype))
        for name, x in responses.score_parts.items()
    }
