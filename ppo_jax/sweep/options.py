"""The options of a sweep, read before JAX is imported."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ppo_jax.config import ConfigError
from ppo_jax.config.options import option

CLUSTERS = ("none", "ray", "slurm")
# Which agents are kept: the best of each configuration, all of them, or none.
KEEP = ("best", "all", "none")
Words = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class PointOptions:
    """Which agents a sweep trains."""

    seeds: int = option(
        10, "number of agents per configuration, with the seeds from --seed on", low=1
    )
    vary: Words = option(
        (),
        "option to vary, as NAME=A,B,C, or NAME=log:LOW:HIGH to --sample from; given several "
        "times, all combinations are trained",
    )
    sample: int | None = option(
        None, "number of configurations of a random search; None: all combinations", low=1
    )
    sampler: str = option(
        "sobol", "distribution of the configurations", choices=("sobol", "uniform")
    )
    sample_seed: int = option(0, "seed of the random search", low=0)
    eval_episodes: int = option(
        128, "number of greedy episodes with which each trained agent is evaluated", low=0
    )
    curve_points: int = option(100, "number of rows of results.csv per agent and metric", low=1)
    compare: tuple[Path, Path] | None = option(
        None, "folders of two finished sweeps to compare on one figure; trains nothing"
    )


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How a sweep is trained and kept. Of these options only the number of agents per device has
    an effect on an agent, by rounding, and the first session decides it."""

    run_dir: Path | None = option(None, "folder of the sweep; None: a new folder in sweeps/")
    resume: Path | None = option(None, "folder of a sweep to continue")
    overwrite: bool = option(False, "replace an existing sweep")
    agents_per_device: str = option(
        "auto", "number of agents that one device trains at the same time, or auto"
    )
    keep: str = option(
        "best", "agents that are saved: the best of each configuration, all, or none", choices=KEEP
    )
    confirm: int = option(
        0, "number of new seeds with which the best configuration is trained again", low=0
    )
    threshold: float | None = option(
        None, "return that counts as solved; None: the threshold of the environment"
    )

    @property
    def width(self) -> int | None:
        """The number of agents per device; None for auto.

        Raises:
            ConfigError: the value is neither.
        """
        given = self.agents_per_device
        if given == "auto":
            return None
        if not (given.isascii() and given.isdigit()) or int(given) < 1:
            raise ConfigError(f"agents_per_device is {given!r}; it must be auto or >= 1")
        return int(given)


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Where a sweep is trained. A sweep that is resumed may continue elsewhere."""

    cluster: str = option(
        "none", "cluster that trains the sweep: Ray, or jobs of SLURM", choices=CLUSTERS
    )
    workers: int | None = option(
        None,
        "largest number of rounds trained at the same time; with SLURM, in each job array",
        low=1,
    )
    cpus_per_worker: int | None = option(
        None, "number of CPU cores of a worker; None: as many as this machine has", low=1
    )
    gpus_per_worker: int = option(
        0, "number of GPUs of a worker; 0: a worker trains on its CPU cores", low=0
    )
    retries: int = option(2, "number of further attempts for a round that failed", low=0)
    ray_address: str | None = option(
        None, "Ray cluster to connect to; None: RAY_ADDRESS, or workers on this machine"
    )
    slurm: Words = option(
        (), "parameter of sbatch as NAME=VALUE, such as partition=gpu, time=2:00:00 or mem=8G"
    )
    slurm_local: bool = option(
        False, "run the jobs of SLURM as processes on this machine, as a test"
    )

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ConfigError: an option requires another value of --cluster.
        """
        belongs = {"ray_address": ("ray",), "slurm": ("slurm",), "slurm_local": ("slurm",)}
        for field in dataclasses.fields(self):
            goes_with = belongs.get(field.name, ("ray", "slurm"))
            if field.name == "cluster" or self.cluster in goes_with:
                continue
            if getattr(self, field.name) != field.default:
                name = field.name.replace("_", "-")
                raise ConfigError(f"--{name} requires --cluster {' or '.join(goes_with)}")
