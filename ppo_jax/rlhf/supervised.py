"""Supervised training on a fixed dataset, for fine-tuning and for reward models."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import guard, sgd
from ppo_jax.config.rlhf import Supervised as Config
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.rewards import centering_loss, preference_loss
from ppo_jax.rlhf.rollout import next_rows
from ppo_jax.rlhf.sharding import spread
from ppo_jax.rlhf.token_distribution import TokenDistribution
from ppo_jax.types import Batch, LossFn, Metrics, Params, PyTree, TrainState


@struct.dataclass
class DataState:
    """The position of a run in its data.

    Attributes:
        data_key: PRNG key of the order of the rows.
        cursor: [] number of rows used so far.
    """

    data_key: jax.Array
    cursor: jax.Array


Step = Callable[[TrainState, PyTree], tuple[TrainState, Metrics, guard.Found]]


def init(key: jax.Array, params: Params, config: Config) -> TrainState:
    """The state before the first step.

    Args:
        key: PRNG key.
        params: parameters that training starts from.
        config: hyperparameters of the steps.
    """
    key, data_key = jax.random.split(key)
    data = DataState(data_key, jnp.zeros((), jnp.int32))
    # A copy, because a step donates its buffers, and the caller may still need the original.
    learner = sgd.init(jax.tree.map(jnp.copy, params), _optimizer(config))
    return TrainState(learner, data, key, jnp.zeros((), jnp.int32))


def make_step(
    loss_fn: LossFn, config: Config, mesh: Any = None, adapters: Lora | None = None
) -> Step:
    """One step of gradient descent on the next rows.

    Args:
        loss_fn: loss function, (params, Batch [M]) -> ([], metrics).
        config: hyperparameters; the learning rate decays linearly to 0 over `updates`, or follows
            its schedule.
        mesh: device mesh that a batch is distributed over; None for one device.
        adapters: the adapters that are trained; None if all parameters are.

    Returns:
        A function (TrainState, {"rows": Batch [N]}) -> (TrainState, metrics, guard.Found). With
        adapters, the second argument also has "base", the frozen parameters.
    """
    optimizer = _optimizer(config)

    def step(state: TrainState, frozen: PyTree) -> tuple[TrainState, Metrics, guard.Found]:
        data, rows = state.rollout, frozen["rows"]
        index = next_rows(data, rows.weight.shape[0], config.batch_size)
        batch = spread(jax.tree.map(lambda x: x[index], rows), mesh)
        learner = sgd.anneal(state.learner, config.learning_rate, config.updates, 1)
        loss = loss_fn if adapters is None else with_adapters(loss_fn, adapters, frozen["base"])
        learner, metrics = sgd.sgd_step(
            learner, batch, loss, optimizer, micro_batches=config.micro_batches
        )
        metrics["learning_rate"] = learner.opt_state.learning_rate
        data = dataclasses.replace(data, cursor=data.cursor + config.batch_size)
        found = guard.check(guard.learned(learner))
        return TrainState(learner, data, state.key, state.update + 1), metrics, found

    return step


def with_adapters(loss_fn: LossFn, adapters: Lora, base: Params) -> LossFn:
    """The loss as a function of adapters, with frozen weights `base`."""
    return lambda trained, rows: loss_fn(adapters.attach(base, trained), rows)


def split(rows: Batch, fraction: float) -> tuple[Batch, Batch | None]:
    """A random split of the rows: (training rows, validation rows; None if there are none)."""
    count = rows.weight.shape[0]
    kept = int(count * fraction)
    order = np.random.default_rng(0).permutation(count)  # files are often sorted
    rows = jax.tree.map(lambda x: x[order], rows)
    if kept == 0:
        return rows, None
    return jax.tree.map(lambda x: x[: count - kept], rows), jax.tree.map(
        lambda x: x[count - kept :], rows
    )


def text_rows(tokens: Any, mask: Any, weight: Any) -> Batch:
    """A batch for the text loss.

    Args:
        tokens: [N, L] token ids, padded on the right.
        mask: [N, L] mask, 1 for tokens and 0 for padding.
        weight: [N, L] weights of the tokens in the loss, 1 for completions and 0 for prompts and
            padding.
    """
    obs = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
    return _rows(obs, jnp.asarray(weight, jnp.float32)[:, 1:])


def preference_rows(chosen: tuple[Any, Any], rejected: tuple[Any, Any], margin: Any) -> Batch:
    """A batch for the preference loss.

    Args:
        chosen: preferred texts, (token ids [N, L] of prompt and response, mask [N, L]).
        rejected: the other texts, in the same format.
        margin: [N] score differences that the preferences demand.
    """
    obs = {
        "chosen": jnp.asarray(chosen[0]),
        "chosen_mask": jnp.asarray(chosen[1]),
        "rejected": jnp.asarray(rejected[0]),
        "rejected_mask": jnp.asarray(rejected[1]),
        "margin": jnp.asarray(margin, jnp.float32),
    }
    return _rows(obs, jnp.ones(len(margin), jnp.float32))


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
        dist = TokenDistribution(hidden, decoder.head(params))
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
    """Mean metrics over validation rows, computed in batches of at most `size` rows."""
    count = rows.weight.shape[0]
    judge = jax.jit(lambda params, batch: loss_fn(params, batch)[1])
    total: dict[str, float] = {}
    for start in range(0, count, size):
        batch = jax.tree.map(lambda x, start=start: x[start : start + size], rows)
        share = batch.weight.shape[0] / count
        for name, x in judge(params, batch).items():
            total[name] = total.get(name, 0.0) + share * float(x)
    return total


def _rows(obs: PyTree, weight: jax.Array) -> Batch:
    return Batch(obs, (), (), (), (), (), weight)  # type: ignore[arg-type]


def _optimizer(config: Config) -> Any:
    return sgd.make_optimizer(
        config.max_grad_norm, config.adam_eps, learning_rate=config.learning_rate
    )
