"""Training many agents in one compiled program, distributed over the devices.

An agent is defined by its seed and its real-valued hyperparameters; integers, switches and names
determine the program. Each device trains `width` agents at the same time with vmap, and devices do
not communicate: at equal width, two devices compute the same bits as eight. Another width is
another program and rounds differently, and so does a single device, for which XLA does not use its
partitioner.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS, get
from ppo_jax.config import TrainConfig, references
from ppo_jax.envs import as_env, is_own
from ppo_jax.evaluate import evaluate
from ppo_jax.experiment import EVALUATION, MAY_BE_NAN, step_of
from ppo_jax.runs.chunk import Chunk, compiler_options, make_chunk
from ppo_jax.runs.job import Job
from ppo_jax.runs.memory import is_exhausted
from ppo_jax.train import build
from ppo_jax.types import PyTree, TrainState

# Largest number of updates between two progress checks; the device stores as many metric rows.
SLICE = 256
# Number of agents per device on CPUs. With one device per core, 4 to 8 are equally fast and 16 or
# more are slower; 4 is used because the numbers of agents then lead to few different widths. A
# single device uses all cores for large arrays and is fastest with 16. It uses this width only if
# 16 divides the number of agents, again to have few widths. The measurements are in
# benchmarks/results/sweep_width.csv.
CPU_WIDTH = 4
CPU_WIDTH_ALONE = 16
# Largest usable fraction of a device's memory.
MEMORY_SHARE = 0.85
# Number of most recently used programs that stay compiled for later calls.
KEPT_PROGRAMS = 8
Floats = dict[str, Any]


class AgentsProgram(NamedTuple):
    """A compiled program that trains `width` agents per device; leaves: [devices * width, ...].

    Attributes:
        width: number of agents per device.
        devices: the devices.
        init: function (seeds, floats) -> TrainState.
        advance: function (TrainState, floats, count) -> (TrainState, Metrics
            [..., min(SLICE, U)], Outcome), of which the first `count` columns are new; it reuses
            the memory of the input state. If an agent gets an invalid number, its state before that
            update is kept, and its later metrics are absent.
        evaluate: function (seeds, TrainState, floats) -> (returns [..., E], finished [..., E]);
            None for E = 0.
        bytes_needed: memory required on each device in bytes, as reported by the compiler.
    """

    width: int
    devices: tuple[jax.Device, ...]
    init: Callable[..., TrainState]
    advance: Chunk
    evaluate: Callable[..., tuple[jax.Array, jax.Array]] | None
    bytes_needed: int

    @property
    def agents(self) -> int:
        """The number of agents on all devices together."""
        return self.width * len(self.devices)


def structure(config: TrainConfig) -> tuple[TrainConfig, Floats]:
    """(the part of a configuration that determines the program, its floats), without the seed."""
    return configs.split(dataclasses.replace(config, seed=0))


class _Functions(NamedTuple):
    """The jitted functions of an AgentsProgram for all agents, before compilation."""

    init: Any
    advance: Any
    evaluate: Any


@functools.lru_cache(maxsize=KEPT_PROGRAMS)
def _functions(
    static: TrainConfig,
    env: Any,
    width: int,
    devices: tuple[jax.Device, ...],
    *,
    episodes: int,
    own: tuple[Any, ...] = (),
) -> _Functions:
    """The functions that `compile_program` compiles, cached for later calls.

    JAX caches the compiled programs of a jitted function as long as the function exists, with all
    settings that affect the program (precision of matrix products, other JAX settings, XLA options)
    as the key; `jax.clear_caches()` frees them. No agent's state is cached.

    Args:
        static, env, devices, episodes: arguments of `compile_program`.
        width: number of agents per device; each entry of the cache has one, so that the number of
            entries bounds the number of programs.
        own: user code to which the names in `static` refer; a reloaded module is another program.
    """
    # Made here and not in the traced functions: constructors may compute with concrete arrays.
    env = as_env(static.env, **configs.env_kwargs(static)) if env is None else env
    mesh = Mesh(np.array(devices), ("agents",))
    rows, all_of_it = PartitionSpec("agents"), PartitionSpec()

    def init(seed: jax.Array, floats: Floats) -> TrainState:
        return build(configs.merge(static, floats), env).init(jax.random.key(seed))

    def finish(seed: jax.Array, state: TrainState, floats: Floats) -> Any:
        program = build(configs.merge(static, floats), env)
        result = evaluate(
            jax.random.fold_in(jax.random.key(seed), EVALUATION),
            state.learner.params,
            state.rollout.moments,
            env=program.env,
            policy=program.policy,
            episodes=episodes,
        )
        return result.episode_return, result.finished

    def spread(function: Callable, axes: tuple[int | None, ...], **options: Any) -> Any:
        """Vectorise the function of one agent over all agents, without communication."""
        specs = tuple(all_of_it if axis is None else rows for axis in axes)
        sharded = jax.shard_map(
            jax.vmap(function, axes), mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False
        )
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        return jax.jit(
            sharded, in_shardings=shardings, out_shardings=NamedSharding(mesh, rows), **options
        )

    length = min(SLICE, static.num_updates)
    chunk = make_chunk(step_of(static, env), length, may_be_nan=MAY_BE_NAN, stop=False)
    advance = spread(chunk, (0, 0, None), donate_argnums=0)
    return _Functions(spread(init, (0, 0)), advance, spread(finish, (0, 0, 0)))


def compile_program(
    static: TrainConfig,
    env: Any,
    width: int,
    devices: Sequence[jax.Device],
    *,
    episodes: int,
) -> AgentsProgram:
    """Compile a program for `width` agents on each device, or reuse one of an earlier call.

    Args:
        static: configuration without floats, from `structure`.
        env: environment, as for `build`.
        width: number of agents per device.
        devices: devices of one kind.
        episodes: number of evaluation episodes E at the end; 0 skips the evaluation.
    """
    own = _own_code(static, env)
    keep = _has_value(env) and all(_is_code(part) or _has_value(part) for part in own)
    make = _functions if keep else _functions.__wrapped__
    functions = make(static, env, width, tuple(devices), episodes=episodes, own=own)
    agents, options = (width * len(devices),), compiler_options()
    seeds = jax.ShapeDtypeStruct(agents, jnp.uint32)
    floats = {n: jax.ShapeDtypeStruct(agents, jnp.float32) for n in configs.float_names(static)}
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = functions.init.eval_shape(seeds, floats)
    advance = functions.advance.lower(state, floats, count).compile(options)
    needed = bytes_of(advance)
    play = None
    if episodes:
        play = functions.evaluate.lower(seeds, state, floats).compile(options)
        needed = max(needed, bytes_of(play))
    init = functions.init.lower(seeds, floats).compile(options)
    return AgentsProgram(width, tuple(devices), init, advance, play, needed)


def _has_value(env: Any) -> bool:
    """Whether equal environments always behave alike: a name, or an object with its own hash.

    An object with Python's default hash, its identity, may have changed since an earlier call. It
    is traced again, and only the compilation cache on disk then saves time.
    """
    if env is None:
        return True
    if type(env).__hash__ is object.__hash__:
        return False
    try:
        hash(env)
    except TypeError:
        return False
    return True


def _own_code(static: TrainConfig, env: Any) -> tuple[Any, ...]:
    """The user's objects to which the names of a configuration refer."""
    found = []
    if static.algorithm not in ALGORITHMS:
        algorithm = get(static.algorithm)
        found += [algorithm.Config, algorithm.make]
    if static.policy is not None:
        found.append(references.resolve(static.policy, "policy"))
    if env is None and is_own(static.env):
        found.append(references.resolve(static.env, "environment"))
    return tuple(found)


def _is_code(part: Any) -> bool:
    """Whether an object is a class or a function, which do not change."""
    return inspect.isclass(part) or inspect.isfunction(part)


def release() -> None:
    """Free the cached programs."""
    _functions.cache_clear()


def bytes_of(compiled: Any) -> int:
    """Memory that a compiled program needs per device: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def memory_of(devices: Sequence[jax.Device]) -> int:
    """Memory of one device in bytes; CPU devices share the memory of the machine.

    This is the total and not the free memory, so that a resumed sweep is divided into the same
    chunks.
    """
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)


def fit(
    agents: int,
    compile_at: Callable[[int], AgentsProgram],
    devices: Sequence[jax.Device],
    widest: int | None = None,
) -> AgentsProgram:
    """Compile the program with the largest width that fits in memory.

    Args:
        agents: number of agents of the sweep that share the program.
        compile_at: function width -> AgentsProgram.
        devices: devices over which the agents are distributed.
        widest: first width to try, used if it fits; None for the fastest one.

    Raises:
        JaxRuntimeError: even the program of a single agent cannot be compiled with this memory.
    """
    width = widest or even_width(agents, _fast_width(agents, devices), len(devices))
    while True:
        try:
            program = compile_at(width)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error) or width == 1:
                raise
            release()
            width = even_width(agents, width // 2, len(devices))
            continue
        limit = MEMORY_SHARE * memory_of(devices)
        if program.bytes_needed <= limit or width == 1:
            return program
        narrower = min(width - 1, int(width * limit / program.bytes_needed))
        width = even_width(agents, max(1, narrower), len(devices))


def _fast_width(agents: int, devices: Sequence[jax.Device]) -> int:
    """The number of agents per device that is fastest."""
    if devices[0].platform != "cpu":
        return agents
    alone = len(devices) == 1 and agents % CPU_WIDTH_ALONE == 0
    return CPU_WIDTH_ALONE if alone else CPU_WIDTH


def even_width(agents: int, widest: int, devices: int) -> int:
    """Agents per device with which all rounds have equal sizes and little padding."""
    per_device = -(-agents // devices)
    rounds = -(-per_device // max(1, widest))
    return -(-per_device // rounds)


def job_of(
    program: AgentsProgram, seeds: np.ndarray, floats: dict[str, np.ndarray], updates: int
) -> Job:
    """A round of agents from their initial states to the last update, as a Job.

    Args:
        program: compiled program for this number of agents.
        seeds: [W * devices] uint32, seeds of the agents.
        floats: name -> [W * devices], real-valued hyperparameters.
        updates: number of updates U.
    """
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in floats.items()}

    def play(state: TrainState, update: int) -> dict[str, Any]:
        assert program.evaluate is not None
        returns, whole = program.evaluate(seeds, state, arrays)
        return {"returns": np.asarray(returns), "whole": np.asarray(whole)}

    return Job(
        name="round of a sweep",
        init=lambda: program.init(jnp.asarray(seeds, jnp.uint32), arrays),
        shapes=None,  # rounds are not restored
        step=program.advance,
        updates=updates,
        unit="agent_updates",
        units_per_update=len(seeds),
        headline="episode_return",
        floats=arrays,
        rows=min(SLICE, updates),
        evaluate=None if program.evaluate is None else play,
    )


def take(tree: PyTree, indices: Any) -> PyTree:
    """Select agents from a tree whose leaves are [agents, ...]."""
    return jax.tree.map(lambda x: x[indices], tree)
