"""Access to the golden arrays, and conversion of weights in torch's layout.

The environment variable PPO_JAX_GOLDEN names a folder with other arrays in the same format and of
any sizes; files that are missing there are read from the repository.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import losses
from ppo_jax.distributions import Categorical, DiagGaussian
from ppo_jax.envs import spaces
from ppo_jax.networks import Policy, make_policy
from ppo_jax.types import Batch, Trajectory

FOLDER = Path(__file__).parent / "golden"
OTHER = os.environ.get("PPO_JAX_GOLDEN")

SB3_ACTOR = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
SB3_CRITIC = ["mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"]


def golden_file(name: str) -> Path:
    """The path of a file of golden arrays; a folder without any such file is an error."""
    if not OTHER:
        return FOLDER / name
    if not any(Path(OTHER).glob("*.npz")):
        raise FileNotFoundError(f"PPO_JAX_GOLDEN is {OTHER!r}, where there are no golden arrays")
    other = Path(OTHER).absolute() / name
    return other if other.exists() else FOLDER / name


class Golden:
    """Reads one npz file: `golden(case)` is a dictionary of that case's arrays."""

    def __init__(self, name: str) -> None:
        with np.load(golden_file(f"{name}.npz")) as file:
            self.arrays = dict(file)

    def __call__(self, case: str) -> dict[str, np.ndarray]:
        prefix = case + "/"
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    def cases(self, suffix: str) -> list[str]:
        """All cases whose path ends with a given text."""
        found = {k[: k.index(suffix) + len(suffix)] for k in self.arrays if suffix + "/" in k}
        return sorted(c for c in found if c.endswith(suffix))


def dense(weights: dict[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    """Convert weight (out, in) and bias of torch's Linear to kernel and bias of flax's Dense."""
    return {
        "kernel": jnp.asarray(weights[f"{name}.weight"].T),
        "bias": jnp.asarray(weights[f"{name}.bias"]),
    }


def actor_critic(
    weights: dict[str, np.ndarray], actor: list[str], critic: list[str], log_std: str | None
) -> dict:
    """Parameters of a Policy with two hidden layers, from the names of a torch model's layers."""
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
    hidden = tuple(x[f"w0/{name}.bias"].size for name in SB3_ACTOR[:-1])
    return make_policy(spaces.Box(-np.inf, np.inf, x["obs"].shape[2:]), action_space, hidden=hidden)


def spinup_policy(kind: str, y: dict) -> tuple[Policy, Callable[[str], dict]]:
    """Spinning Up's network, with its parameters selected by the prefix of their names."""
    net, log_std = ("logits_net", None) if kind == "categorical" else ("mu_net", "pi.log_std")
    actor, critic = ([f"{name}.{i}" for i in (0, 2, 4)] for name in (f"pi.{net}", "v.v_net"))
    *hidden, outputs = (y[f"w0/{name}.bias"].size for name in actor)
    action_space = (
        spaces.Discrete(outputs) if log_std is None else spaces.Box(-np.inf, np.inf, (outputs,))
    )
    shown = spaces.Box(-np.inf, np.inf, y["obs"].shape[1:])
    policy = make_policy(shown, action_space, hidden=tuple(hidden))
    return policy, lambda prefix: actor_critic(under(prefix, y), actor, critic, log_std)


def spinup_rows(y: dict) -> Batch:
    """A batch for an update; advantages are normalised by the population standard deviation."""
    advantage = losses.normalize(jnp.asarray(y["adv_raw"]), ddof=0)
    np.testing.assert_allclose(advantage, y["adv"], rtol=1e-5, atol=1e-6)
    return Batch(
        obs=jnp.asarray(y["obs"]),
        action=jnp.asarray(y["act"]),
        log_prob=jnp.asarray(y["logp_old"]),
        value=jnp.zeros_like(advantage),
        advantage=advantage,
        target=jnp.asarray(y["ret"]),
        weight=jnp.ones_like(advantage),
    )


def sb3_params(kind: str, weights: dict):
    return actor_critic(weights, SB3_ACTOR, SB3_CRITIC, "log_std" if kind == "gaussian" else None)


def under(prefix: str, arrays: dict) -> dict:
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def sb3_trajectory(policy: Policy, params, x: dict) -> Trajectory:
    """A trajectory as from collect, with values and log-probabilities from our own forward pass."""
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
        obs=jnp.zeros_like(x["advantages"]),
        action=x["actions"],
        log_prob=x["old_log_prob"],
        value=x["old_values"],
        advantage=x["advantages"],
        target=x["returns"],
        weight=jnp.ones_like(x["advantages"]),
    )
    return {n: x[n] for n in names}, rows


def assert_close(actual, expected, rtol: float, atol: float) -> None:
    """Compare all leaves of two trees as float64."""
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
