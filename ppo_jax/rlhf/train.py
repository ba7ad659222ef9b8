"""Four models in one signature, and the step that trains two of them.

actor      writes; trained, whole or as adapters
critic     says what a text is worth so far; trained; a decoder of its own or a head on the actor
reference  what the actor is to stay near; frozen
reward     says what a response is worth; frozen, or a function
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config.rlhf import Rollouts as Config
from ppo_jax.rlhf import algorithms, lora, rollout, sharding
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import LanguagePolicy, make_policy
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rollout import sequences
from ppo_jax.train import GuardedStep, Step, make_guarded_step
from ppo_jax.types import Algorithm, Params, PyTree, TrainState


class Models(NamedTuple):
    """The four roles.

    Attributes:
        actor: the decoder that writes; the reference is one like it.
        actor_params: to start from.
        critic: a decoder with a head `score`, or "shared" for a head on the actor, or "none".
        critic_params: of it; {"score": ...} for a head alone, {} for none.
        reference_params: frozen.
        reward: a frozen model or a function.
    """

    actor: Decoder
    actor_params: Params
    critic: Decoder | str
    critic_params: Params
    reference_params: Params
    reward: Reward


class LanguageProgram(NamedTuple):
    """What models and a configuration stand for.

    Attributes:
        init: key -> TrainState.
        step: (TrainState, frozen) -> (TrainState, Metrics).
        guarded_step: the same, and guard.Found.
        frozen: arrays that are arguments of the step and never change: the reference, the reward,
            the prompts.
        policy: the actor and the critic.
        respond: (key, params, frozen, (tokens, mask), greedy=False) -> Responses.
        settings: of the rollout.
    """

    init: Callable[[jax.Array], TrainState]
    step: Step
    frozen: PyTree
    policy: LanguagePolicy
    respond: Callable[..., rollout.Responses]
    settings: rollout.Settings
    guarded_step: GuardedStep


def build(
    models: Models,
    prompts: Any,
    prompt_mask: Any,
    config: Config,
    *,
    hyper: algorithms.Config,
    eos_id: int | tuple[int, ...] | None,
    valid_vocab: int | None = None,
    mesh: Any = None,
) -> LanguageProgram:
    """Put the parts together; nothing is compiled.

    Args:
        models: the four roles.
        prompts: [N, P] tokens, padded on the left.
        prompt_mask: [N, P].
        config: what is written.
        hyper: of the update.
        eos_id: token, or tokens, that end a response; None: none does.
        valid_vocab: ids from here on are in no tokenizer, and impossible; None admits all.
        mesh: of `sharding.make_mesh`, where there are several devices. The state is then spread
            by `sharding.shard`; the frozen arrays are.

    Raises:
        ValueError: what cannot work, and why.
    """
    check(config, hyper, models)
    policy = make_policy(
        models.actor,
        models.critic,
        length=config.max_new_tokens,
        temperature=config.temperature,
        lora_scale=config.lora_alpha / config.lora_rank if config.lora_rank else None,
        valid_vocab=valid_vocab,
    )
    settings = _settings(config, eos_id)._replace(mesh=mesh)
    parts: dict[str, Any] = {
        "policy": policy,
        "reference": models.actor,
        "score": models.reward.score,
    }
    collect = functools.partial(rollout.collect, settings=settings, **parts)
    algorithm = functools.partial(
        algorithms.make,
        config.algorithm,
        policy,
        hyper,
        total_updates=config.updates,
        group_size=config.group_size,
        kl_kind=config.kl_kind if config.kl_in == "loss" else None,
    )

    guarded_step = functools.partial(_guarded_step, collect=collect, algorithm=algorithm)
    frozen = {
        "reference": models.reference_params,
        "reward": models.reward.frozen,
        "prompts": jnp.asarray(prompts),
        "prompt_mask": jnp.asarray(prompt_mask),
    }
    return LanguageProgram(
        functools.partial(
            _init, models=models, config=config, settings=settings, algorithm=algorithm(frozen)
        ),
        lambda state, frozen: guarded_step(state, frozen)[:2],
        frozen if mesh is None else sharding.shard(frozen, mesh),
        policy,
        functools.partial(rollout.respond, eos_id=eos_id, **parts),
        settings,
        guarded_step,
    )


def _guarded_step(state: TrainState, frozen: PyTree, *, collect: Any, algorithm: Any) -> Any:
    """One update, with what the guard says of it; the algorithm is that of the frozen arrays."""
    return make_guarded_step(collect, algorithm(frozen), sequences)(state, frozen)


def _init(
    key: jax.Array,
    *,
    models: Models,
    config: Config,
    settings: rollout.Settings,
    algorithm: Algorithm,
) -> TrainState:
    """The state before the first update."""
    key, data_key, lora_key = jax.random.split(key, 3)
    actor = models.actor_params
    if config.lora_rank:
        actor = lora.init(lora_key, actor, config.lora_rank)
    params = {"actor": actor}
    if models.critic != "none":
        params["critic"] = models.critic_params
    # Each its own: what is donated to an update must not be the reference, too.
    params = jax.tree.map(jnp.copy, params)
    experience = rollout.init(data_key, settings)
    learner = algorithm.init(key, params)
    return TrainState(learner, experience, key, jnp.zeros((), jnp.int32))


def check(config: Config, hyper: algorithms.Config, models: Models) -> None:
    """Refuse what cannot work together.

    Raises:
        ValueError: what was given, what is allowed, what to do.
    """
    method, responses = ALGORITHMS[config.algorithm], config.num_prompts * config.group_size
    if responses % (hyper.minibatches * hyper.micro_batches):
        raise ValueError(
            f"num_prompts x group_size = {config.num_prompts} x {config.group_size} = {responses} "
            f"responses do not divide into minibatches x micro_batches = {hyper.minibatches} x "
            f"{hyper.micro_batches}"
        )
    if config.lora_rank and models.reference_params is not models.actor_params:
        raise ValueError(
            "adapters are laid over the reference, so with lora_rank it has to be the model "
            "itself; leave the reference out"
        )
    if method.groups and config.group_size < 2:
        raise ValueError(
            f"{config.algorithm} compares responses to the same prompt: group_size is "
            f"{config.group_size}; it must be >= 2"
        )
    if method.critic and models.critic == "none":
        raise ValueError(f"{config.algorithm} needs a critic; use critic shared, model or reward")
    if not method.critic and models.critic != "none":
        raise ValueError(f"{config.algorithm} has no critic; use critic none")


def _settings(config: Config, eos_id: int | tuple[int, ...] | None) -> rollout.Settings:
    names = {f.name for f in dataclasses.fields(config)} & {*rollout.Settings._fields}
    return rollout.Settings(eos_id=eos_id, **{name: getattr(config, name) for name in names})


def fresh_score(actor: Decoder) -> Params:
    """A head of zeros on the actor: {"score": {"kernel": [D, 1]}}."""
    return {"score": {"kernel": jnp.zeros((actor.config.hidden_size, 1), jnp.float32)}}
