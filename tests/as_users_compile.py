"""A process that trains every method as compiled by `python -m ppo_jax.train`; see conftest.py.

    python tests/as_users_compile.py

prints the probability of the right action for each method, before and after training, as JSON.
"""

import json

import jax
import jax.numpy as jnp

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.experiment import compile_run
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.train import build
from probe_envs import MatchObservation
from test_probes import options_of

UPDATES = 100


def confidence(policy, state) -> float:
    """The probability of the right action for an observed sign, the smaller of both signs."""

    @jax.jit
    def worse(params):
        obs = jnp.array([[1.0], [-1.0]])
        dist = policy.act(params, (), obs, jnp.zeros(2, bool))[1]
        return jnp.exp(dist.log_prob(jnp.array([1, 0]))).min()

    return float(worse(state.learner.params))


def train(algorithm: str) -> list[float]:
    """[before, after] for a run with the compiler options of the command."""
    options = options_of(algorithm)
    steps = UPDATES * options["num_envs"] * options["num_steps"]
    config = configs.make(
        preset="none", algorithm=algorithm, **options | {"total_timesteps": steps}
    )
    program = build(config, MatchObservation())
    compiled = compile_run(config, program)
    state = compiled.init()
    before = confidence(program.policy, state)
    state, *_ = compiled.chunk(state, compiled.floats, jnp.int32(UPDATES))
    return [before, confidence(program.policy, state)]


if __name__ == "__main__":
    assert compiler_options(), "XLA_FLAGS set the command's own options aside"
    print(json.dumps({name: train(name) for name in ALGORITHMS}))
