"""The three stages of RLHF as jobs: supervised fine-tuning, reward modelling and optimisation."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import hf_adapters, lora, optimum, sharding, supervised, train
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.export import save_folder
from ppo_jax.rlhf.hf_io import ModelError, load_model, save_model
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.rollout import Responses, kl_of, shape_scores
from ppo_jax.rlhf.scoring import Reward, from_model, texts_of
from ppo_jax.runs import manifest
from ppo_jax.runs.job import Job
from ppo_jax.types import Batch, Params, TrainState

# Folded into the seed, for PRNG keys of samples and evaluations that training does not use.
SAMPLES, EVALUATION = 0x5A3B, 0xE7A1
# Folded into the seed, for the PRNG key of fresh adapters.
ADAPTERS = 0x10A4
# The folder of a run with adapters in the format of PEFT.
ADAPTER = "adapter"
# The maximum number of updates in a chunk.
MAX_CHUNK = 64
REWARD_FILE = "reward.json"


class Language(NamedTuple):
    """A tokenizer and the place of its files.

    Attributes:
        tokenizer: the tokenizer.
        folder: folder with the tokenizer's files; None for a CharTokenizer, which writes its own.
        base: folder of the model that training starts from, which adapters name as their base; None
            if there is no folder of the whole model.
    """

    tokenizer: Any
    folder: Path | None = None
    base: Path | None = None


def fine_tuning(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    seed: int,
    language: Language,
    mesh: Any = None,
    adapters: Lora | None = None,
) -> Job:
    """Supervised fine-tuning on text.

    Args:
        decoder: architecture of the model.
        params: parameters that training starts from.
        rows: training data, as from `supervised.text_rows`.
        config: hyperparameters of the steps.
        seed: random seed of the order of the rows.
        language: tokenizer that is saved with the model.
        mesh: device mesh that the work is distributed over; None for one device.
        adapters: the adapters that are trained; None if all parameters are.
    """
    return _supervised(
        decoder,
        params,
        rows,
        config,
        kind="sft",
        loss=supervised.make_text_loss(decoder),
        headline="loss",
        seed=seed,
        language=language,
        mesh=mesh,
        adapters=adapters,
    )


def reward_model(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    center: float,
    seed: int,
    language: Language,
    mesh: Any = None,
    adapters: Lora | None = None,
) -> Job:
    """Training of a reward model on preferences.

    Args:
        decoder: architecture of the model.
        params: parameters that training starts from, with a score head.
        rows: training data, as from `supervised.preference_rows`.
        config: hyperparameters of the steps.
        center: coefficient of the centering loss, which keeps scores close to 0.
        seed: random seed of the order of the rows.
        language: tokenizer that is saved with the model.
        mesh: device mesh that the work is distributed over; None for one device.
        adapters: the adapters that are trained besides the score head; None if all parameters are.
    """
    return _supervised(
        decoder,
        params,
        rows,
        config,
        kind="reward",
        loss=supervised.make_preference_loss(decoder, center),
        headline="accuracy",
        seed=seed,
        language=language,
        mesh=mesh,
        adapters=adapters,
    )


def _supervised(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    kind: str,
    loss: Any,
    headline: str,
    seed: int,
    language: Language,
    mesh: Any,
    adapters: Lora | None,
) -> Job:
    kept, held_out = supervised.split(rows, config.validation_fraction)
    frozen, start = {"rows": kept}, params
    if adapters is not None:
        frozen["base"] = params if mesh is None else sharding.shard(params, mesh)
        start = adapters.init(jax.random.fold_in(jax.random.key(seed), ADAPTERS), params)

    def whole(state: TrainState) -> Params:
        trained = state.learner.params
        return trained if adapters is None else adapters.attach(frozen["base"], trained)

    def judge(state: TrainState, update: int) -> dict[str, Any]:
        if held_out is None:
            return {}
        found = supervised.validate(loss, whole(state), held_out)
        return {"validation": {**found, "rows": held_out.weight.shape[0]}}

    def result(state: TrainState, path: Path) -> dict[str, Any]:
        params = whole(state)
        save_folder(path / "model", lambda folder: write_model(folder, decoder, params, language))
        trained = state.learner.params
        write_adapters(path, decoder, trained, adapters=adapters, language=language)
        return judge(state, config.updates)

    init = functools.partial(supervised.init, jax.random.key(seed), start, config)
    step = supervised.make_step(loss, config, mesh, adapters)
    return _job(kind, init, step, mesh)._replace(
        frozen=frozen,
        updates=config.updates,
        units_per_update=config.batch_size,
        headline=headline,
        curves=(headline,),
        # The score of a run is to be maximised, so the loss is not one.
        score=(None, None if headline == "loss" else f"validation_{headline}"),
        evaluate=None if held_out is None else judge,
        result=result,
    )


def _job(kind: str, init: Callable[[], TrainState], step: Any, mesh: Any) -> Job:
    """A job with the values that all stages share."""
    return Job(
        name=kind,
        init=init,
        shapes=jax.eval_shape(init),
        step=lambda state, frozen, floats: step(state, frozen),
        updates=1,
        unit="sequences",
        units_per_update=1,
        headline="loss",
        rows=MAX_CHUNK,
        may_be_nan=("explained_variance",),
        place=placing(mesh),
        source="the reward",
    )


def placing(mesh: Any) -> Callable[[TrainState], TrainState]:
    """A function that distributes a state over a mesh; without a mesh it changes nothing."""
    return (lambda state: state) if mesh is None else lambda state: sharding.shard(state, mesh)


def optimisation(
    program: train.LanguageProgram,
    models: train.Models,
    config: train.Config,
    *,
    seed: int,
    language: Language,
    eval_prompts: int = 256,
) -> Job:
    """Optimisation of a reward with a KL penalty.

    Args:
        program: the training program, as from `train.build`.
        models: the four models.
        config: configuration of sampling and rewards.
        seed: random seed of initialisation, sampling and evaluation.
        language: tokenizer that decodes samples and is saved with the model.
        eval_prompts: number of prompts in an evaluation.
    """
    respond = jax.jit(program.respond, static_argnames="greedy")
    prompts, mask = program.frozen["prompts"], program.frozen["prompt_mask"]

    def write(state: TrainState, key: jax.Array, count: int) -> tuple[Responses, jax.Array]:
        rows = jax.random.randint(key, (count,), 0, prompts.shape[0])
        params = state.learner.params
        said = respond(key, params, program.frozen, (prompts[rows], mask[rows]))
        return said, shape_scores(state.rollout.moments, said, program.settings)

    def samples(state: TrainState, count: int) -> list[dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), SAMPLES + state.update)
        said, _ = write(state, key, count)
        return describe(said, config.max_new_tokens, language.tokenizer)

    def judge(state: TrainState, update: int) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        said, shaped = write(state, key, eval_prompts)
        return {"evaluation": evaluation(said, shaped, float(state.rollout.kl_coef))}

    def result(state: TrainState, path: Path) -> dict[str, Any]:
        actor = program.policy.join(state.learner.params, program.frozen)["actor"]
        save_folder(path / "model", lambda f: write_model(f, models.actor, actor, language))
        write_adapters(
            path,
            models.actor,
            state.learner.params["actor"],
            adapters=train.adapters_of(config),
            language=language,
        )
        return judge(state, config.updates)

    init = functools.partial(program.init, jax.random.key(seed))
    return _job("ppo", init, program.guarded_step, program.settings.mesh)._replace(
        frozen=program.frozen,
        updates=config.updates,
        units_per_update=config.num_prompts * config.group_size,
        headline="objective",
        curves=("objective", "kl", "shaped_score"),
        score=(None, "evaluation_objective"),
        evaluate=judge,
        result=result,
        samples=samples,
    )


def evaluation(said: Responses, shaped: jax.Array, kl_coef: float) -> dict[str, float]:
    """The objective J = E[r − β KL] of a policy, its standard error and its parts.

    Args:
        said: responses to the evaluation prompts.
        shaped: [B] scores of the responses, after scaling, clipping and penalties.
        kl_coef: KL coefficient β.
    """
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


def describe(said: Responses, length: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts and responses as text, with the score and the KL of each response."""
    tokens, mask = np.asarray(said.inputs.tokens[:, 0]), np.asarray(said.inputs.mask[:, 0])
    texts = zip(*texts_of(tokens, mask, length, tokenizer), strict=True)
    numbers = zip(np.asarray(said.raw_score), np.asarray(kl_of(said)), strict=True)
    return [
        {"prompt": prompt, "response": response, "score": float(score), "kl": float(kl)}
        for (prompt, response), (score, kl) in zip(texts, numbers, strict=True)
    ]


def write_model(folder: Path, decoder: Decoder, params: Params, language: Language) -> None:
    """Write a model and its tokenizer to a folder in the format of Hugging Face's libraries.

    Adapters in the parameters are added to their matrices.
    """
    save_model(folder, decoder, lora.fold(params), language.folder)
    if language.folder is None:
        language.tokenizer.save(folder)
        manifest.settle(folder)


def write_adapters(
    path: Path,
    decoder: Decoder,
    trained: Params,
    *,
    adapters: Lora | None,
    language: Language,
) -> None:
    """Write trained adapters to the folder `adapter` of a run, in the format of PEFT.

    Nothing is written without adapters, nor if there is no folder of the whole base model, which
    PEFT would need.
    """
    if adapters is None or language.base is None:
        return
    write = functools.partial(
        hf_adapters.save_adapter,
        decoder=decoder,
        trained=trained,
        adapters=adapters,
        base=language.base,
    )
    save_folder(path / ADAPTER, write)


def write_normalisation(folder: Path, mean: float, deviation: float) -> None:
    """Write mean and standard deviation of a reward model's scores to a file in its folder.

    `read_reward` normalises the scores with them to mean 0 and standard deviation 1.
    """
    manifest.write_json(folder, REWARD_FILE, {"mean": mean, "deviation": deviation})
    manifest.settle(folder)


def read_reward(folder: Path) -> tuple[Reward, Decoder]:
    """A reward model and its decoder; the scores are normalised if the folder has a `reward.json`.

    Raises:
        ModelError: the folder is not a model, or the model has no score head.
    """
    decoder, params = load_model(folder)
    if "score" not in params:
        raise ModelError(
            f"{folder} is not a reward model: it has no score.weight; train one with "
            "python -m ppo_jax.rlhf reward"
        )
    path = folder / REWARD_FILE
    numbers = json.loads(path.read_text()) if path.exists() else {"mean": 0.0, "deviation": 1.0}
    return from_model(decoder, params, **numbers), decoder


def zero_head(params: Params) -> Params:
    """Parameters of a reward model with a score head of zeros, for a critic that starts at 0."""
    return {**params, "score": jax.tree.map(jnp.zeros_like, params["score"])}
