"""Combinations of options of an algorithm that mean nothing, refused before anything compiles."""

import dataclasses
import math
from typing import Any

from ppo_jax.config.rlhf import Rollouts, Update, settled
from ppo_jax.config.schedules import is_schedule
from ppo_jax.config.traced import is_tracer
from ppo_jax.rlhf.objective import BY_RATIO

# Options whose value differs from its default only if it was given.
DEFAULTS = {f.name: f.default for record in (Rollouts, Update) for f in dataclasses.fields(record)}


def check(config: Rollouts, hyper: Update, *, groups: bool) -> None:
    """Refuse combinations in which an option has no effect or no meaning.

    Args:
        config: options of the rollouts, as they were given.
        hyper: options of the update, as they were given.
        groups: whether the algorithm compares the responses of a group.

    Raises:
        ValueError: the message names the given values, the allowed values and a remedy.
    """
    name = config.algorithm
    if not groups:
        _check_without_groups(config, hyper)
    config, hyper = settled(config, name), settled(hyper, name)
    _check_advantages(config, hyper)
    _check_objective(hyper)
    _check_sampling(config)


def _check_without_groups(config: Rollouts, hyper: Update) -> None:
    """Refuse options of the methods that compare the responses of a group."""
    chosen = {
        "advantage_scale": hyper.advantage_scale,
        "ratio": None if hyper.ratio == "token" else hyper.ratio,
        "dynamic_sampling": None if config.dynamic_sampling == "off" else config.dynamic_sampling,
    }
    for name, value in chosen.items():
        if value is not None:
            raise ValueError(
                f"{name} is {value}, which needs one advantage for each response, compared with "
                f"those of its group, but {config.algorithm} does not compare responses to one "
                f"prompt; leave {name} out, or use an algorithm with groups, such as grpo"
            )


def _check_advantages(config: Rollouts, hyper: Update) -> None:
    if hyper.advantage_scale == "batch" and hyper.whiten_advantages:
        raise ValueError(
            "advantage_scale batch has no effect with whiten_advantages, which divides by the "
            "standard deviation of the rollout again; leave one of them out"
        )
    if hyper.advantage_scale == "mean":
        _check_not_negative(config)


def _check_not_negative(config: Rollouts) -> None:
    """Refuse options that may make the mean return of a group negative."""
    penalised = is_tracer(config.kl_coef) or config.kl_coef != 0
    if config.kl_in == "reward" and penalised:
        raise ValueError(
            "advantage_scale mean divides by the mean return of a group, which a KL penalty in the "
            "rewards may make negative; use kl_in loss, or kl_coef 0"
        )
    score = config.missing_eos_score
    lowest = {
        "length_penalty": -config.length_penalty,
        "missing_eos_penalty": -config.missing_eos_penalty,
        "missing_eos_score": 0.0 if score is None else score,
    }
    for name, value in lowest.items():
        if is_tracer(value) or value < 0:
            given = "varies" if is_tracer(value) else f"is {getattr(config, name)}"
            raise ValueError(
                f"{name} {given}, but advantage_scale mean divides by the mean return of a group, "
                f"which it may make negative; leave {name} out, or use another advantage_scale"
            )


def _check_objective(hyper: Update) -> None:
    if hyper.objective in BY_RATIO:
        for name in ("dual_clip", "clip_eps_high"):
            if getattr(hyper, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(hyper, name)}, but objective {hyper.objective} has no "
                    f"clip range; leave {name} out, or use objective clip"
                )
    if hyper.objective == "discovered" and _is_given(hyper, "clip_eps"):
        raise ValueError(
            f"clip_eps is {hyper.clip_eps}, but objective discovered has no clip range; leave "
            "clip_eps out, or use objective clip"
        )
    if hyper.objective == "cispo":
        if hyper.dual_clip is not None:
            raise ValueError(
                f"dual_clip is {hyper.dual_clip}, but objective cispo bounds the ratio by 1 + "
                "clip_eps_high for every advantage; leave dual_clip out"
            )
        if _is_given(hyper, "clip_eps"):
            raise ValueError(
                f"clip_eps is {hyper.clip_eps}, but objective cispo has no lower bound of the "
                "ratio; leave clip_eps out, and set clip_eps_high"
            )
    high = hyper.clip_eps if hyper.clip_eps_high is None else hyper.clip_eps_high
    bound: Any = hyper.dual_clip
    if bound is not None and _is_number(high) and _is_number(bound) and bound <= 1.0 + high:
        raise ValueError(
            f"dual_clip is {hyper.dual_clip}; it must exceed the upper bound of the ratio, "
            f"1 + {high:g}"
        )


def _check_sampling(config: Rollouts) -> None:
    no_penalty = not is_tracer(config.length_penalty) and config.length_penalty == 0
    if _is_given(config, "length_penalty_start") and no_penalty:
        raise ValueError(
            f"length_penalty_start is {config.length_penalty_start}, but length_penalty is 0; "
            "set length_penalty, for example to 1, or leave length_penalty_start out"
        )
    if _is_given(config, "kl_horizon") and config.kl_target is None:
        raise ValueError(
            f"kl_horizon is {config.kl_horizon}, but the KL coefficient is constant without "
            "kl_target; set kl_target, or leave kl_horizon out"
        )
    if _is_given(config, "max_draws") and config.dynamic_sampling != "redraw":
        raise ValueError(
            f"max_draws is {config.max_draws}, but dynamic_sampling is {config.dynamic_sampling}; "
            "use dynamic_sampling redraw, or leave max_draws out"
        )
    differs = [
        n for n in ("stale", "sampling_temperature", "top_k", "top_p") if _is_given(config, n)
    ]
    if differs and config.importance_cap is None:
        raise ValueError(
            f"{differs[0]} is {getattr(config, differs[0])}, so that responses are not sampled "
            "from the policy that is trained; set importance_cap, for example to 2, to correct it"
        )


def _is_given(record: Any, name: str) -> bool:
    """Whether an option has another value than its default; a tracer does."""
    value = getattr(record, name)
    return is_tracer(value) or value != DEFAULTS[name]


def _is_number(value: Any) -> bool:
    return not is_tracer(value) and not is_schedule(value) and math.isfinite(value)
