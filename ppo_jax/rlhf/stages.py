"""The three stages of RLHF as jobs: supervised fine-tuning, reward modelling and optimisation."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import evaluation, hf_adapters, lora, sharding, supervised, train
from ppo_jax.rlhf.buckets import bucketed, parts_of
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.export import save_folder
from ppo_jax.rlhf.held_out import NOTHING
from ppo_jax.rlhf.hf_io import load_model, save_model
from ppo_jax.rlhf.hf_values import ModelError
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


class HeldOutRows(NamedTuple):
    """Held-out data of supervised training.

    Attributes:
        rows: the data, in the format of the training data.
        about: number and origin of the examples, for summary.json.
    """

    rows: Batch
    about: str


class HeldOutPrompts(NamedTuple):
    """Held-out prompts.

    Attributes:
        tokens: [N, P] token ids, padded on the left.
        mask: [N, P] mask, nonzero for tokens.
        about: number and origin of the prompts, for summary.json.
        first: row of the first of them among all prompts, by which reward functions find columns.
    """

    tokens: np.ndarray
    mask: np.ndarray
    about: str
    first: int = 0


def fine_tuning(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    held_out: HeldOutRows | None = None,
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
        held_out: held-out data in the same format; None for no evaluation.
        seed: random seed of the order of the rows.
        language: tokenizer that is saved with the model.
        mesh: device mesh that the work is distributed over; None for one device.
        adapters: the adapters that are trained; None if all parameters are.
    """
    stage = _Supervised(
        kind="sft",
        loss=supervised.make_text_loss(decoder),
        measure=evaluation.make_text_metrics(decoder),
        score="eval_loss",
        decoder=decoder,
        config=config,
        held_out=held_out,
        seed=seed,
        language=language,
        mesh=mesh,
        adapters=adapters,
    )
    job = _supervised(stage, params, rows)
    return job._replace(headline="loss", curves=("loss",), minimise=True)


def reward_model(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    held_out: HeldOutRows | None = None,
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
        held_out: held-out data in the same format; None for no evaluation.
        center: coefficient of the centering loss, which keeps scores close to 0.
        seed: random seed of the order of the rows.
        language: tokenizer that is saved with the model. A model without a padding token gets the
            one of the tokenizer, because transformers scores no batches without.
        mesh: device mesh that the work is distributed over; None for one device.
        adapters: the adapters that are trained besides the score head; None if all parameters are.
    """
    if decoder.config.pad_id is None:
        padded = dataclasses.replace(decoder.config, pad_id=language.tokenizer.pad_id)
        decoder = Decoder(padded)
    loss = supervised.make_preference_loss(decoder, center)
    stage = _Supervised(
        kind="reward",
        loss=loss,
        measure=loss,
        score="eval_accuracy",
        decoder=decoder,
        config=config,
        held_out=held_out,
        seed=seed,
        language=language,
        mesh=mesh,
        adapters=adapters,
    )
    job = _supervised(stage, params, rows)
    return job._replace(headline="accuracy", curves=("accuracy", "loss"))


class _Supervised(NamedTuple):
    """A stage of supervised training, apart from its parameters and rows.

    Attributes:
        kind: name of the stage.
        loss: loss of a step.
        measure: function of an evaluation, with the signature of a loss.
        score: metric by which checkpoints are compared, if there is held-out data.
        decoder, config, held_out, seed, language, mesh, adapters: arguments of `fine_tuning`.
    """

    kind: str
    loss: Any
    measure: Any
    score: str
    decoder: Decoder
    config: supervised.Config
    held_out: HeldOutRows | None
    seed: int
    language: Language
    mesh: Any
    adapters: Lora | None


def _supervised(stage: _Supervised, params: Params, rows: Batch) -> Job:
    config, held_out, mesh, adapters = stage.config, stage.held_out, stage.mesh, stage.adapters
    training = bucketed(rows, config.length_buckets, config.batch_size)
    planned = supervised.updates_of(config, rows.weight.shape[0])
    # One function is compiled once.
    spread = sharding.over_devices(stage.measure, mesh)
    frozen, start = {"rows": sharding.shard(training, mesh)}, params
    if adapters is not None:
        frozen["base"] = sharding.shard(params, mesh)
        start = adapters.init(jax.random.fold_in(jax.random.key(stage.seed), ADAPTERS), params)

    def whole(state: TrainState) -> Params:
        trained = state.learner.params
        return trained if adapters is None else adapters.attach(frozen["base"], trained)

    def evaluate(state: TrainState, update: int) -> dict[str, Any]:
        return _evaluated(stage, spread, whole(state))

    def result(state: TrainState, path: Path) -> dict[str, Any]:
        _write_trained(stage, path, state.learner.params, whole(state))
        return evaluate(state, planned)

    init = functools.partial(
        supervised.init, jax.random.key(stage.seed), start, config, len(parts_of(training))
    )
    # The step counts its updates only to decay the learning rate.
    horizon = dataclasses.replace(config, updates=config.anneal_updates or planned)
    step = supervised.make_step(stage.loss, horizon, mesh, adapters)
    return _job(stage.kind, init, step, mesh)._replace(
        frozen=frozen,
        updates=planned,
        units_per_update=config.batch_size,
        score=(None, None if held_out is None else stage.score),
        evaluate=None if held_out is None else evaluate,
        result=result,
    )


def _evaluated(stage: _Supervised, measure: Any, params: Params) -> dict[str, Any]:
    """The metrics of parameters on the held-out data of a stage; empty without such data."""
    held_out, config = stage.held_out, stage.config
    if held_out is None:
        return {}
    # An evaluation needs no more memory than a step.
    rows_at_once = max(1, config.batch_size // config.micro_batches)
    found = supervised.validate(measure, params, held_out.rows, rows_at_once)
    found["examples"] = held_out.rows.weight.shape[0]
    return evaluation.named(found, held_out.about)


def _write_trained(stage: _Supervised, path: Path, trained: Params, whole: Params) -> None:
    """Write the model of a stage and, if there are any, its adapters."""
    decoder, language = stage.decoder, stage.language
    save_folder(path / "model", lambda folder: write_model(folder, decoder, whole, language))
    write_adapters(path, decoder, trained, adapters=stage.adapters, language=language)


def _job(kind: str, init: Callable[[], TrainState], step: Any, mesh: Any) -> Job:
    """A job with the values that all stages share."""
    return Job(
        name=kind,
        init=init,
        shapes=sharding.sharded_shapes(jax.eval_shape(init), mesh),
        step=lambda state, frozen, floats: step(state, frozen),
        updates=1,
        unit="sequences",
        units_per_update=1,
        headline="loss",
        rows=MAX_CHUNK,
        may_be_nan=("explained_variance",),
        keeps_best=True,
        place=placing(mesh),
        source="the reward",
    )


def placing(mesh: Any) -> Callable[[TrainState], TrainState]:
    """A function that distributes a state over a mesh; without a mesh it changes nothing."""
    return lambda state: sharding.shard(state, mesh)


def optimisation(
    program: train.LanguageProgram,
    models: train.Models,
    config: train.Config,
    *,
    held_out: HeldOutPrompts | None = None,
    seed: int,
    language: Language,
    eval_responses: int = 256,
) -> Job:
    """Optimisation of a reward with a KL penalty.

    Args:
        program: the training program, as from `train.build`.
        models: the four models.
        config: configuration of sampling and rewards.
        held_out: prompts of the evaluations; None for the prompts of training.
        seed: random seed of initialisation, sampling and evaluation.
        language: tokenizer that decodes samples and is saved with the model.
        eval_responses: number of responses in an evaluation. All evaluations use the same prompts
            and the same random numbers.
    """
    respond = jax.jit(program.respond)
    per_update = config.num_prompts * config.group_size
    prompts, mask = program.frozen["prompts"], program.frozen["prompt_mask"]
    held_out = held_out or HeldOutPrompts(np.asarray(prompts), np.asarray(mask), NOTHING)
    chosen = _chosen(held_out, seed, eval_responses)

    def samples(state: TrainState, count: int) -> list[dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), SAMPLES + state.update)
        rows = jax.random.randint(key, (count,), 0, prompts.shape[0])
        drawn = (prompts[rows], mask[rows], rows)
        responses = respond(key, state.learner.params, program.frozen, drawn)
        return describe(responses, config.max_new_tokens, language.tokenizer)

    def evaluate(state: TrainState, update: int) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        params = state.learner.params
        write = lambda key, rows: respond(key, params, program.frozen, rows)
        responses = evaluation.responses_to(write, key, chosen, size=per_update)
        shaped = shape_scores(state.rollout.moments, responses, program.settings)
        # With the initial β, evaluations during a run with an adaptive β can be compared.
        found = evaluation.of_policy(responses, shaped, config.kl_coef, chosen[2])
        return evaluation.named(found, held_out.about)

    def result(state: TrainState, path: Path) -> dict[str, Any]:
        trained = state.learner.params
        actor = program.policy.join(trained, program.frozen)["actor"]
        save_folder(path / "model", lambda f: write_model(f, models.actor, actor, language))
        adapters = train.adapters_of(config)
        write_adapters(path, models.actor, trained["actor"], adapters=adapters, language=language)
        return evaluate(state, config.updates)

    init = functools.partial(program.init, jax.random.key(seed))
    return _job("ppo", init, program.guarded_step, program.settings.mesh)._replace(
        frozen=program.frozen,
        updates=config.updates,
        unit="responses",
        units_per_update=per_update,
        headline="objective",
        curves=("objective", "kl", "shaped_score"),
        score=(None, "eval_objective"),
        evaluate=evaluate,
        result=result,
        samples=samples,
    )


def _chosen(held_out: HeldOutPrompts, seed: int, count: int) -> tuple[np.ndarray, ...]:
    """(token ids, mask, rows) of a random choice of prompts; each has several responses if there
    are fewer prompts than responses."""
    order = np.random.default_rng(seed).permutation(len(held_out.tokens))
    rows = np.resize(order, count)
    return held_out.tokens[rows], held_out.mask[rows], held_out.first + rows


def describe(responses: Responses, length: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Prompts and responses as text, with the score and the KL of each response."""
    tokens, mask = (
        np.asarray(responses.inputs.tokens[:, 0]),
        np.asarray(responses.inputs.mask[:, 0]),
    )
    texts = zip(*texts_of(tokens, mask, length, tokenizer), strict=True)
    numbers = zip(np.asarray(responses.raw_score), np.asarray(kl_of(responses)), strict=True)
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


def read_reward(
    folder: Path, param_dtype: str = "float32", mesh: Any = None
) -> tuple[Reward, Decoder]:
    """A reward model and its decoder; the scores are normalised if the folder has a `reward.json`.

    Args:
        folder: folder of the model.
        param_dtype: dtype of the parameters.
        mesh: device mesh that the parameters are distributed over; None for one device.

    Raises:
        ModelError: the folder is not a model, or the model has no score head.
    """
    decoder, params = load_model(folder, param_dtype=param_dtype, mesh=mesh)
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
