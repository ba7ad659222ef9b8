"""Times of the parts of one update, compared with the peak rates of the machine.

Each part is compiled as a program of its own and repeated in a loop inside it, so that the time to
start the program is negligible. The difference between the whole update and the sum of the parts is
the time of metrics and bookkeeping.
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
from ppo_jax import rollout, sgd
from ppo_jax.algorithms import ppo
from ppo_jax.runs import provenance
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.train import build
from ppo_jax.types import PyTree

FIELDS = (
    "jax", "device", "configuration", "part", "microseconds", "share", "gflops_per_second",
    "of_matmul", "gb_per_second", "of_copy",
)  # fmt: skip
KEY = ("jax", "device", "configuration", "part")
ROUNDS = 9


class Part(NamedTuple):
    """A part of an update.

    Attributes:
        name: name of the part.
        body: one execution of the part, carry -> carry.
        carry: initial carry.
        flops: floating-point operations of the network's products in the part; 0 without products.
        bytes: minimum number of bytes read and written; 0 if memory does not limit the part.
    """

    name: str
    body: Callable[[PyTree], PyTree]
    carry: PyTree
    flops: float = 0.0
    bytes: float = 0.0


def timer(
    body: Callable[[PyTree], PyTree], carry: PyTree, seconds: float = 0.3
) -> Callable[[], float]:
    """A function that measures the time of one call of a body, repeated in a compiled loop.

    Args:
        body: the function to be measured, carry -> carry.
        carry: initial carry.
        seconds: approximate duration of a measurement in seconds.

    Returns:
        A function without arguments that returns the seconds of one call.
    """

    def repeat(carry: PyTree, times: jax.Array) -> PyTree:
        return jax.lax.fori_loop(0, times, lambda _, c: body(c), carry)

    program = jax.jit(repeat).lower(carry, np.int32(1)).compile(compiler_options())

    def measure(times: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(program(carry, np.int32(times)))
        return (time.perf_counter() - started) / times

    measure(1)
    times = max(1, int(seconds / measure(2)))
    return lambda: measure(times)


def ceiling_timers() -> tuple[Callable[[], float], Callable[[], float]]:
    """Functions that measure peak rates of the machine: GFLOP/s of a product, GB/s of a copy."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.full((size, size), 1 / size, jnp.float32)
    product = timer(lambda x: x @ matrix, matrix)
    long = jnp.zeros(2**26, jnp.float32)
    copy = timer(lambda x: x + 1, long)
    return (
        lambda: 2 * size**3 / product() / 1e9,
        lambda: 2 * 4 * long.size / copy() / 1e9,
    )


def nudged(tree: PyTree, by: PyTree) -> PyTree:
    """The tree with a negligible number that depends on `by` added to its floats.

    Without the dependence, XLA would move computations with constant inputs out of the loop.
    """
    first = sum(x.ravel()[0].astype(jnp.float32) for x in jax.tree.leaves(by))

    def move(x: jax.Array) -> jax.Array:
        return x + 1e-30 * first if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(move, tree)


class Update:
    """The parts of one update of PPO as functions carry -> carry.

    The results of a part are in its carry, because XLA removes computations without a used result.
    """

    def __init__(self, configuration: Configuration) -> None:
        """Collect one rollout, which the parts use as input."""
        config = config_of(configuration)
        self.program = build(config)
        self.policy, self.env, self.hyper = (
            self.program.policy,
            self.program.vector_env,
            config.hyper,
        )
        self.steps, self.envs = config.num_steps, config.num_envs
        self.state = jax.jit(self.program.init)(jax.random.key(0))
        self.params, self.key = self.state.learner.params, jax.random.key(1)
        collect = functools.partial(
            rollout.collect,
            env=self.env,
            policy=self.policy,
            num_steps=self.steps,
            gamma=self.hyper.gamma,
        )
        _, self.trajectory = jax.jit(collect)(self.key, self.params, self.state.rollout)
        self.action = jax.tree.map(lambda x: x[0], self.trajectory.action)
        self.batch = jax.jit(self.program.algorithm.estimate)(self.trajectory)
        self.rows = rollout.flatten_steps(self.batch)
        self.times = self.hyper.epochs * self.hyper.minibatches
        self.size = configuration.minibatch_size
        self.loss_fn = ppo.make_loss(self.policy, self.hyper)
        self.optimizer, *_ = sgd.from_config(self.hyper)
        self.vector = sgd.as_vector(self.state.learner, self.loss_fn)[0]
        self.start = jnp.zeros(self.envs, bool)

    def play(self, carry: PyTree) -> PyTree:
        """Step the environments with fixed actions, and sample the next pool of resets."""
        env_state, key, _ = carry
        key, step_key, refresh_key = jax.random.split(key, 3)

        def step(env_state: PyTree, key: jax.Array) -> tuple[PyTree, Any]:
            obs, env_state, reward, *_ = self.env.step(key, env_state, self.action)
            return env_state, (obs, reward)

        keys = jax.random.split(step_key, self.steps)
        env_state, kept = jax.lax.scan(step, env_state, keys)
        return self.env.refresh(refresh_key, env_state)[0], key, kept

    def act(self, carry: PyTree) -> PyTree:
        """Sample actions with their log-probabilities; each step depends on the previous one."""
        obs, key, _ = carry
        key, noise_key = jax.random.split(key)
        dist = jax.eval_shape(self.policy.act, self.params, (), obs, self.start)[1]

        def step(obs: PyTree, noise: Any) -> tuple[PyTree, Any]:
            dist = self.policy.act(self.params, (), obs, self.start)[1]
            action = dist.sample_from(noise)
            kept = (action, dist.log_prob(action))
            return nudged(obs, kept), kept

        obs, kept = jax.lax.scan(step, obs, dist.noise(noise_key, (self.steps,)))
        return obs, key, kept

    def evaluate_critic(self, value: jax.Array) -> jax.Array:
        """Compute the values of all states in one batch."""
        return self.policy.apply(nudged(self.params, value), self.trajectory.obs)[1]

    def estimate(self, batch: PyTree) -> PyTree:
        """Compute advantages and value targets."""
        reward = nudged(self.trajectory.reward, batch.advantage)
        return self.program.algorithm.estimate(self.trajectory.replace(reward=reward))

    def shuffle(self, carry: PyTree) -> PyTree:
        """Draw the order of all epochs, and gather the samples of every minibatch."""
        key, minibatch = carry
        key, now = jax.random.split(key)
        order = sgd.shuffles(now, self.steps * self.envs, self.hyper.epochs)
        rows = self.rows.replace(advantage=nudged(self.rows.advantage, minibatch.advantage))
        take_rows = sgd.row_taker(rows)

        def take(_: PyTree, index: jax.Array) -> tuple[PyTree, None]:
            return take_rows(index), None

        return key, jax.lax.scan(take, minibatch, order.reshape(self.times, -1))[0]

    def differentiate(self, params: PyTree) -> PyTree:
        """Compute the number of gradients of one update, always of the same minibatch."""
        minibatch = jax.tree.map(lambda x: x[: self.size], self.rows)

        def once(params: PyTree, _: None) -> tuple[PyTree, None]:
            gradient = jax.grad(self.loss_fn, has_aux=True)(params, minibatch)[0]
            return jax.tree.map(lambda p, g: p - 1e-8 * g, params, gradient), None

        return jax.lax.scan(once, params, None, length=self.times)[0]

    def optimise(self, learner: Any) -> Any:
        """Take the number of optimiser steps of one update, with artificial gradients."""

        def once(learner: Any, _: None) -> tuple[Any, None]:
            gradient = 1e-3 * learner.params
            moved, state = self.optimizer.update(gradient, learner.opt_state, learner.params)
            return learner.replace(params=learner.params + moved, opt_state=state), None

        return jax.lax.scan(once, learner, None, length=self.times)[0]

    def whole(self, state: Any) -> Any:
        """Run a whole update, as in training."""
        return self.program.step(state)[0]

    def parts(self) -> list[Part]:
        """All parts, with the minimum work of each."""
        state, rows = self.state, self.steps * self.envs
        epochs = self.hyper.epochs
        actor, critic = (2.0 * products(self.params[n]) for n in ("actor", "critic"))
        row_bytes = sum(x.dtype.itemsize * x[0].size for x in jax.tree.leaves(self.rows))
        learn = 3.0 * epochs * rows * (actor + critic)

        def begin(body: Callable, *carry: Any) -> tuple[Any, ...]:
            kept = jax.eval_shape(body, (*carry, ()))[-1]
            return *carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)

        play = begin(self.play, state.rollout.env_state, self.key)
        act = begin(self.act, state.rollout.obs, self.key)
        minibatch = jax.tree.map(lambda x: x[: self.size], self.rows)
        return [
            Part("environment, resets", self.play, play),
            Part("policy, acting", self.act, act, flops=rows * actor),
            Part(
                "critic, all steps",
                self.evaluate_critic,
                self.trajectory.value,
                flops=rows * critic,
            ),
            # It reads five arrays and writes two.
            Part("GAE", self.estimate, self.batch, bytes=rows * 4 * 7.0),
            Part(
                "shuffle and gather",
                self.shuffle,
                (self.key, minibatch),
                bytes=2.0 * epochs * rows * row_bytes,
            ),
            Part("forward and backward", self.differentiate, self.params, flops=learn),
            # It reads gradient, parameters, first and second moments, and writes the last three.
            Part(
                "clip and Adam",
                self.optimise,
                self.vector,
                bytes=self.times * 7 * 4.0 * self.vector.params.size,
            ),
            Part("whole update", self.whole, state, flops=rows * (actor + critic) + learn),
        ]


def products(params: PyTree) -> float:
    """Multiplications per sample: one per weight, 8 x 8 per weight of a convolution."""
    total = 0.0
    for kernel in jax.tree.leaves(params):
        if kernel.ndim > 1:
            total += kernel.size * (64 if kernel.ndim == 4 else 1)
    return total


def breakdown(
    configuration: Configuration, rounds: int = ROUNDS, seconds: float = 0.3
) -> list[Row]:
    """Measure the parts of one update and the peak rates of the machine.

    Rounds are interleaved, and a share is computed within a round, because the speed of a shared
    machine varies.

    Args:
        configuration: configuration of the update.
        rounds: number of measurements of each part.
        seconds: approximate duration of a measurement in seconds.

    Returns:
        One row for each peak rate and each part.
    """
    parts = Update(configuration).parts()
    timers = [*ceiling_timers(), *(timer(part.body, part.carry, seconds) for part in parts)]
    found = np.array([[measure() for measure in timers] for _ in range(rounds)])
    matmul, copy, *taken = np.median(found, axis=0)
    shares = np.median(found[:, 2:] / found[:, -1:], axis=0)
    common = {
        "jax": jax.__version__,
        "device": provenance.device(),
        "configuration": configuration.name,
    }
    rows = [
        common | {"part": "ceiling: matmul", "gflops_per_second": round(matmul, 1)},
        common | {"part": "ceiling: copy", "gb_per_second": round(copy, 1)},
    ]
    for part, seconds, share in zip(parts, taken, shares, strict=True):
        row = common | {
            "part": part.name,
            "microseconds": round(1e6 * seconds, 1),
            "share": round(share, 3),
        }
        if part.flops:
            rate = part.flops / seconds / 1e9
            row |= {"gflops_per_second": round(rate, 1), "of_matmul": round(rate / matmul, 3)}
        if part.bytes:
            rate = part.bytes / seconds / 1e9
            row |= {"gb_per_second": round(rate, 2), "of_copy": round(rate / copy, 3)}
        rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """A table of the parts of an update for each configuration."""
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
