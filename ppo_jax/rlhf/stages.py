"""The three stages: imitate text, learn what is preferred, optimise it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import algorithms, optimum, supervised, train
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.hf_io import save_model
from ppo_jax.rlhf.rollout import Responses, shape_scores
from ppo_jax.rlhf.scoring import texts_of
from ppo_jax.rlhf.session import Stage
from ppo_jax.types import Batch, Params, TrainState

# Folded into the seed for keys that training never uses.
SAMPLES, EVALUATION = 0x5A3B, 0xE7A1
REWARD_FILE = "reward.json"


def fine_tuning(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    seed: int,
    tokenizer: Any,
) -> Stage:
    """Learn to write as in the given text.

    Args:
        decoder: what learns.
        params: to start from.
        rows: of `supervised.text_rows`.
        config: of the steps.
        seed: of the order of the rows.
        tokenizer: saved with the model.
    """
    loss = supervised.make_text_loss(decoder)
    return _supervised("sft", decoder, params, rows, config, loss, "loss", seed, tokenizer)


def reward_model(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    center: float,
    seed: int,
    tokenizer: Any,
) -> Stage:
    """Learn which of two responses is preferred.

    Args:
        decoder: what learns.
        params: to start from, with a head `score`.
        rows: of `supervised.preference_rows`.
        config: of the steps.
        center: weight of the term that keeps scores about 0.
        seed: of the order of the rows.
        tokenizer: saved with the model.
    """
    loss = supervised.make_preference_loss(decoder, center)
    return _supervised("reward", decoder, params, rows, config, loss, "accuracy", seed, tokenizer)


def _supervised(
    kind: str,
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    loss: Any,
    headline: str,
    seed: int,
    tokenizer: Any,
) -> Stage:
    kept, held_out = supervised.split(rows, config.validation_fraction)

    def judge(state: TrainState) -> dict[str, Any]:
        if held_out is None:
            return {}
        found = supervised.validate(loss, state.learner.params, held_out)
        return {"validation": {**found, "rows": held_out.weight.shape[0]}}

    return Stage(
        kind=kind,
        init=lambda: supervised.init(jax.random.key(seed), params, config),
        step=supervised.make_step(loss, config),
        frozen={"rows": kept},
        updates=config.updates,
        rows=config.batch_size,
        headline=headline,
        save=lambda state, folder: save_model(folder, decoder, state.learner.params, tokenizer),
        judge=judge,
    )


def optimisation(
    program: train.Program,
    models: train.Models,
    config: train.Config,
    *,
    seed: int,
    tokenizer: Any,
    eval_prompts: int = 256,
) -> Stage:
    """Optimise a reward near the reference.

    Args:
        program: of `train.build`.
        models: the four roles.
        config: of the run.
        seed: of everything random.
        tokenizer: makes text of samples, and is saved with the model.
        eval_prompts: that the result is judged by.
    """
    respond = jax.jit(program.respond, static_argnames="greedy")
    prompts, mask = program.frozen["prompts"], program.frozen["prompt_mask"]

    def write(state: TrainState, key: jax.Array, count: int) -> tuple[Responses, jax.Array]:
        rows = jax.random.randint(key, (count,), 0, prompts.shape[0])
        params = state.learner.params
        said = respond(key, params, program.frozen, prompts[rows], mask[rows])
        return said, shape_scores(state.rollout.moments, said, program.settings)[1]

    def samples(state: TrainState, count: int) -> list[dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), SAMPLES + state.update)
        said, _ = write(state, key, count)
        return describe(said, config.max_new_tokens, tokenizer)

    def judge(state: TrainState) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        said, shaped = write(state, key, eval_prompts)
        return {"evaluation": evaluation(said, shaped, config.kl_coef)}

    def save(state: TrainState, folder: Path) -> None:
        actor = program.policy.join(state.learner.params, program.frozen)["actor"]
        save_model(folder, models.actor, actor, tokenizer)

    return Stage(
        kind="ppo",
        init=functools.partial(program.init, jax.random.key(seed)),
        step=program.step,
        frozen=program.frozen,
        updates=config.updates,
        rows=config.num_prompts * config.group_size,
        headline="objective",
        save=save,
        judge=judge,
        samples=samples,
    )


def evaluation(said: Responses, shaped: jax.Array, kl_coef: float) -> dict[str, float]:
    """What a policy reaches: J = E[r − β KL], its parts, and how sure that is."""
    total_kl = kl_of(said)
    value, error = optimum.objective(shaped, total_kl, kl_coef)
    return {
        "objective": value,
        "objective_standard_error": error,
        "score": float(jnp.mean(said.raw_score)),
        "shaped_score": float(jnp.mean(shaped)),
        "kl": float(jnp.mean(total_kl)),
        "eos_rate": float(jnp.mean(said.ended)),
        "response_length": float(jnp.mean(jnp.sum(said.mask, axis=1))),
        "log_prob_gap": float(said.gap),
        "responses": int(shaped.shape[0]),
    }


def kl_of(said: Responses) -> jax.Array:
    """[B] Σ_t log π − log π_ref."""
    return jnp.sum(jnp.where(said.mask > 0, said.log_prob - said.ref_log_prob, 0.0), axis=1)


def describe(said: Responses, length: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Responses as text, with what they were given."""
    tokens, mask = np.asarray(said.inputs.tokens[:, 0]), np.asarray(said.inputs.mask[:, 0])
    texts = zip(*texts_of(tokens, mask, length, tokenizer), strict=True)
    numbers = zip(np.asarray(said.raw_score), np.asarray(kl_of(said)), strict=True)
    return [
        {"prompt": prompt, "response": response, "score": float(score), "kl": float(kl)}
        for (prompt, response), (score, kl) in zip(texts, numbers, strict=True)
    ]


def zero_head(params: Params) -> Params:
    """A reward model as a critic: its head as zeros, so that it starts by promising nothing."""
    return {**params, "score": jax.tree.map(jnp.zeros_like, params["score"])}


def with_updates(config: supervised.Config, updates: int) -> supervised.Config:
    """The configuration at another length."""
    return dataclasses.replace(config, updates=updates)
