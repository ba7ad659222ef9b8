"""Many agents as one compiled program, spread over the devices.

An agent is a seed and the values of its floats; whole numbers, switches and names decide the
program. Each device trains `width` agents side by side by vmap, and devices do not talk to each
other: at the same width, two of them give the same bits as eight. Another width, or one device
alone, for which the compiler leaves its partitioner out, is another program and rounds differently.
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
from ppo_jax.envs import is_own
from ppo_jax.evaluate import evaluate
from ppo_jax.experiment import EVALUATION, MAY_BE_NAN, step_of
from ppo_jax.runs.chunk import Chunk, compiler_options, make_chunk
from ppo_jax.runs.job import Job
from ppo_jax.runs.memory import is_exhausted
from ppo_jax.train import build
from ppo_jax.types import PyTree, TrainState

# Updates between two looks at the clock, at most: so many rows of metrics are on the device.
SLICE = 256
# Number of agents per device on CPUs. With a device per core, 4 to 8 are equally fast, 16 or more
# are slower; of these 4, because numbers of agents then lead to few widths: every number above 9
# leads to 4. A single device spreads large arrays over all cores and is fastest with 16; it takes
# them where 16 divides the number of agents, again for few widths. The measurements are in
# benchmarks/results/sweep_width.csv.
CPU_WIDTH = 4
CPU_WIDTH_ALONE = 16
# Of a device's memory.
MEMORY_SHARE = 0.85
# The number of programs, the last ones used, that stay compiled for later calls.
KEPT_PROGRAMS = 8
Floats = dict[str, Any]


class AgentsProgram(NamedTuple):
    """Training `width` agents on each device, compiled; leaves are [devices * width, ...].

    Attributes:
        width: agents of one device.
        devices: where they are.
        init: (seeds, floats) -> TrainState
        advance: (TrainState, floats, count) -> (TrainState, Metrics [..., min(SLICE, U)], Outcome),
            of which `count` columns are new; the state that goes in is used up. An agent one of
            whose numbers goes bad stays as it was before, and its metrics have no value from then
            on.
        evaluate: (seeds, TrainState, floats) -> (returns [..., E], finished [..., E]); None
            for E = 0.
        bytes_needed: of one device's memory, by the compiler's own account.
    """

    width: int
    devices: tuple[jax.Device, ...]
    init: Callable[..., TrainState]
    advance: Chunk
    evaluate: Callable[..., tuple[jax.Array, jax.Array]] | None
    bytes_needed: int

    @property
    def agents(self) -> int:
        """Of all devices together."""
        return self.width * len(self.devices)


def structure(config: TrainConfig) -> tuple[TrainConfig, Floats]:
    """(what decides the program, the floats it takes); the seed is not part of either."""
    return configs.split(dataclasses.replace(config, seed=0))


class _Functions(NamedTuple):
    """The functions of an AgentsProgram before they are compiled: jitted, for all agents."""

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
    """The functions that `compile_program` compiles, kept for the calls that follow.

    JAX keeps what it compiled for a jitted function as long as the function exists, under a key
    with everything else that decides a program (the precision of matrix products and JAX's other
    settings, XLA's options), and `jax.clear_caches()` frees it. No state of an agent is kept.

    Args:
        static, env, devices, episodes: as for `compile_program`.
        width: one for each entry, so that the number of entries bounds the number of programs.
        own: the code behind names in `static`: a module that is reloaded is another program.
    """
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
        """One agent's function for all of them: vmapped on a device, no talk between devices."""
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
    """Compile for `width` agents on each device, or find what an earlier call has compiled.

    Args:
        static: from `structure`.
        env: as for `build`.
        width: agents of one device.
        devices: all of one kind.
        episodes: E of the final evaluation; 0 for none.
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
    """Whether an environment equals another only if it behaves alike: a name, or a hashable value.

    An object with Python's own hash, that of its identity, may have changed since an earlier call.
    It is traced again, and only the compilation cache on disk saves time then.
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
    """What the names of a configuration that are not the package's stand for."""
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
    """Whether something is a class or a function, which are what they are and do not change."""
    return inspect.isclass(part) or inspect.isfunction(part)


def release() -> None:
    """Free the programs that are kept for later calls."""
    _functions.cache_clear()


def bytes_of(compiled: Any) -> int:
    """What a compiled program needs of each device: arguments, results and what lies between."""
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
    """Bytes that one device has; the CPUs' devices share the machine's.

    All of it and not what is free, so that a resumed sweep is cut into the same chunks.
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
    """The program of the widest chunks that memory has room for, in equal parts.

    Args:
        agents: of the sweep that share the program.
        compile_at: width -> AgentsProgram
        devices: to spread over.
        widest: where to begin, and taken as it is if it fits; None: what is fast.

    Raises:
        JaxRuntimeError: a single agent does not even compile for want of memory.
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
    """Agents per device so that every round over all devices has as many, and few are padding."""
    per_device = -(-agents // devices)
    rounds = -(-per_device // max(1, widest))
    return -(-per_device // rounds)


def job_of(
    program: AgentsProgram, seeds: np.ndarray, floats: dict[str, np.ndarray], updates: int
) -> Job:
    """A round of agents from their seeds to the end, as a Job.

    Args:
        program: compiled for as many agents as there are seeds.
        seeds: [W * devices] uint32
        floats: name -> [W * devices]
        updates: U
    """
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in floats.items()}

    def play(state: TrainState, update: int) -> dict[str, Any]:
        assert program.evaluate is not None
        returns, whole = program.evaluate(seeds, state, arrays)
        return {"returns": np.asarray(returns), "whole": np.asarray(whole)}

    return Job(
        name="round of a sweep",
        init=lambda: program.init(jnp.asarray(seeds, jnp.uint32), arrays),
        shapes=None,  # nothing is restored
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
    """The agents at these indices of a tree whose leaves are [agents, ...]."""
    return jax.tree.map(lambda x: x[indices], tree)
