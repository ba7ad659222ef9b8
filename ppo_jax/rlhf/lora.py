"""Low-rank adapters (LoRA): small trained matrices that are added to frozen weights.

The actor without its adapters is the reference model, which therefore needs no memory of its own.
Adapters are trained beside the frozen weights, y = x W + (α/r) (x A) B, so that neither the sum of
both nor a gradient of W is stored; `fold` computes W + (α/r) A B for a model folder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.config.options import did_you_mean
from ppo_jax.types import Params

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a model.

    Attributes:
        rank: r, the number of columns of A.
        alpha: α, the scale of the adapters before division by the rank.
        targets: names of the matrices that get adapters in every layer, some of TARGETS.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")

    @property
    def scale(self) -> float:
        """α / r, the factor of A B."""
        return self.alpha / self.rank

    def init(self, key: jax.Array, params: Params) -> Params:
        """The trained parameters of a model with frozen weights: adapters and its score head.

        Args:
            key: PRNG key.
            params: parameters of a decoder; a score head among them is trained entirely.

        Returns:
            The adapters of `init`, and `score` if the model has a score head.
        """
        trained = init(key, params, self.rank, self.targets)
        return trained | ({"score": params["score"]} if "score" in params else {})

    def attach(self, params: Params, trained: Params) -> Params:
        """`attach` with the scale of these adapters."""
        return attach(params, trained, self.scale)


def init(key: jax.Array, params: Params, rank: int, targets: Sequence[str] = ("q", "v")) -> Params:
    """Fresh adapters, with which the model is exactly the one without adapters.

    A ~ N(0, 1 / in), B = 0

    Args:
        key: PRNG key.
        params: parameters of a decoder.
        rank: r, the number of columns of A.
        targets: names of the matrices that get adapters in every layer, some of TARGETS.

    Returns:
        The adapters, {layer: {module: {target: {a [in, r], b [r, out]}}}}.

    Raises:
        ValueError: the rank is not positive, there are no targets, or no layer has a matrix of
            that name.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    if not targets:
        raise ValueError(f"there are no targets of the adapters; choose from: {', '.join(TARGETS)}")
    places = [(layer, module, name) for layer, module, name in _matrices(params)]
    known = sorted({name for _, _, name in places})
    for target in targets:
        if target not in known:
            # PEFT calls the matrices q_proj, k_proj, … .
            near = target.removesuffix("_proj")
            hint = f"did you mean {near}?" if near in known else did_you_mean(target, known)
            raise ValueError(f"no matrix is called {target!r}; {hint}")
    chosen = [place for place in places if place[2] in targets]
    adapters: Params = {}
    for (layer, module, name), noise in zip(
        chosen, jax.random.split(key, len(chosen)), strict=True
    ):
        rows, columns = params[layer][module][name]["kernel"].shape
        adapters.setdefault(layer, {}).setdefault(module, {})[name] = {
            "a": jax.random.normal(noise, (rows, rank)) * rows**-0.5,
            "b": jnp.zeros((rank, columns)),
        }
    return adapters


def merge(params: Params, adapters: Params, scale: jax.Array | float = 1.0) -> Params:
    """The parameters of the adapted model, W + scale · A B.

    Args:
        params: frozen parameters W of the decoder.
        adapters: adapters A and B, as from `init`.
        scale: factor of the product, usually α / r.

    Returns:
        Parameters with the structure of `params`; differentiable in all arguments.

    Source: Hu et al. 2021, eq. 3.
    """
    return fold(attach(params, adapters, scale))


def attach(params: Params, trained: Any, scale: jax.Array | float = 1.0) -> Params:
    """The parameters of the adapted model, with A and α/r B beside the frozen weights W.

    Args:
        params: frozen parameters of the decoder.
        trained: adapters A and B, as from `init`; other arrays replace those of `params`.
        scale: factor of the product, usually α / r.

    Returns:
        Parameters for the functions of the decoder; differentiable in all arguments.
    """
    if not isinstance(trained, Mapping):
        return trained
    if "a" in trained and "b" in trained:
        return {**params, "a": trained["a"], "b": scale * trained["b"]}
    return {**params, **{name: attach(params[name], x, scale) for name, x in trained.items()}}


def fold(params: Any) -> Any:
    """Parameters in which each attached adapter is added to its matrix, W + A B.

    Args:
        params: parameters from `attach`; those without adapters are returned as they are.

    Returns:
        Parameters without adapters, in the dtype of W, with the sum computed in float32.
    """
    if not isinstance(params, Mapping):
        return params
    if "a" in params and "b" in params:
        kernel = params["kernel"]
        change = params["a"].astype(jnp.float32) @ params["b"].astype(jnp.float32)
        rest = {name: x for name, x in params.items() if name not in ("a", "b")}
        return {**rest, "kernel": (kernel.astype(jnp.float32) + change).astype(kernel.dtype)}
    folded = {name: fold(x) for name, x in params.items()}
    return folded if any(folded[name] is not x for name, x in params.items()) else params


def _matrices(params: Params) -> list[tuple[str, str, str]]:
    return [
        (layer, module, name)
        for layer in sorted(params)
        if layer.startswith("layer_")
        for module in ("attention", "mlp")
        for name in sorted(params[layer][module])
        if "kernel" in params[layer][module][name]
    ]
