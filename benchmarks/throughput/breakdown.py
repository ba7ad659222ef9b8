"""Where the time of one update goes, and how near each part is to what this machine can do.

Each part is compiled alone and repeated inside one program, so that starting it costs nothing. The
parts do not add up to the whole exactly: there XLA runs what is independent side by side.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.table import Row
from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants.ours import config_of
from ppo_jax import report, rollout, sgd
from ppo_jax.algorithms import ppo
from ppo_jax.train import build
from ppo_jax.types import PyTree

FIELDS = (
    "jax", "device", "configuration", "part", "microseconds", "share", "gflops_per_second",
    "of_matmul", "gb_per_second", "of_copy",
)  # fmt: skip
KEY = ("jax", "device", "configuration", "part")


class Ceiling(NamedTuple):
    """What the machine does at best, measured now.

    Attributes:
        matmul: GFLOP/s of a large float32 product.
        copy: GB/s, read and written, of a large copy.
    """

    matmul: float
    copy: float


class Part(NamedTuple):
    """A piece of an update.

    Attributes:
        name: of it.
        body: carry -> carry, once.
        carry: to begin with.
        flops: of the network's products in it, 0 where there are none.
        bytes: that it must read and write at least, 0 where that is not what it costs.
    """

    name: str
    body: Callable[[PyTree], PyTree]
    carry: PyTree
    flops: float = 0.0
    bytes: float = 0.0


def seconds_of(body: Callable[[PyTree], PyTree], carry: PyTree, seconds: float = 0.3) -> float:
    """Median time of one call of a body that is repeated inside a compiled loop."""

    def repeat(carry: PyTree, times: jax.Array) -> PyTree:
        return jax.lax.fori_loop(0, times, lambda _, c: body(c), carry)

    program = jax.jit(repeat).lower(carry, np.int32(1)).compile()

    def measure(times: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(program(carry, np.int32(times)))
        return (time.perf_counter() - started) / times

    measure(1)
    times = max(1, int(seconds / measure(2)))
    return float(np.median([measure(times) for _ in range(5)]))


def ceiling() -> Ceiling:
    """The machine's own rates, by the same compiler."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.full((size, size), 1 / size, jnp.float32)
    product = seconds_of(lambda x: x @ matrix, matrix)
    long = jnp.zeros(2**26, jnp.float32)
    copy = seconds_of(lambda x: x + 1, long)
    return Ceiling(2 * size**3 / product / 1e9, 2 * 4 * long.size / copy / 1e9)


def parts_of(configuration: Configuration) -> list[Part]:
    """The pieces of one update of PPO, and the whole."""
    config = config_of(configuration)
    program = build(config)
    policy, env, hyper = program.policy, program.vector_env, config.hyper
    steps, envs = config.num_steps, config.num_envs
    state = jax.jit(program.init)(jax.random.key(0))
    params, key = state.learner.params, jax.random.key(1)
    collect = functools.partial(
        rollout.collect, env=env, policy=policy, num_steps=steps, gamma=hyper.gamma
    )
    _, trajectory = jax.jit(collect)(key, params, state.rollout)
    batch = rollout.flatten_steps(jax.jit(program.algorithm.estimate)(trajectory))
    order = sgd.shuffles(key, steps * envs, hyper.epochs)
    minibatch = jax.tree.map(lambda x: x[order[0, : configuration.minibatch_size]], batch)
    loss_fn = ppo.make_loss(policy, hyper)
    optimizer, _ = sgd.from_config(hyper)
    times = hyper.epochs * hyper.minibatches
    action = jax.tree.map(lambda x: x[0], trajectory.action)
    # What one update of the optimiser sees: everything in one vector.
    vector, _, _ = sgd.as_vector(state.learner, loss_fn)
    gradient = jnp.full_like(vector.params, 1e-3)

    def play(carry: PyTree) -> PyTree:
        env_state, key = carry
        key, step_key, refresh_key = jax.random.split(key, 3)

        def step(env_state: PyTree, key: jax.Array) -> tuple[PyTree, Any]:
            obs, env_state, reward, *_ = env.step(key, env_state, action)
            return env_state, (obs, reward)

        env_state, kept = jax.lax.scan(step, env_state, jax.random.split(step_key, steps))
        return jax.lax.optimization_barrier((env.refresh(refresh_key, env_state)[0], key, kept))[:2]

    def act(carry: PyTree) -> PyTree:
        obs, noise_key = carry

        def step(obs: PyTree, noise: Any) -> tuple[PyTree, Any]:
            dist = policy.act(params, (), obs, jnp.zeros(envs, bool))[1]
            action = dist.sample_from(noise)
            # The next observation waits for this action.
            obs, action = jax.lax.optimization_barrier((obs, action))
            return obs, (action, dist.log_prob(action))

        key, noise_key = jax.random.split(noise_key)
        dist = jax.eval_shape(policy.act, params, (), obs, jnp.zeros(envs, bool))[1]
        obs, kept = jax.lax.scan(step, obs, dist.noise(key, (steps,)))
        return jax.lax.optimization_barrier((obs, noise_key, kept))[:2]

    def value(trajectory: Any) -> Any:
        found = policy.apply(params, trajectory.obs)[1]
        return jax.lax.optimization_barrier((trajectory, found))[0]

    def estimate(trajectory: Any) -> Any:
        found = program.algorithm.estimate(trajectory)
        return jax.lax.optimization_barrier((trajectory, found))[0]

    def shuffle(carry: PyTree) -> PyTree:
        key, rows = carry
        key, now = jax.random.split(key)
        order = sgd.shuffles(now, steps * envs, hyper.epochs).reshape(times, -1)

        def take(_: Any, index: jax.Array) -> tuple[Any, None]:
            return jax.lax.optimization_barrier(jax.tree.map(lambda x: x[index], rows)), None

        return key, jax.lax.optimization_barrier((rows, jax.lax.scan(take, minibatch, order)))[0]

    def differentiate(carry: PyTree) -> PyTree:
        params, rows = carry

        def once(params: PyTree, _: None) -> tuple[PyTree, None]:
            gradient = jax.grad(loss_fn, has_aux=True)(params, rows)[0]
            return jax.tree.map(lambda p, g: p - 1e-8 * g, params, gradient), None

        return jax.lax.scan(once, params, None, length=times)[0], rows

    def optimise(learner: Any) -> Any:
        def once(learner: Any, _: None) -> tuple[Any, None]:
            moved, state = optimizer.update(gradient, learner.opt_state, learner.params)
            return learner.replace(params=learner.params + moved, opt_state=state), None

        return jax.lax.scan(once, learner, None, length=times)[0]

    def whole(state: Any) -> Any:
        return program.step(state)[0]

    rows = steps * envs
    actor, critic = (2.0 * products(params[n]) for n in ("actor", "critic"))
    row_bytes = sum(x.dtype.itemsize * x[0].size for x in jax.tree.leaves(batch))
    return [
        Part("environment, resets", play, (state.rollout.env_state, key)),
        Part("policy, acting", act, (state.rollout.obs, key), flops=rows * actor),
        Part("critic, all steps", value, trajectory, flops=rows * critic),
        Part("GAE", estimate, trajectory, bytes=rows * 4 * 7.0),
        Part(
            "shuffle and gather", shuffle, (key, batch), bytes=2.0 * hyper.epochs * rows * row_bytes
        ),
        Part(
            "forward and backward",
            differentiate,
            (params, minibatch),
            flops=3.0 * hyper.epochs * rows * (actor + critic),
        ),
        # Reads gradient, parameters and two moments, writes the last three.
        Part("clip and Adam", optimise, vector, bytes=times * 7 * 4.0 * vector.params.size),
        Part(
            "whole update", whole, state, flops=rows * (actor + critic) * (1 + 3.0 * hyper.epochs)
        ),
    ]


def products(params: PyTree) -> float:
    """Multiplications of one row: a weight once, a convolution's at each of 8 x 8 places."""
    total = 0.0
    for kernel in jax.tree.leaves(params):
        if kernel.ndim > 1:
            total += kernel.size * (64 if kernel.ndim == 4 else 1)
    return total


def breakdown(configuration: Configuration) -> list[Row]:
    """Every part of one update beside the machine's ceilings."""
    best = ceiling()
    parts = parts_of(configuration)
    seconds = {part.name: seconds_of(part.body, part.carry) for part in parts}
    total = seconds["whole update"]
    common = {
        "jax": jax.__version__,
        "device": report.device(),
        "configuration": configuration.name,
    }
    rows = [
        common | {"part": "ceiling: matmul", "gflops_per_second": round(best.matmul, 1)},
        common | {"part": "ceiling: copy", "gb_per_second": round(best.copy, 1)},
    ]
    for part in parts:
        taken = seconds[part.name]
        row = common | {
            "part": part.name,
            "microseconds": round(1e6 * taken, 1),
            "share": round(taken / total, 3),
        }
        if part.flops:
            rate = part.flops / taken / 1e9
            row |= {"gflops_per_second": round(rate, 1), "of_matmul": round(rate / best.matmul, 3)}
        if part.bytes:
            rate = part.bytes / taken / 1e9
            row |= {"gb_per_second": round(rate, 2), "of_copy": round(rate / best.copy, 3)}
        rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """A table for each configuration."""
    tables = []
    for name in dict.fromkeys(r["configuration"] for r in rows):
        mine = [r for r in rows if r["configuration"] == name]
        lines = [
            f"| {name} | µs | share | GFLOP/s | of matmul | GB/s | of copy |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in mine:
            cells = [r["part"], r["microseconds"], _percent(r["share"])]
            cells += [r["gflops_per_second"], _percent(r["of_matmul"])]
            cells += [r["gb_per_second"], _percent(r["of_copy"])]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _percent(share: Any) -> str:
    return f"{100 * float(share):.0f} %" if str(share) else ""
