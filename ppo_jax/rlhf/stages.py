"""The three stages: imitate text, learn what is preferred, optimise it."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf import optimum, sharding, supervised, train
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.export import save_folder
from ppo_jax.rlhf.hf_io import ModelError, load_model, save_model
from ppo_jax.rlhf.rollout import Responses, kl_of, shape_scores
from ppo_jax.rlhf.scoring import Reward, from_model, texts_of
from ppo_jax.runs import manifest
from ppo_jax.runs.job import Job
from ppo_jax.types import Batch, Params, TrainState

# Folded into the seed for keys that training never uses.
SAMPLES, EVALUATION = 0x5A3B, 0xE7A1
# A chunk never has more updates than this.
MAX_CHUNK = 64
REWARD_FILE = "reward.json"


class Language(NamedTuple):
    """How text becomes tokens.

    Attributes:
        tokenizer: a Tokenizer.
        folder: where its files are; None for a CharTokenizer, which writes its own.
    """

    tokenizer: Any
    folder: Path | None = None


def fine_tuning(
    decoder: Decoder,
    params: Params,
    rows: Batch,
    config: supervised.Config,
    *,
    seed: int,
    language: Language,
    mesh: Any = None,
) -> Job:
    """Learn to write as in the given text.

    Args:
        decoder: what learns.
        params: to start from.
        rows: of `supervised.text_rows`.
        config: of the steps.
        seed: of the order of the rows.
        language: whose tokenizer is saved with the model.
        mesh: of devices that share the work.
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
) -> Job:
    """Learn which of two responses is preferred.

    Args:
        decoder: what learns.
        params: to start from, with a head `score`.
        rows: of `supervised.preference_rows`.
        config: of the steps.
        center: weight of the term that keeps scores about 0.
        seed: of the order of the rows.
        language: whose tokenizer is saved with the model.
        mesh: of devices that share the work.
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
) -> Job:
    kept, held_out = supervised.split(rows, config.validation_fraction)

    def judge(state: TrainState, update: int) -> dict[str, Any]:
        if held_out is None:
            return {}
        found = supervised.validate(loss, state.learner.params, held_out)
        return {"validation": {**found, "rows": held_out.weight.shape[0]}}

    def result(state: TrainState, path: Path) -> dict[str, Any]:
        params = state.learner.params
        save_folder(path / "model", lambda folder: write_model(folder, decoder, params, language))
        return judge(state, config.updates)

    init = functools.partial(supervised.init, jax.random.key(seed), params, config)
    return _job(kind, init, supervised.make_step(loss, config, mesh), mesh)._replace(
        frozen={"rows": kept},
        updates=config.updates,
        units_per_update=config.batch_size,
        headline=headline,
        curves=(headline,),
        # A loss falls, so that it is no score.
        score=(None, None if headline == "loss" else f"validation_{headline}"),
        evaluate=None if held_out is None else judge,
        result=result,
    )


def _job(kind: str, init: Callable[[], TrainState], step: Any, mesh: Any) -> Job:
    """What the jobs of all stages share."""
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
    """Where a state goes: spread over a mesh, or where it is."""
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
    """Optimise a reward near the reference.

    Args:
        program: of `train.build`.
        models: the four roles.
        config: of the run.
        seed: of everything random.
        language: its tokenizer makes text of samples, and is saved with the model.
        eval_prompts: that the result is judged by.
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


def describe(said: Responses, length: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Responses as text, with what they were given."""
    tokens, mask = np.asarray(said.inputs.tokens[:, 0]), np.asarray(said.inputs.mask[:, 0])
    texts = zip(*texts_of(tokens, mask, length, tokenizer), strict=True)
    numbers = zip(np.asarray(said.raw_score), np.asarray(kl_of(said)), strict=True)
    return [
        {"prompt": prompt, "response": response, "score": float(score), "kl": float(kl)}
        for (prompt, response), (score, kl) in zip(texts, numbers, strict=True)
    ]


def write_model(folder: Path, decoder: Decoder, params: Params, language: Language) -> None:
    """A model's folder with its tokenizer in it, as Hugging Face's libraries read it."""
    save_model(folder, decoder, params, language.folder)
    if language.folder is None:
        language.tokenizer.save(folder)
        manifest.settle(folder)


def write_normalisation(folder: Path, mean: float, deviation: float) -> None:
    """Beside a reward model: what it says of the reference's responses, to be 0 ± 1."""
    manifest.write_json(folder, REWARD_FILE, {"mean": mean, "deviation": deviation})
    manifest.settle(folder)


def read_reward(folder: Path) -> tuple[Reward, Decoder]:
    """A reward model, normalised as the file beside it says, if there is one; and its decoder.

    Raises:
        ModelError: it is not a model, or one without a head `score`.
    """
    decoder, params = load_model(folder)
    if "score" not in params:
        raise ModelError(
            f"{folder} is no reward model: it has no score.weight; make one with "
            "python -m ppo_jax.rlhf reward"
        )
    path = folder / REWARD_FILE
    numbers = json.loads(path.read_text()) if path.exists() else {"mean": 0.0, "deviation": 1.0}
    return from_model(decoder, params, **numbers), decoder


def zero_head(params: Params) -> Params:
    """A reward model as a critic: its head as zeros, so that it starts by promising nothing."""
    return {**params, "score": jax.tree.map(jnp.zeros_like, params["score"])}
