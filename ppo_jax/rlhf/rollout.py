"""Collecting responses: the contract of `ppo_jax.rollout`, where an episode is a response.

A response is a trajectory and a token an action. All that the frozen models say arrives as the
reward of each token, so that advantages, losses and updates are those of control.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import losses, normalization, watch
from ppo_jax.rlhf import rewards
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.policy import LanguagePolicy, TokenInputs, log_prob_of
from ppo_jax.rlhf.sharding import spread
from ppo_jax.types import Metrics, Params, PyTree, Trajectory


@struct.dataclass
class RolloutState:
    """Everything collecting changes.

    Attributes:
        data_key: decides the order of the prompts in each pass over them.
        cursor: [] prompts taken so far.
        kl_coef: [] β in force.
        moments: RunningMoments of the scores; () where they are not scaled.
        metrics: of the last rollout, [] each.
    """

    data_key: jax.Array
    cursor: jax.Array
    kl_coef: jax.Array
    moments: PyTree
    metrics: Metrics


class Settings(NamedTuple):
    """How responses are made and what they are worth. Floats may be tracers.

    Attributes:
        num_prompts: prompts per rollout.
        group_size: responses to each.
        eos_id: token that ends a response, or several.
        kl_coef: β at the start.
        kl_kind: "k1", "k2" or "k3", the estimator of the KL of a token.
        kl_in: "reward" or "loss", where β KL goes.
        kl_target: KL of a response that β is adapted to; None: β stays.
        kl_horizon: responses over which it adapts.
        reward_clip: scores are clipped to ± this; infinity: not.
        missing_eos_penalty: subtracted from the score of a response that was cut off.
        missing_eos_score: its score instead; None: its own.
        scale_scores: divide scores by their running deviation.
        mesh: whose devices share the responses; None for one device.
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
    mesh: Any = None


class Responses(NamedTuple):
    """What was written, and what everybody says of it; B responses of at most L tokens.

    Attributes:
        inputs: TokenInputs [B, 1, P + L].
        tokens: [B, L].
        mask: [B, L] 1 for what was sampled, the end included.
        ended: [B] bool, by its own token rather than for lack of room.
        gap: [] the largest difference between a log-probability while sampling and afterwards.
        log_prob: [B, L] of the policy, at its temperature.
        ref_log_prob: [B, L] of the reference, at the same.
        value: [B, L] of the critic.
        raw_score: [B] as the reward gave it.
        entropy: [B, L] of the policy.
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


Score = Callable[[PyTree, TokenInputs, int], jax.Array]


def init(key: jax.Array, settings: Settings) -> RolloutState:
    """Before the first prompt.

    Args:
        key: consumed; decides the order of the prompts.
        settings: β, and whether scores are scaled.
    """
    moments = normalization.init(()) if settings.scale_scores else ()
    metrics = {name: jnp.zeros(()) for name in METRICS}
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
    """Respond to the next prompts.

    Args:
        key: consumed.
        params: of the policy.
        state: where the last rollout stopped.
        frozen: {"reference": params, "reward": of `score`, "prompts": [N, P], "prompt_mask"}.
        policy: whose responses.
        reference: the decoder that the policy is to stay near.
        score: what the responses are worth.
        settings: Settings.

    Returns:
        (RolloutState with the metrics of this rollout, Trajectory [L, B]), B responses of which
        `group_size` in a row answer the same prompt. `extra` holds what losses may need.
    """
    rows = next_rows(state, frozen["prompts"].shape[0], settings.num_prompts)
    rows = jnp.repeat(rows, settings.group_size)
    chosen = (frozen["prompts"][rows], frozen["prompt_mask"][rows])
    prompts = spread(chosen, settings.mesh)
    write = functools.partial(respond, policy=policy, reference=reference, score=score)
    said = write(key, params, frozen, prompts, eos_id=settings.eos_id)
    moments = state.moments
    if settings.scale_scores:
        moments = normalization.update(moments, said.raw_score)
    shaped = shape_scores(moments, said, settings)
    network = {"log_prob": said.log_prob, "value": said.value, "reference": said.ref_log_prob}
    watch.see("responses", network=network, score=said.raw_score, reward=shaped)
    total_kl = kl_of(said)
    trajectory = _trajectory(said, shaped, state.kl_coef, settings)
    metrics = _metrics(said, shaped, total_kl, state.kl_coef)
    state = dataclasses.replace(
        state,
        cursor=state.cursor + settings.num_prompts,
        kl_coef=_adapt(state.kl_coef, jnp.mean(total_kl), total_kl.size, settings),
        moments=moments,
        metrics=metrics,
    )
    return state, trajectory


def respond(
    key: jax.Array,
    params: Params,
    frozen: PyTree,
    prompts: tuple[jax.Array, jax.Array],
    *,
    policy: LanguagePolicy,
    reference: Decoder,
    score: Score,
    eos_id: int | tuple[int, ...] | None,
    greedy: bool = False,
) -> Responses:
    """Write a response to each prompt and ask all four models about it.

    Args:
        key: consumed.
        params: of the policy.
        frozen: as for `collect`.
        prompts: (tokens [B, P], padded on the left, and their mask [B, P]).
        policy, reference, score: as for `collect`.
        eos_id: what ends a response.
        greedy: take the likeliest token instead of sampling.

    Returns:
        Responses.
    """
    prompt, prompt_mask = prompts
    params = policy.join(params, frozen)
    written = generate(
        key,
        params["actor"],
        prompt,
        prompt_mask,
        decoder=policy.actor,
        max_new_tokens=policy.length,
        temperature=0.0 if greedy else policy.temperature,
        eos_id=eos_id,
        valid_vocab=policy.valid_vocab,
    )
    inputs = TokenInputs(
        jnp.concatenate([prompt, written.tokens], axis=1)[:, None],
        jnp.concatenate([prompt_mask, written.mask.astype(prompt_mask.dtype)], axis=1)[:, None],
    )
    # Not the sampler's own: the first minibatch then sees a ratio of exactly 1.
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
    real = written.mask > 0
    gap = jnp.max(jnp.where(real, jnp.abs(log_prob - written.log_prob), 0.0))
    return Responses(
        inputs=inputs,
        tokens=written.tokens,
        mask=written.mask,
        ended=_ended(written.tokens, written.mask, eos_id),
        gap=gap,
        log_prob=log_prob,
        ref_log_prob=ref_log_prob,
        value=value,
        raw_score=score(frozen["reward"], inputs, policy.length),
        entropy=entropy,
    )


def kl_of(said: Responses) -> jax.Array:
    """[B] Σ_t log π − log π_ref, an estimate of the KL of each response."""
    return rewards.sequence_kl(said.log_prob - said.ref_log_prob, said.mask)


def next_rows(state: RolloutState, num_rows: int, count: int) -> jax.Array:
    """Which prompts come next: pass after pass over all of them, each in an order of its own.

    Args:
        state: its key and cursor.
        num_rows: N, prompts there are.
        count: how many to take.

    Returns:
        [count] row numbers.
    """
    passes = 1 + -(-(count - 1) // num_rows)  # as many as `count` prompts can touch
    position = state.cursor + jnp.arange(count)
    first = state.cursor // num_rows

    def order(epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(state.data_key, epoch), num_rows)

    orders = jax.lax.map(order, first + jnp.arange(passes))
    return orders[position // num_rows - first, position % num_rows]


def shape_scores(moments: PyTree, said: Responses, settings: Settings) -> jax.Array:
    """What is learned from: the scores scaled, clipped, and lowered where no end was reached.

    Args:
        moments: of the scores so far, or ().
        said: their raw scores [B] and ends.
        settings: what is done.

    Returns:
        [B]
    """
    score = said.raw_score
    if settings.scale_scores:
        score = normalization.scale(moments, score, clip=jnp.inf)
    score = jnp.clip(score, -settings.reward_clip, settings.reward_clip)
    if settings.missing_eos_score is not None:
        score = rewards.replace_without_eos(score, said.ended, settings.missing_eos_score)
    return rewards.subtract_without_eos(score, said.ended, settings.missing_eos_penalty)


def _trajectory(
    said: Responses, score: jax.Array, kl_coef: jax.Array, settings: Settings
) -> Trajectory:
    kl = rewards.kl_estimate(said.log_prob, said.ref_log_prob, settings.kl_kind)
    in_reward = kl_coef if settings.kl_in == "reward" else 0.0
    reward = rewards.token_rewards(kl, score, said.mask, in_reward)
    # Running out of room counts as an end, as everywhere in this field.
    last = jnp.sum(said.mask, axis=1).astype(int)[:, None] - 1
    terminated = jnp.arange(said.mask.shape[1]) == last
    following = jnp.roll(said.value, -1, axis=1)
    extra = {
        "ref_log_prob": said.ref_log_prob,
        "kl_coef": jnp.broadcast_to(kl_coef, said.log_prob.shape),
    }
    steps_first = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    return Trajectory(
        obs=steps_first(said.inputs),
        action=said.tokens.T,
        log_prob=said.log_prob.T,
        value=said.value.T,
        next_value=jnp.where(terminated, 0.0, following).T,
        reward=reward.T,
        terminated=terminated.T,
        done=terminated.T,
        weight=said.mask.T.astype(jnp.float32),
        extra=steps_first(extra),
    )


def _ended(tokens: jax.Array, mask: jax.Array, eos_id: int | tuple[int, ...] | None) -> jax.Array:
    """[B] whether the last token is one that ends a response; nothing is missing where none is."""
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


def _metrics(
    said: Responses, shaped: jax.Array, total_kl: jax.Array, kl_coef: jax.Array
) -> Metrics:
    """J = E[r − β KL] and its parts, of the policy that wrote the responses."""
    length = jnp.sum(said.mask, axis=1).astype(jnp.float32)
    return {
        "score": jnp.mean(said.raw_score),
        "score_std": jnp.std(said.raw_score),
        "shaped_score": jnp.mean(shaped),
        "kl": jnp.mean(total_kl),
        "kl_coef": kl_coef,
        "objective": jnp.mean(shaped - kl_coef * total_kl),
        "sampling_entropy": losses.mean(said.entropy, said.mask.astype(jnp.float32)),
        "response_length": jnp.mean(length),
        "eos_rate": jnp.mean(said.ended.astype(jnp.float32)),
        "tokens": jnp.sum(length),
        "log_prob_gap": said.gap,
    }
