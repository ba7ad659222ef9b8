"""Supervised training on a fixed dataset, for fine-tuning and for reward models."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import guard, sgd
from ppo_jax.config.rlhf import Supervised as Config
from ppo_jax.rlhf.buckets import lengths, parts_of, shortened
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.rewards import centering_loss, preference_loss
from ppo_jax.rlhf.rollout import next_rows
from ppo_jax.rlhf.sharding import keep_sharded, over_devices, spread
from ppo_jax.types import Batch, LearnerState, LossFn, Metrics, Params, PyTree, TrainState


@struct.dataclass
class DataState:
    """The position of a run in its data.

    Attributes:
        data_key: PRNG key of the order of the rows.
        cursor: [] number of rows used so far; [K] for each of K length buckets.
    """

    data_key: jax.Array
    cursor: jax.Array


Step = Callable[[TrainState, PyTree], tuple[TrainState, Metrics, guard.Found]]


def init(key: jax.Array, params: Params, config: Config, buckets: int = 1) -> TrainState:
    """The state before the first step.

    Args:
        key: PRNG key.
        params: parameters that training starts from.
        config: hyperparameters of the steps.
        buckets: number K of length buckets of the training rows.
    """
    key, data_key = jax.random.split(key)
    data = DataState(data_key, jnp.zeros((buckets,) if buckets > 1 else (), jnp.int32))
    # A copy, because a step donates its buffers, and the caller may still need the original.
    learner = sgd.init(jax.tree.map(jnp.copy, params), _optimizer(config))
    return TrainState(learner, data, key, jnp.zeros((), jnp.int32))


def make_step(
    loss_fn: LossFn, config: Config, mesh: Any = None, adapters: Lora | None = None
) -> Step:
    """One step of gradient descent on the next rows, all of one length bucket.

    Args:
        loss_fn: loss function, (params, Batch [M]) -> ([], metrics).
        config: hyperparameters; the learning rate decays linearly to 0 over `updates`, or follows
            its schedule.
        mesh: device mesh that a batch is distributed over; None for one device.
        adapters: the adapters that are trained; None if all parameters are.

    Returns:
        A function (TrainState, {"rows": rows}) -> (TrainState, metrics, guard.Found), whose rows
        are a Batch [N], or one Batch for each length bucket, as from `buckets.bucketed`. With
        adapters, the second argument also has "base", the frozen parameters.
    """
    optimizer = _optimizer(config)
    loss_fn = over_devices(loss_fn, mesh)

    def descend(learner: LearnerState, data: DataState, rows: Batch, loss: LossFn) -> Any:
        index = next_rows(data, rows.weight.shape[0], config.batch_size)  # type: ignore[arg-type]
        batch = spread(jax.tree.map(lambda x: x[index], rows), mesh)
        return sgd.sgd_step(learner, batch, loss, optimizer, micro_batches=config.micro_batches)

    def step(state: TrainState, frozen: PyTree) -> tuple[TrainState, Metrics, guard.Found]:
        data, buckets = state.rollout, parts_of(frozen["rows"])
        learner = sgd.anneal(state.learner, config.learning_rate, config.updates, 1)
        loss = loss_fn if adapters is None else with_adapters(loss_fn, adapters, frozen["base"])
        chosen = 0 if len(buckets) == 1 else _next_bucket(data.cursor, buckets, config.batch_size)
        branches = [
            functools.partial(descend, data=_data_of(data, k, len(buckets)), rows=rows, loss=loss)
            for k, rows in enumerate(buckets)
        ]
        learner, metrics = jax.lax.switch(chosen, branches, learner)
        metrics["learning_rate"] = learner.opt_state.learning_rate
        used = config.batch_size * (jnp.arange(len(buckets)) == chosen)
        cursor = data.cursor + used.astype(jnp.int32).reshape(data.cursor.shape)
        data = dataclasses.replace(data, cursor=cursor)
        found = guard.check(guard.learned(learner))
        state = TrainState(learner, data, state.key, state.update + 1)
        return keep_sharded(state, mesh), metrics, found

    return step


def with_adapters(loss_fn: LossFn, adapters: Lora, base: Params) -> LossFn:
    """The loss as a function of adapters, with frozen weights `base`."""
    return lambda trained, rows: loss_fn(adapters.attach(base, trained), rows)


def _next_bucket(cursor: jax.Array, buckets: tuple[Batch, ...], batch_size: int) -> jax.Array:
    """The bucket that has been used least relative to its size, so that all rows count equally."""
    sizes = jnp.asarray([rows.weight.shape[0] for rows in buckets], jnp.float32)
    used = cursor.astype(jnp.float32)
    due = (jnp.sum(used) + batch_size) * sizes / jnp.sum(sizes)
    return jnp.argmax(due - used)


def _data_of(data: DataState, bucket: int, count: int) -> DataState:
    """The position in one bucket, whose rows have an order of their own."""
    if count == 1:
        return data
    return DataState(jax.random.fold_in(data.data_key, bucket), data.cursor[bucket])


def updates_of(config: Config, rows: int) -> int:
    """The number of updates that `epochs` asks for; `updates` if it is None.

    ⌈epochs · rows / batch_size⌉

    Args:
        config: hyperparameters of the steps.
        rows: number of rows of the training data.
    """
    if config.epochs is None:
        return config.updates
    return max(1, math.ceil(config.epochs * rows / config.batch_size))


def text_rows(tokens: Any, mask: Any, weight: Any) -> Batch:
    """A batch for the text loss.

    Args:
        tokens: [N, L] token ids, padded on the right.
        mask: [N, L] mask, 1 for tokens and 0 for padding.
        weight: [N, L] weights of the tokens in the loss, 1 for completions and 0 for prompts and
            padding.
    """
    obs = {"tokens": np.asarray(tokens), "mask": np.asarray(mask)}
    return _rows(obs, np.asarray(weight, np.float32)[:, 1:])


def preference_rows(chosen: tuple[Any, Any], rejected: tuple[Any, Any], margin: Any) -> Batch:
    """A batch for the preference loss.

    Args:
        chosen: preferred texts, (token ids [N, L] of prompt and response, mask [N, L]).
        rejected: the other texts, in the same format.
        margin: [N] score differences that the preferences demand.
    """
    obs = {
        "chosen": np.asarray(chosen[0]),
        "chosen_mask": np.asarray(chosen[1]),
        "rejected": np.asarray(rejected[0]),
        "rejected_mask": np.asarray(rejected[1]),
        "margin": np.asarray(margin, np.float32),
    }
    return _rows(obs, np.ones(len(margin), np.float32))


def make_text_loss(decoder: Decoder) -> LossFn:
    """Cross-entropy of the next token.

    L = −Σ w_t log π(x_t | x_{<t}) / Σ w_t

    Args:
        decoder: architecture of the model.

    Returns:
        A loss function (params, Batch of `text_rows`) -> ([], metrics).
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        tokens, mask = rows.obs["tokens"], rows.obs["mask"]
        hidden = decoder.hidden(params, tokens[:, :-1], mask[:, :-1])
        dist = decoder.distribution(params, hidden)
        log_prob = jnp.where(rows.weight > 0, dist.log_prob(tokens[:, 1:]), 0.0)
        loss = -jnp.sum(rows.weight * log_prob) / jnp.maximum(jnp.sum(rows.weight), 1.0)
        return loss, {"loss": loss}

    return loss_fn


def make_preference_loss(decoder: Decoder, center: float = 0.0) -> LossFn:
    """Negative log-likelihood of preferences, plus a regulariser that centres the scores.

    L = mean −log σ(r_chosen − r_rejected − margin) + c (r_chosen + r_rejected)²

    Args:
        decoder: architecture of the model, whose parameters have a score head.
        center: coefficient c of the regulariser.

    Returns:
        A loss function (params, Batch of `preference_rows`) -> ([], metrics); the metric `accuracy`
        is the fraction of pairs whose preferred text has the higher score.

    Source: Stiennon et al. 2020, Learning to Summarize from Human Feedback, section 3.4.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        pair = rows.obs
        tokens = jnp.concatenate([pair["chosen"], pair["rejected"]])
        mask = jnp.concatenate([pair["chosen_mask"], pair["rejected_mask"]])
        chosen, rejected = jnp.split(decoder.score(params, tokens, mask), 2)
        loss = jnp.mean(preference_loss(chosen, rejected, pair["margin"]))
        metrics = {
            "preference_loss": loss,
            "accuracy": jnp.mean((chosen > rejected).astype(jnp.float32)),
            "score": jnp.mean(jnp.stack([chosen, rejected])),
        }
        loss = loss + center * jnp.mean(centering_loss(chosen, rejected))
        return loss, metrics | {"loss": loss}

    return loss_fn


def validate(loss_fn: LossFn, params: Params, rows: Batch, size: int = 256) -> dict[str, float]:
    """Mean metrics over validation rows, weighted by the tokens, or pairs, that are predicted.

    Σ_b w_b m_b / Σ_b w_b,   w_b = total weight of batch b

    Args:
        loss_fn: loss function, (params, Batch [M]) -> ([], metrics).
        params: parameters of the model.
        rows: the validation rows [N].
        size: maximum number of rows in a batch; the rows of a batch have similar lengths.
    """
    order = np.argsort(lengths(rows), kind="stable")
    metrics_of = _metrics_of(loss_fn)
    total: dict[str, float] = {}
    weight = 0.0
    for start in range(0, len(order), size):
        index = order[start : start + size]
        batch = shortened(jax.tree.map(lambda x, index=index: x[index], rows))
        share = float(np.sum(batch.weight))
        weight += share
        for name, x in metrics_of(params, batch).items():
            total[name] = total.get(name, 0.0) + share * float(x)
    return {name: x / max(weight, 1e-30) for name, x in total.items()}


@functools.lru_cache(maxsize=8)
def _metrics_of(loss_fn: LossFn) -> Callable[[Params, Batch], Metrics]:
    """The metrics of a loss, compiled once for all evaluations of a run."""
    return jax.jit(lambda params, batch: loss_fn(params, batch)[1])


def _rows(obs: PyTree, weight: np.ndarray) -> Batch:
    return Batch(obs, (), (), (), (), (), weight)  # type: ignore[arg-type]


def _optimizer(config: Config) -> Any:
    return sgd.make_optimizer(
        config.max_grad_norm,
        config.adam_eps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay or None,
    )
