"""A round of a sweep in a process of its own, on a machine of a cluster.

An order goes there and an outcome comes back, both of plain values and arrays, so that whoever
carries them needs to import nothing of the user's. What is trained is what the local sweep trains:
the same program, by the same functions.
"""

import os
import platform
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
from ppo_jax.runs import cache, failures, memory, provenance
from ppo_jax.sweep.keep import candidates, scores_of
from ppo_jax.sweep.plan import Chunk, Group
from ppo_jax.sweep.program import structure
from ppo_jax.sweep.schedule import Finished, Schedule, too_large
from ppo_jax.types import TrainState

# Packages of which another version computes other numbers.
SAME_VERSIONS = ("ppo_jax", "jax", "jaxlib", "flax", "optax", "gymnax")


class Place(NamedTuple):
    """What a worker finds and uses.

    Attributes:
        folder: the current directory, from which modules of the user's are imported.
        path: where Python looks for modules.
        cores: the CPU cores of the worker.
        devices: the devices that JAX makes of them, or the GPUs.
        gpus: the number of GPUs; 0 for a worker that computes on CPU cores.
        versions: of packages, by name, which the worker must have too.
    """

    folder: str
    path: tuple[str, ...]
    cores: int
    devices: int
    gpus: int
    versions: dict[str, str]


class Order(NamedTuple):
    """A round to be trained: at most a chunk for each device of a worker.

    Attributes:
        number: its name.
        chunks: all of one width.
        configs: number of a point -> its configuration, as in sweep.json.
        seeds: agent -> its seed.
        points: agent -> number of its point.
        share: the number of agents of the whole sweep that share the program.
        episodes: E of the final evaluation.
        keep: which agents' states are wanted: "best" of each point, "all" or "none".
        place: of the worker.
    """

    number: int
    chunks: tuple[Chunk, ...]
    configs: dict[int, dict[str, Any]]
    seeds: dict[int, int]
    points: dict[int, int]
    share: int
    episodes: int
    keep: str
    place: Place


class Arrays(NamedTuple):
    """A chunk that was trained, as `schedule.Finished`.

    Attributes:
        chunk, metrics, returns, whole: as there.
        states: index of an agent in the chunk -> the leaves of its state, PRNG keys as their data.
    """

    chunk: Chunk
    metrics: dict[str, np.ndarray]
    returns: np.ndarray
    whole: np.ndarray
    states: dict[int, list[np.ndarray]]


class Trained(NamedTuple):
    """A round that was trained.

    Attributes:
        chunks: its chunks.
        programs: the number of programs that were compiled for it.
        compile_seconds: the time this took.
        device: what it was trained on.
    """

    chunks: list[Arrays]
    programs: int
    compile_seconds: float
    device: str


class Narrower(NamedTuple):
    """The worker has no memory for chunks of this width; these would fit."""

    width: int
    reason: str


class Refused(NamedTuple):
    """What cannot work on any worker, and why: trying again is of no use."""

    reason: str


class Failed(NamedTuple):
    """The round failed, or its worker was killed: it may be tried again."""

    reason: str


Outcome = Trained | Narrower | Refused | Failed


def work(order: Order) -> Outcome:
    """Train a round; every error is an outcome, too.

    Args:
        order: what to train.
    """
    try:
        _prepare(order.place)
        return _train(order)
    except (ConfigError, InvalidEnvironment, UnknownEnvironment) as error:
        return Refused(str(error))
    except jax.errors.JaxRuntimeError as error:
        return Failed(failures.one_line(error))
    except Exception as error:
        traceback.print_exc()  # into the worker's log
        return Failed(" ".join(f"{type(error).__name__}: {error}".split()))


def _train(order: Order) -> Outcome:
    """The round on this process' devices, or the width that would fit."""
    group, width = _group(order), order.chunks[0].width
    schedule = Schedule([group], jax.devices(), episodes=order.episodes)
    program = schedule.fitting(group, order.share, width)
    if program.width < width:
        return Narrower(program.width, "by the compiler's account they do not fit into its memory")
    try:
        finished = schedule.round(program, group, order.chunks, lambda *_: None)
        chunks = [_arrays(f, order) for f in finished]
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        reason = str(error).splitlines()[0]
        if width == 1:
            raise too_large(group, reason) from error
        return Narrower(width // 2, reason)
    return Trained(chunks, schedule.programs, schedule.compile_seconds, provenance.device())


def _prepare(place: Place) -> None:
    """Settings of the process, before JAX starts its devices.

    Raises:
        ConfigError: other versions than those of the sweep, or other devices than were asked for.
    """
    with suppress(OSError):  # another machine may not have it
        os.chdir(place.folder)
    sys.path[:] = dict.fromkeys((*place.path, *sys.path))
    _check_versions(place.versions)
    if not place.gpus:
        jax.config.update("jax_platforms", "cpu")
        if devices_set() is None:
            with suppress(RuntimeError):  # an earlier order in this process started them
                jax.config.update("jax_num_cpu_devices", place.devices)
        os.environ.setdefault("PJRT_NPROC", str(place.cores))  # threads of XLA
    cache.use()
    _check_devices(place)


def devices_set() -> int | None:
    """The number of devices that the environment makes of the CPU's cores; None: it says none."""
    flag = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    text = os.environ.get("JAX_NUM_CPU_DEVICES", flag[1] if flag else "")
    return int(text) if text.isdigit() else None


def _check_versions(wanted: dict[str, str]) -> None:
    found = provenance.versions()
    for name in SAME_VERSIONS:
        if found[name] != wanted[name]:
            raise ConfigError(
                f"the worker on {platform.node()} has {name} {found[name]}, the sweep "
                f"{wanted[name]}; install the same versions there"
            )


def _check_devices(place: Place) -> None:
    devices = jax.devices()
    if place.gpus and devices[0].platform == "cpu":
        raise ConfigError(
            f"the worker on {platform.node()} was given --gpus-per-worker {place.gpus}, but JAX "
            "finds no GPU there; install its CUDA packages (pip install 'jax[cuda13]') and driver"
        )
    if len(devices) != place.devices:
        raise ConfigError(
            f"the worker on {platform.node()} has {provenance.device()}, {len(devices)} devices in "
            f"place of {place.devices}; see --cpus-per-worker and --gpus-per-worker"
        )


def _group(order: Order) -> Group:
    """The agents of an order, with their seeds and floats."""
    split = {p: structure(configs.from_saved(values)) for p, values in order.configs.items()}
    statics = {static for static, _ in split.values()}
    assert len(statics) == 1, "the points of a round share a program"
    floats = {agent: split[point][1] for agent, point in order.points.items()}
    return Group(statics.pop(), tuple(order.points), order.seeds, floats)


def _arrays(finished: Finished, order: Order) -> Arrays:
    agents = finished.chunk.agents
    points = [order.points[a] for a in agents]
    wanted: Sequence[int] = candidates(points, scores_of(finished), order.keep)
    states = {i: leaves_of(finished.state(i)) for i in wanted}
    return Arrays(finished.chunk, finished.metrics, finished.returns, finished.whole, states)


def leaves_of(state: TrainState) -> list[np.ndarray]:
    """The leaves of a state on the host, PRNG keys as their data."""
    plain = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    return [np.asarray(x) for x in plain]


def state_of(shapes: TrainState, leaves: Sequence[np.ndarray]) -> TrainState:
    """The inverse, by the shapes of the state as `jax.eval_shape` gives them."""
    like, structure = jax.tree.flatten(shapes)
    found = [
        jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(shape) else x
        for shape, x in zip(like, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
