"""The exported function: observations as arrays, one per entry, to actions of the environment."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.agent import Parts, make_act
from ppo_jax.config import ConfigError, installation
from ppo_jax.envs.codec import Port
from ppo_jax.runs import provenance, trust


def inputs(parts: Parts) -> list[Port]:
    """The function's inputs, with the names of the environment: `obs`, or `obs.NAME` for each entry
    of an observation, and `action_mask` unless the mask is an entry of the observation."""
    return parts.codec.ports


def output(parts: Parts) -> Port:
    """The function's output, an action in the environment's format."""
    return parts.codec.action.port


def function(parts: Parts) -> Callable[..., jax.Array]:
    """The greedy policy (obs [N, ...], ...) -> action [N, ...], with arguments as in `inputs`.

    All arrays have 32-bit types. For a recurrent policy, this is the first action of an episode.
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
    """Shapes and types of the function's arguments.

    Args:
        parts: parts of the agent.
        batch: batch size N, a number or a symbolic dimension.
    """
    return [jax.ShapeDtypeStruct((batch, *p.shape), p.program_dtype) for p in inputs(parts)]


def describe(parts: Parts) -> dict[str, Any]:
    """A JSON description of the exported function for its users."""
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
    """Refuse observations or actions with integers that do not fit in 32 bits.

    Raises:
        ConfigError: the values exceed the range; the message states the name, range and a remedy.
    """
    for port in (*inputs(parts), output(parts)):
        if not port.fits:
            raise ConfigError(
                f"{port.name} has values from {int(np.min(port.low))} to {int(np.max(port.high))}, "
                f"but a file of format {format} uses 32-bit integers; use --format safetensors and "
                "ppo_jax.load(FILE)"
            )


def refuse_memory(parts: Parts, format: str) -> None:
    """Refuse a recurrent policy, whose action depends on more than one observation.

    Raises:
        ConfigError: the policy is recurrent; the message gives a remedy.
    """
    if parts.has_memory:
        kind = "" if parts.config.memory == "none" else f" ({parts.config.memory})"
        raise ConfigError(
            f"this policy is recurrent{kind}, but a file of format {format} is a function of one "
            "observation; use --format safetensors and ppo_jax.load(FILE), which keeps the "
            "recurrent state"
        )


def require(format: str, *packages: str) -> None:
    """Refuse a format whose packages are missing, before anything is read or compiled.

    Args:
        format: name of the format, which is also the name of the extra with its packages.
        packages: names of the required packages.

    Raises:
        ConfigError: a package is missing; the message gives the command that installs it.
    """
    for package in packages:
        if not importlib.util.find_spec(package):
            raise ConfigError(
                f"--format {format} needs {package}: {installation.command(f'[{format}]')}"
            )
