"""The exported function: observations in, one array per entry, the environment's actions out."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.agent import Parts, make_act
from ppo_jax.config import ConfigError
from ppo_jax.runs import provenance, trust


class Port(NamedTuple):
    """An array that goes in or comes out, without its batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def inputs(parts: Parts) -> list[Port]:
    """What the function takes: `obs`, or `obs.NAME` for each entry of an observation."""
    found = jax.tree_util.tree_leaves_with_path(parts.obs)
    names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in found]
    return [
        Port(f"obs.{name}" if name else "obs", tuple(x.shape[1:]), np.dtype(x.dtype))
        for name, (_, x) in zip(names, found, strict=True)
    ]


def function(parts: Parts) -> Callable[..., jax.Array]:
    """(obs [N, ...], ...) -> action [N, ...]: greedy, in the order of `inputs`.

    Of a policy with memory, the first action of an episode.
    """
    act, structure = make_act(parts), jax.tree.structure(parts.obs)

    def policy(*obs: jax.Array) -> jax.Array:
        core, start = (), None
        if parts.has_memory:
            count = obs[0].shape[0]
            core, start = parts.policy.init_core(count), jnp.ones(count, bool)
        return act(None, core, jax.tree.unflatten(structure, obs), start)[1]

    return policy


def output(parts: Parts) -> Port:
    """What comes out."""
    shapes = [jax.ShapeDtypeStruct((1, *p.shape), p.dtype) for p in inputs(parts)]
    action = jax.eval_shape(function(parts), *shapes)
    return Port("action", action.shape[1:], np.dtype(action.dtype))


def describe(parts: Parts) -> dict[str, Any]:
    """All that a user of the file has to know, as JSON."""
    config = configs.to_json(parts.config)
    return {
        "env": parts.config.env,
        "algorithm": parts.config.algorithm,
        "action": "greedy, as the environment takes it",
        "inputs": [_described(p) for p in inputs(parts)],
        "outputs": [_described(output(parts))],
        "config": config,
        "signature": trust.sign({"config": config}),
        "versions": provenance.versions(),
    }


def _described(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": ["N", *port.shape], "dtype": port.dtype.name}


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
