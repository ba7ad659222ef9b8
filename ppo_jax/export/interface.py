"""The exported function: observations in, one array per entry, the environment's actions out."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.agent import Parts, make_act
from ppo_jax.config import ConfigError
from ppo_jax.envs.codec import Port
from ppo_jax.runs import provenance, trust


def inputs(parts: Parts) -> list[Port]:
    """What the function takes, as the environment returns it: `obs`, or `obs.NAME` for each entry
    of an observation, and `action_mask` where the mask is no entry."""
    return parts.codec.ports


def output(parts: Parts) -> Port:
    """What comes out, as the environment takes it."""
    return parts.codec.action.port


def function(parts: Parts) -> Callable[..., jax.Array]:
    """(obs [N, ...], ...) -> action [N, ...]: greedy, in the order of `inputs`, in 32 bits.

    Of a policy with memory, the first action of an episode.
    """
    act, codec = make_act(parts), parts.codec

    def policy(*arrays: jax.Array) -> jax.Array:
        core, start = (), None
        if parts.has_memory:
            count = arrays[0].shape[0]
            core, start = parts.policy.init_core(count), jnp.ones(count, bool)
        action = act(None, core, codec.read(arrays, jnp), start)[1]
        return codec.action.encode(action, jnp)

    return policy


def shapes(parts: Parts, batch: Any) -> list[jax.ShapeDtypeStruct]:
    """Descriptions of what the function takes.

    Args:
        parts: of the agent.
        batch: N, a number or a symbol.
    """
    return [jax.ShapeDtypeStruct((batch, *p.shape), p.program_dtype) for p in inputs(parts)]


def describe(parts: Parts) -> dict[str, Any]:
    """All that a user of the file has to know, as JSON."""
    config = configs.to_json(parts.config)
    return {
        "env": parts.config.env,
        "algorithm": parts.config.algorithm,
        "action": "greedy, as the environment takes it",
        "mask": parts.codec.mask_source or None,
        "inputs": [_described(p) for p in inputs(parts)],
        "outputs": [_described(output(parts))],
        "config": config,
        "signature": trust.sign({"config": config}),
        "versions": provenance.versions(),
    }


def _described(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": ["N", *port.shape],
        "dtype": port.program_dtype.name,
        "env_dtype": port.dtype.name,
    }


def refuse_64_bits(parts: Parts, format: str) -> None:
    """Programs count in 32 bits, which not every choice of an environment does.

    Raises:
        ConfigError: one starts beyond them.
    """
    for port in (*inputs(parts), output(parts)):
        if not port.fits:
            raise ConfigError(
                f"{port.name} has values from {int(np.min(port.low))} to {int(np.max(port.high))}, "
                f"and a file of format {format} counts in 32 bits; use --format safetensors, and "
                "ppo_jax.load(FILE)"
            )


def refuse_memory(parts: Parts, format: str) -> None:
    """A policy with memory is no function of one observation.

    Raises:
        ConfigError: it is one.
    """
    if parts.has_memory:
        kind = "" if parts.config.memory == "none" else f" ({parts.config.memory})"
        raise ConfigError(
            f"this policy has a memory{kind}, and a file of format {format} is a "
            "function of one observation; use --format safetensors, and ppo_jax.load(FILE), which "
            "remembers"
        )


def require(format: str, *packages: str) -> None:
    """Refuse before anything is read or compiled.

    Args:
        format: of the file, and name of the extra that brings the packages.
        packages: that it needs.

    Raises:
        ConfigError: one is missing, with what to do.
    """
    for package in packages:
        if not importlib.util.find_spec(package):
            raise ConfigError(f"--format {format} needs {package}: pip install 'ppo_jax[{format}]'")
