"""Low-rank adapters (LoRA): small trained matrices that are added to frozen weights.

The actor without its adapters is the reference model, which therefore needs no memory of its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ppo_jax.config.options import did_you_mean
from ppo_jax.types import Params


def init(key: jax.Array, params: Params, rank: int, targets: Sequence[str] = ("q", "v")) -> Params:
    """Fresh adapters, with which the model is exactly the one without adapters.

    A ~ N(0, 1 / in), B = 0

    Args:
        key: PRNG key.
        params: parameters of a decoder.
        rank: r, the number of columns of A.
        targets: names of the matrices that get adapters in every layer: q, k, v, o, gate, up, down.

    Returns:
        The adapters, {layer: {module: {target: {a [in, r], b [r, out]}}}}.

    Raises:
        ValueError: the rank is not positive, or no layer has a matrix of that name.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    places = [(layer, module, name) for layer, module, name in _matrices(params)]
    known = sorted({name for _, _, name in places})
    for target in targets:
        if target not in known:
            raise ValueError(f"no matrix is called {target!r}; {did_you_mean(target, known)}")
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
    if "a" in adapters and "b" in adapters:
        kernel = params["kernel"]
        change = scale * (adapters["a"] @ adapters["b"])
        return params | {"kernel": kernel + change.astype(kernel.dtype)}
    return params | {name: merge(params[name], x, scale) for name, x in adapters.items()}


def _matrices(params: Params) -> list[tuple[str, str, str]]:
    return [
        (layer, module, name)
        for layer in sorted(params)
        if layer.startswith("layer_")
        for module in ("attention", "mlp")
        for name in sorted(params[layer][module])
        if "kernel" in params[layer][module][name]
    ]
