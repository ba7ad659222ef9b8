"""The four models of RLHF, and the step that trains two of them.

actor      the language model that generates responses; trained, entirely or as adapters
critic     the value model of partial responses; trained; a decoder or a head on the actor
reference  the model from which the KL divergence of the actor is penalised; frozen
reward     the score of a response; a frozen model, or a function
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.config.rlhf import Rollouts as Config
from ppo_jax.config.rlhf import settled
from ppo_jax.rlhf import algorithms, combinations, rollout, sharding
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.policy import LanguagePolicy, make_policy
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rollout import sequences
from ppo_jax.runs import memory
from ppo_jax.train import GuardedStep, Step, make_guarded_step
from ppo_jax.types import Algorithm, Params, PyTree, TrainState, Trajectory

# By default, the keys and values of a part of a rollout may always take this number of bytes.
CACHE_BYTES = 2**30


class Models(NamedTuple):
    """The four models.

    Attributes:
        actor: architecture of actor and reference.
        actor_params: parameters that the actor starts from.
        critic: a decoder, or "shared" for a score head on the actor, or "none".
        critic_params: parameters that the critic starts from: those of a decoder with a score head,
            {"score": ...} for "shared", {} for "none".
        reference_params: frozen parameters of the reference.
        reward: the reward, a frozen model or a function.
    """

    actor: Decoder
    actor_params: Params
    critic: Decoder | str
    critic_params: Params
    reference_params: Params
    reward: Reward


class LanguageProgram(NamedTuple):
    """The functions and arrays of a training run.

    Attributes:
        init: initial state, key -> TrainState.
        step: one rollout and update, (TrainState, frozen) -> (TrainState, Metrics).
        guarded_step: the same step with the check for numbers that are not finite,
            (TrainState, frozen) -> (TrainState, Metrics, guard.Found).
        frozen: arrays that are arguments of the step and never change: reference, reward, prompts.
        policy: policy with actor and critic.
        respond: sampling, (key, params, frozen, (tokens, mask, rows)) -> Responses.
        settings: settings of the rollout.
        collect: one rollout, (key, params, RolloutState, frozen) -> (RolloutState, Trajectory).
        algorithm: function frozen -> Algorithm, the functions of an update.
    """

    init: Callable[[jax.Array], TrainState]
    step: Step
    frozen: PyTree
    policy: LanguagePolicy
    respond: Callable[..., rollout.Responses]
    settings: rollout.Settings
    guarded_step: GuardedStep
    collect: Callable[..., tuple[rollout.RolloutState, Trajectory]]
    algorithm: Callable[[PyTree], Algorithm]


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
    """Build the functions of a training run; nothing is compiled.

    Args:
        models: the four models.
        prompts: [N, P] token ids, padded on the left.
        prompt_mask: [N, P] mask, nonzero for tokens.
        config: options of sampling, rewards and adapters.
        hyper: hyperparameters of the update.
        eos_id: id or ids of the tokens that end a response; None if no token does.
        valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all
            ids.
        mesh: device mesh from `sharding.make_mesh`; None for one device. The returned frozen arrays
            are distributed over it; the caller distributes the state with `sharding.shard`.

    Raises:
        ValueError: options that cannot be combined; the message names the reason.
    """
    check(config, hyper, models)
    config, hyper = settled(config, config.algorithm), settled(hyper, config.algorithm)
    _warn_of_whole_batches(config, hyper, mesh)
    policy = _policy(models, config, valid_vocab=valid_vocab, mesh=mesh)
    size = rollout_batch(config, models.actor, prompts.shape[1], mesh)
    settings = _settings(config, eos_id)._replace(
        rollout_batch=size, mesh=mesh, reward_names=models.reward.names
    )
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
        total_updates=config.anneal_updates or config.updates,
        group_size=config.group_size,
        kl_kind=config.kl_kind if config.kl_in == "loss" else None,
    )
    guarded_step = functools.partial(_guarded_step, collect=collect, algorithm=algorithm, mesh=mesh)
    frozen = {
        "reference": models.reference_params,
        "reward": models.reward.frozen,
        "prompts": jnp.asarray(prompts),
        "prompt_mask": jnp.asarray(prompt_mask),
    } | ({"critic": models.critic_params} if config.lora_critic else {})
    return LanguageProgram(
        functools.partial(
            _init, models=models, config=config, settings=settings, algorithm=algorithm(frozen)
        ),
        lambda state, frozen: guarded_step(state, frozen)[:2],
        sharding.shard(frozen, mesh),
        policy,
        functools.partial(rollout.respond, settings=_of_policy(settings), **parts),
        settings,
        guarded_step,
        collect,
        algorithm,
    )


def _policy(
    models: Models, config: Config, *, valid_vocab: int | None, mesh: Any
) -> LanguagePolicy:
    """The policy of actor and critic, which splits its inputs over the devices."""
    policy = make_policy(
        models.actor,
        models.critic,
        length=config.max_new_tokens,
        temperature=config.temperature,
        adapters=adapters_of(config),
        critic_adapters=config.lora_critic,
        valid_vocab=valid_vocab,
    )
    return policy._replace(apply=sharding.over_devices(policy.apply, mesh))


def _warn_of_whole_batches(config: Config, hyper: algorithms.Config, mesh: Any) -> None:
    """Warn if the devices cannot share a micro-batch, which each of them then computes whole."""
    parts = hyper.minibatches * hyper.micro_batches
    rows, shards = config.num_prompts * config.group_size // parts, sharding.data_size(mesh)
    if rows % shards:
        warnings.warn(
            f"{shards} devices cannot share micro-batches of {rows} rows evenly, so that each of "
            "them computes all rows; change num_prompts, minibatches or micro_batches",
            stacklevel=3,
        )


def rollout_batch(config: Config, actor: Decoder, prompt_length: int, mesh: Any = None) -> int:
    """Number of responses that are sampled and evaluated at a time.

    Without the option, it is the largest divisor of the number of responses for which the keys and
    values of one device take no more bytes than the parameters of the actor, or than CACHE_BYTES.

    Args:
        config: options of sampling, among them `rollout_batch`, which may be None.
        actor: architecture of the model that generates the responses.
        prompt_length: P, the number of columns of the prompts.
        mesh: device mesh that the responses are distributed over; None for one device.

    Raises:
        ValueError: the option does not divide the responses, or not the devices along `data`.
    """
    responses = config.num_prompts * config.group_size
    shards = sharding.data_size(mesh)
    fitting = [n for n in range(1, responses + 1) if responses % n == 0 and n % shards == 0]
    if config.rollout_batch is not None:
        if config.rollout_batch not in fitting:
            raise ValueError(
                f"rollout_batch is {config.rollout_batch}; it must divide num_prompts x group_size "
                f"= {config.num_prompts} x {config.group_size} = {responses} responses into equal "
                f"parts that {shards} devices can share; nearest that do: "
                f"{_nearest(fitting, config.rollout_batch)}"
            )
        return config.rollout_batch
    length = prompt_length + config.max_new_tokens
    cache = memory.bytes_of(jax.eval_shape(lambda: actor.init_cache(1, length).layers))
    params = memory.bytes_of(jax.eval_shape(actor.init, jax.random.key(0)))
    limit = max(CACHE_BYTES, params) * shards // cache
    return max((n for n in fitting if n <= limit), default=min(fitting, default=responses))


def _nearest(numbers: list[int], to: int) -> str:
    return ", ".join(map(str, sorted(sorted(numbers, key=lambda n: abs(n - to))[:3])))


def _guarded_step(
    state: TrainState, frozen: PyTree, *, collect: Any, algorithm: Any, mesh: Any
) -> Any:
    """One rollout and update with the result of the guard; frozen arrays are arguments."""
    step = make_guarded_step(collect, algorithm(frozen), sequences)
    state, metrics, found = step(state, frozen)
    return sharding.keep_sharded(state, mesh), metrics, found


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
    params, adapters = {"actor": models.actor_params}, adapters_of(config)
    if models.critic != "none":
        params["critic"] = models.critic_params
    if adapters is not None:
        params["actor"] = adapters.init(lora_key, params["actor"])
    if adapters is not None and config.lora_critic:
        params["critic"] = adapters.init(jax.random.fold_in(lora_key, 1), params["critic"])
    # Copies, because updates donate their buffers, which the reference must not share.
    params = jax.tree.map(jnp.copy, params)
    experience = rollout.init(data_key, settings)
    if settings.stale:
        experience = dataclasses.replace(experience, sampler=jax.tree.map(jnp.copy, params))
    learner = algorithm.init(key, params)
    return TrainState(learner, experience, key, jnp.zeros((), jnp.int32))


def adapters_of(config: Any) -> Lora | None:
    """The adapters that the options describe; None if all parameters are trained.

    Args:
        config: options with the fields `lora_rank`, `lora_alpha` and `lora_targets`.
    """
    if not config.lora_rank:
        return None
    return Lora(config.lora_rank, config.lora_alpha, tuple(config.lora_targets))


def check(config: Config, hyper: algorithms.Config, models: Models) -> None:
    """Refuse options that cannot be combined.

    Raises:
        ValueError: the message names the given values, the allowed values and a remedy.
    """
    method, responses = ALGORITHMS[config.algorithm], config.num_prompts * config.group_size
    combinations.check(config, hyper, groups=method.groups)
    if responses % (hyper.minibatches * hyper.micro_batches):
        raise ValueError(
            f"num_prompts x group_size = {config.num_prompts} x {config.group_size} = {responses} "
            f"responses cannot be split evenly into minibatches x micro_batches = "
            f"{hyper.minibatches} x {hyper.micro_batches} parts; change one of these four"
        )
    if config.lora_rank and models.reference_params is not models.actor_params:
        raise ValueError(
            "with lora_rank the reference is the model without adapters, so it cannot be another "
            "model; leave out the reference"
        )
    if config.lora_critic and not (config.lora_rank and isinstance(models.critic, Decoder)):
        raise ValueError(
            "lora_critic needs lora_rank > 0 and a critic with a trunk of its own, but lora_rank "
            f"is {config.lora_rank} and the critic is "
            f"{models.critic if isinstance(models.critic, str) else 'a model'}; use critic reward "
            "or model, or leave out lora_critic"
        )
    if method.groups and config.group_size < 2:
        raise ValueError(
            f"{config.algorithm} compares responses to the same prompt, but group_size is "
            f"{config.group_size}; it must be >= 2"
        )
    if method.critic and models.critic == "none":
        raise ValueError(f"{config.algorithm} needs a critic; use critic shared, model or reward")
    if not method.critic and models.critic != "none":
        raise ValueError(f"{config.algorithm} has no critic; use critic none")


def _settings(config: Config, eos_id: int | tuple[int, ...] | None) -> rollout.Settings:
    names = {f.name for f in dataclasses.fields(config)} & {*rollout.Settings._fields}
    return rollout.Settings(eos_id=eos_id, **{name: getattr(config, name) for name in names})


def _of_policy(settings: rollout.Settings) -> rollout.Settings:
    """Settings that sample from the policy itself, for evaluations and examples."""
    return settings._replace(sampling_temperature=None, top_k=None, top_p=None)


def fresh_score(actor: Decoder) -> Params:
    """A score head of zeros for the actor: {"score": {"kernel": [D, 1]}}."""
    return {"score": {"kernel": jnp.zeros((actor.config.hidden_size, 1), jnp.float32)}}
