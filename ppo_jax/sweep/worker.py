"""Training a round of a sweep in a separate process, on a machine of a cluster.

An order is sent to the process, and an outcome is returned. Both consist of plain values and
arrays, so that the launcher need not import the user's code. The process uses the same functions
and the same program as a local sweep.
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

# Packages whose other versions compute different results.
SAME_VERSIONS = ("ppo_jax", "jax", "jaxlib", "flax", "optax", "gymnax")


class Place(NamedTuple):
    """The resources of a worker.

    Attributes:
        folder: current directory, from which the user's modules are imported.
        path: search path for Python modules.
        cores: number of CPU cores of the worker.
        devices: number of JAX devices: parts of the CPU, or GPUs.
        gpus: number of GPUs; 0 for a worker that computes on CPU cores.
        versions: package -> version that the worker must have.
    """

    folder: str
    path: tuple[str, ...]
    cores: int
    devices: int
    gpus: int
    versions: dict[str, str]


class Order(NamedTuple):
    """A round to be trained: at most one chunk for each device of a worker.

    Attributes:
        number: unique number of the order.
        chunks: chunks of one width.
        configs: index of a configuration -> the configuration, as in sweep.json.
        seeds: agent -> seed.
        points: agent -> index of its configuration.
        share: number of agents of the whole sweep that share the program.
        episodes: number of evaluation episodes E at the end.
        keep: agents whose states are returned: "best" of each configuration, "all" or "none".
        place: resources of the worker.
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
    """A trained chunk; corresponds to `schedule.Finished`.

    Attributes:
        chunk, metrics, returns, whole: fields of `schedule.Finished`.
        states: index of an agent in the chunk -> leaves of its state, with PRNG keys as raw data.
    """

    chunk: Chunk
    metrics: dict[str, np.ndarray]
    returns: np.ndarray
    whole: np.ndarray
    states: dict[int, list[np.ndarray]]


class Trained(NamedTuple):
    """A trained round.

    Attributes:
        chunks: the trained chunks.
        programs: number of programs that were compiled for the round.
        compile_seconds: compilation time in seconds.
        device: device on which the round was trained.
    """

    chunks: list[Arrays]
    programs: int
    compile_seconds: float
    device: str


class Narrower(NamedTuple):
    """The chunks do not fit in the worker's memory; `width` is a width that fits."""

    width: int
    reason: str


class Refused(NamedTuple):
    """The round would fail on every worker and is not retried."""

    reason: str


class Failed(NamedTuple):
    """The round failed, or its worker was killed; it may be retried."""

    reason: str


Outcome = Trained | Narrower | Refused | Failed


def work(order: Order) -> Outcome:
    """Train a round; errors are returned as outcomes.

    Args:
        order: the round to train.
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
    """Train the round on the devices of this process, or return a width that fits."""
    group, width = _group(order), order.chunks[0].width
    schedule = Schedule([group], jax.devices(), episodes=order.episodes)
    program = schedule.fitting(group, order.share, width)
    if program.width < width:
        return Narrower(program.width, "the compiler reports that they do not fit into its memory")
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
    """Set up the process before JAX initialises its devices.

    Raises:
        ConfigError: package versions or devices differ from those of the sweep.
    """
    with suppress(OSError):  # the directory may not exist on another machine
        os.chdir(place.folder)
    sys.path[:] = dict.fromkeys((*place.path, *sys.path))
    _check_versions(place.versions)
    if not place.gpus:
        jax.config.update("jax_platforms", "cpu")
        if devices_set() is None:
            with suppress(RuntimeError):  # an earlier order in this process initialised them
                jax.config.update("jax_num_cpu_devices", place.devices)
        os.environ.setdefault("PJRT_NPROC", str(place.cores))  # number of XLA threads
    cache.use()
    _check_devices(place)


def devices_set() -> int | None:
    """The number of CPU devices that environment variables set; None if they set none."""
    flag = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    text = os.environ.get("JAX_NUM_CPU_DEVICES", flag[1] if flag else "")
    return int(text) if text.isdigit() else None


def _check_versions(wanted: dict[str, str]) -> None:
    found = provenance.versions()
    for name in SAME_VERSIONS:
        if found[name] != wanted[name]:
            raise ConfigError(
                f"the worker on {platform.node()} has {name} {found[name]}, but the sweep has "
                f"{wanted[name]}; install the same versions there"
            )


def _check_devices(place: Place) -> None:
    devices = jax.devices()
    if place.gpus and devices[0].platform == "cpu":
        raise ConfigError(
            f"the worker on {platform.node()} was given --gpus-per-worker {place.gpus}, but JAX "
            "finds no GPU there; install the CUDA packages (pip install 'jax[cuda13]') and a driver"
        )
    if len(devices) != place.devices:
        raise ConfigError(
            f"the worker on {platform.node()} has {provenance.device()}, {len(devices)} devices "
            f"instead of {place.devices}; see --cpus-per-worker and --gpus-per-worker"
        )


def _group(order: Order) -> Group:
    """The agents of an order, with their seeds and floats, as a Group."""
    split = {p: structure(configs.from_saved(values)) for p, values in order.configs.items()}
    statics = {static for static, _ in split.values()}
    assert len(statics) == 1, "the configurations of a round must share a program"
    floats = {agent: split[point][1] for agent, point in order.points.items()}
    return Group(statics.pop(), tuple(order.points), order.seeds, floats)


def _arrays(finished: Finished, order: Order) -> Arrays:
    agents = finished.chunk.agents
    points = [order.points[a] for a in agents]
    wanted: Sequence[int] = candidates(points, scores_of(finished), order.keep)
    states = {i: leaves_of(finished.state(i)) for i in wanted}
    return Arrays(finished.chunk, finished.metrics, finished.returns, finished.whole, states)


def leaves_of(state: TrainState) -> list[np.ndarray]:
    """The leaves of a state on the host, with PRNG keys as raw data."""
    plain = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    return [np.asarray(x) for x in plain]


def state_of(shapes: TrainState, leaves: Sequence[np.ndarray]) -> TrainState:
    """The inverse of `leaves_of`, given the shapes of the state from `jax.eval_shape`."""
    like, structure = jax.tree.flatten(shapes)
    found = [
        jax.random.wrap_key_data(jnp.asarray(x)) if _is_key(shape) else x
        for shape, x in zip(like, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
