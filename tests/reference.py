"""Access to the golden arrays, and to weights in torch's layout."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.distributions import Categorical, DiagGaussian
from ppo_jax.envs import spaces
from ppo_jax.networks import Policy, make_policy
from ppo_jax.types import Batch, Trajectory

FOLDER = Path(__file__).parent / "golden"

SB3_ACTOR = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
SB3_CRITIC = ["mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"]


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


def sb3_policy(kind: str, x: dict) -> Policy:
    action_space = {
        "categorical": lambda: spaces.Discrete(x["w0/action_net.bias"].shape[0]),
        "gaussian": lambda: spaces.Box(-np.inf, np.inf, (x["actions"].shape[-1],)),
        "multidiscrete": lambda: spaces.MultiDiscrete(tuple(x["nvec"].tolist())),
    }[kind]()
    return make_policy(spaces.Box(-np.inf, np.inf, x["obs"].shape[2:]), action_space, hidden=(8, 8))


def sb3_params(kind: str, weights: dict):
    return actor_critic(weights, SB3_ACTOR, SB3_CRITIC, "log_std" if kind == "gaussian" else None)


def under(prefix: str, arrays: dict) -> dict:
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def sb3_trajectory(policy: Policy, params, x: dict) -> Trajectory:
    """What collect would have returned, values and log-probabilities by our own forward pass."""
    obs, action = jnp.asarray(x["obs"]), jnp.asarray(x["actions"])
    dist, value = policy.apply(params, obs)
    last = policy.apply(params, jnp.asarray(x["last_obs"]))[1]
    done = jnp.asarray(x["dones"], bool)
    return Trajectory(
        obs=obs,
        action=action,
        log_prob=dist.log_prob(action),
        value=value,
        next_value=jnp.concatenate([value[1:], last[None]]),
        reward=jnp.asarray(x["rewards"]),
        terminated=done,
        done=done,
        weight=jnp.ones(done.shape),
    )


def table_policy(kind: str) -> Policy:
    """A policy whose parameters are its outputs, one row per sample."""

    def apply(params, obs):
        if kind == "categorical":
            return Categorical(params["logits"]), params["values"]
        return DiagGaussian(params["mean"], params["log_std"]), params["values"]

    return Policy(init=None, init_core=None, act=None, apply=apply)


def table_inputs(kind: str) -> tuple[dict, Batch]:
    x = {k: jnp.asarray(v) for k, v in Golden("02_ppo_loss")(f"{kind}/inputs").items()}
    names = ("logits", "values") if kind == "categorical" else ("mean", "log_std", "values")
    rows = Batch(
        obs=jnp.zeros(64),
        action=x["actions"],
        log_prob=x["old_log_prob"],
        value=x["old_values"],
        advantage=x["advantages"],
        target=x["returns"],
        weight=jnp.ones(64),
    )
    return {n: x[n] for n in names}, rows


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
