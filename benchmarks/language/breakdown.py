"""CPU time of the parts of one update: generation, forward passes, gradients and Adam.

Each part is compiled as a program of its own and repeated in a loop. The CPU seconds of the process
are measured, because other processes affect them far less than the wall-clock time. The peak rate
of the machine is that of a large matrix product, measured in the same way.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language.ours import build, decoder_of
from benchmarks.language.sizes import Size
from benchmarks.table import Row
from benchmarks.throughput.breakdown import nudged
from ppo_jax import rollout, sgd
from ppo_jax.algorithms import ppo
from ppo_jax.rlhf import algorithms
from ppo_jax.rlhf import rollout as responses
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.policy import log_prob_of
from ppo_jax.runs import provenance
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.types import PyTree

FIELDS = (
    "jax", "device", "size", "part", "cpu_milliseconds", "share", "gflop", "gflops_per_second",
    "of_matmul",
)  # fmt: skip
KEY = ("jax", "device", "size", "part")
ROUNDS = 5


class Part(NamedTuple):
    """A part of an update.

    Attributes:
        name: name of the part.
        body: one execution of the part, (carry, constants) -> carry.
        carry: initial carry.
        flops: floating-point operations of the products with weights in the part.
    """

    name: str
    body: Callable[[PyTree, PyTree], PyTree]
    carry: PyTree
    flops: float = 0.0


def timer(
    body: Callable[[PyTree, PyTree], PyTree], carry: PyTree, constants: PyTree, seconds: float
) -> Callable[[], float]:
    """A function that measures the CPU time of one call of a body, repeated in a compiled loop.

    Args:
        body: the function to be measured, (carry, constants) -> carry.
        carry, constants: arguments of the body.
        seconds: approximate CPU time of a measurement in seconds.

    Returns:
        A function without arguments that returns the CPU seconds of one call.
    """

    def repeat(carry: PyTree, constants: PyTree, times: jax.Array) -> PyTree:
        return jax.lax.fori_loop(0, times, lambda _, c: body(c, constants), carry)

    lowered = jax.jit(repeat).lower(carry, constants, np.int32(1))
    program = lowered.compile(compiler_options())

    def measure(times: int) -> float:
        started = time.process_time()
        jax.block_until_ready(program(carry, constants, np.int32(times)))
        return (time.process_time() - started) / times

    times = max(1, int(seconds / measure(1)))
    return lambda: measure(times)


class Update:
    """The parts of one update as functions (carry, constants) -> carry.

    The constants are the arrays that no part changes. They are an argument, because arrays that are
    closed over would become constants of the compiled programs.
    """

    def __init__(self, size: Size) -> None:
        """Build the models and collect one rollout, which the parts use as input."""
        self.size, self.decoder = size, decoder_of(size)
        self.program, self.config, self.hyper = build(size)
        self.policy, self.settings = self.program.policy, self.program.settings
        frozen = self.program.frozen
        self.algorithm = algorithms.make("ppo", self.policy, self.hyper, frozen, total_updates=100)
        self.state = jax.jit(self.program.init)(jax.random.key(1))
        self.reward = frozen["reward"]
        prompts = frozen["prompts"][: size.episodes]
        mask = frozen["prompt_mask"][: size.episodes]
        said, batch = jax.jit(self._collect)(self.state, frozen, prompts, mask)
        self.constants = {
            "params": self.state.learner.params,
            "frozen": frozen,
            "prompts": prompts,
            "mask": mask,
            "inputs": said.inputs,
            "tokens": said.tokens,
            "batch": batch,
        }
        self.steps = size.epochs * size.minibatches

    def _collect(self, state: PyTree, frozen: PyTree, prompts: Any, mask: Any) -> tuple:
        params = state.learner.params
        said = self.program.respond(jax.random.key(2), params, frozen, (prompts, mask))
        trajectory = responses._trajectory(
            said, said.raw_score, state.rollout.kl_coef, self.settings
        )
        return said, rollout.sequences(self.algorithm.estimate(trajectory))

    def write(self, carry: PyTree, constants: PyTree) -> PyTree:
        """Sample responses."""
        key, _ = carry
        key, now = jax.random.split(key)
        written = generate(
            now,
            constants["params"]["actor"],
            constants["prompts"],
            constants["mask"],
            decoder=self.decoder,
            max_new_tokens=self.size.response_length,
            eos_id=self.size.eos_id,
        )
        return key, written

    def evaluate_critic(self, carry: PyTree, constants: PyTree) -> PyTree:
        """Run the forward pass of actor and critic on the responses."""
        params = nudged(constants["params"], carry)
        dist, value = self.policy.apply(params, constants["inputs"])
        return (*dist.log_prob_and_entropy(constants["tokens"]), value)

    def refer(self, carry: PyTree, constants: PyTree) -> PyTree:
        """Run the forward pass of the reference on the responses."""
        params = nudged(constants["frozen"]["reference"], carry)
        length = self.size.response_length
        return log_prob_of(self.decoder, params, constants["inputs"], length)

    def score(self, carry: PyTree, constants: PyTree) -> PyTree:
        """Run the forward pass of the reward model on the responses."""
        params = nudged(constants["frozen"]["reward"]["params"], carry)
        inputs = constants["inputs"]
        return self.decoder.score(params, inputs.tokens[:, 0], inputs.mask[:, 0])

    def differentiate(self, params: PyTree, constants: PyTree) -> PyTree:
        """Compute the gradients of one update, without steps of Adam."""
        loss_fn = ppo.make_loss(self.policy.joined(constants["frozen"]), self.hyper)
        order = jnp.arange(self.size.episodes).reshape(self.size.minibatches, -1)
        order = jnp.tile(order, (self.size.epochs, 1))

        def once(params: PyTree, index: jax.Array) -> tuple[PyTree, None]:
            rows = jax.tree.map(lambda x: x[index], constants["batch"])
            gradient = jax.grad(loss_fn, has_aux=True)(params, rows)[0]
            return jax.tree.map(lambda p, g: p - 1e-12 * g, params, gradient), None

        return jax.lax.scan(once, params, order)[0]

    def optimise(self, learner: PyTree, constants: PyTree) -> PyTree:
        """Clip gradients and take the steps of Adam of one update, with artificial gradients."""
        optimizer = algorithms.make_optimizer(self.hyper)

        def once(learner: PyTree, _: None) -> tuple[PyTree, None]:
            gradient = jax.tree.map(lambda x: 1e-3 * x, learner.params)
            return sgd._apply(learner, gradient, optimizer), None

        vector, _, back = sgd.as_vector(learner, lambda params, rows: (0.0, {}))
        return back(jax.lax.scan(once, vector, None, length=self.steps)[0])

    def whole(self, state: PyTree, constants: PyTree) -> PyTree:
        """Run a whole update, as in training."""
        return self.program.step(state, constants["frozen"])[0]

    def parts(self) -> list[Part]:
        """All parts, with the operations of their products."""
        size = self.size
        actor, critic, learn = flops_of(size, self.constants["params"])
        zero = (
            jax.random.key(3),
            jax.eval_shape(lambda c: self.write((jax.random.key(0), None), c)[1], self.constants),
        )
        empty = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
        line = jnp.zeros((size.episodes, size.response_length))
        learner = self.state.learner
        return [
            Part("generation", self.write, (zero[0], empty(zero[1])), actor),
            Part(
                "actor and critic forward", self.evaluate_critic, (line, line, line), actor + critic
            ),
            Part("reference forward", self.refer, line, actor),
            Part("reward forward", self.score, jnp.zeros(size.episodes), critic),
            Part("gradients", self.differentiate, learner.params, learn),
            Part("clip and Adam", self.optimise, learner),
            Part(
                "whole update",
                self.whole,
                self.state,
                flops_of_update(size, self.constants["params"]),
            ),
        ]


def flops_of(size: Size, params: PyTree) -> tuple[float, float, float]:
    """Operations of an update's products with weights: (actor forward, critic forward, gradients).

    Only the trunk of a critic is counted, so that a head on the actor counts as 0.
    """
    trunk, head = products(params["actor"], size)
    read = size.episodes * (size.prompt_length + size.response_length - 1)
    actor = 2.0 * (read * trunk + size.tokens_per_update * head)
    critic = 0.0 if size.shared_critic else 2.0 * read * trunk
    return actor, critic, 3.0 * size.epochs * (actor + critic)


def flops_of_update(size: Size, params: PyTree) -> float:
    """Operations of all products with weights in one update.

    They belong to generation, to the forward passes of all models and to the gradients of actor and
    critic. The products inside attention are not counted.
    """
    actor, critic, learn = flops_of(size, params)
    reward = 2.0 * size.episodes * (size.prompt_length + size.response_length - 1)
    return 3 * actor + critic + reward * products(params["actor"], size)[0] + learn


def products(params: PyTree, size: Size) -> tuple[int, int]:
    """Multiplications per token in the trunk and in the head."""
    trunk = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if x.ndim > 1 and str(path[0].key).startswith("layer")
    )
    return trunk, size.hidden_size * size.vocab_size


def ceiling() -> Part:
    """A large matrix product in float32, whose rate is the peak rate of the machine."""
    width = 1024
    matrix = jnp.full((width, width), 1 / width, jnp.float32)
    return Part("ceiling: matmul", lambda x, _: x @ matrix, matrix, 2.0 * width**3)


def breakdown(
    size: Size, seconds: float = 1.0, say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Measure the parts of one update and the peak rate of the machine.

    The parts are measured in interleaved rounds, and the median of the rounds is reported, because
    the speed of a machine varies.

    Args:
        size: models and update.
        seconds: approximate CPU time of each part in a round, in seconds.
        say: function that prints a line of text.

    Returns:
        One row for the peak rate and one for each part.
    """
    common = {"jax": jax.__version__, "device": provenance.device(), "size": size.name}
    update = Update(size)
    limit, *parts = [ceiling(), *update.parts()]
    timers = {p.name: timer(p.body, p.carry, update.constants, seconds) for p in (limit, *parts)}
    rounds = [{name: measure() for name, measure in timers.items()} for _ in range(ROUNDS)]
    taken = {name: float(np.median([r[name] for r in rounds])) for name in timers}
    best = limit.flops / taken[limit.name] / 1e9
    rows: list[Row] = [common | {"part": limit.name, "gflops_per_second": round(best, 1)}]
    for name in taken:
        say(f"{size.name}: {name}: {1e3 * taken[name]:.1f} ms")
    for part in parts:
        time_of = taken[part.name]
        row = common | {
            "part": part.name,
            "cpu_milliseconds": round(1e3 * time_of, 1),
            "share": round(time_of / taken["whole update"], 3),
        }
        if part.flops:
            rate = part.flops / time_of / 1e9
            row |= {
                "gflop": round(part.flops / 1e9, 2),
                "gflops_per_second": round(rate, 2),
                "of_matmul": round(rate / best, 3),
            }
        rows.append(row)
    return rows
