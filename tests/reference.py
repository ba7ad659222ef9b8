"""Access to the golden arrays, and to weights in torch's layout."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """One npz file: `golden(case)` is the dict of that case's arrays."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = dict(file)

    def __call__(self, case: str) -> dict[str, np.ndarray]:
        prefix = case + "/"
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def cases(self, suffix: str) -> list[str]:
        """Every case whose path ends so."""
        found = {k[: k.index(suffix) + len(suffix)] for k in self.arrays if suffix + "/" in k}
        return sorted(c for c in found if c.endswith(suffix))


def dense(weights: dict[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    """A torch Linear's (out, in) weight and bias as a flax Dense's kernel and bias."""
    return {
        "kernel": jnp.asarray(weights[f"{name}.weight"].T),
        "bias": jnp.asarray(weights[f"{name}.bias"]),
    }


def actor_critic(
    weights: dict[str, np.ndarray], actor: list[str], critic: list[str], log_std: str | None
) -> dict:
    """Parameters of a Policy with two hidden layers from the names of a torch model's layers."""
    params = {
        role: {
            "body": {f"Dense_{i}": dense(weights, n) for i, n in enumerate(names[:-1])},
            "head": dense(weights, names[-1]),
        }
        for role, names in (("actor", actor), ("critic", critic))
    }
    if log_std is not None:
        params["actor"]["log_std"] = jnp.asarray(weights[log_std]).reshape(-1)
    return params


def assert_close(actual, expected, rtol: float, atol: float) -> None:
    """Every leaf of two trees, compared as float64."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(e, np.float64),
            rtol=rtol,
            atol=atol,
            err_msg=jax.tree_util.keystr(path),
        )
