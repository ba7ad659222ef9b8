"""The contestant RLtools: PPO in C++, compiled for one configuration, on its own Pendulum.

Sizes and hyperparameters are constants of the program, which is compiled by g++ or clang++. Matrix
products use MKL if installed, otherwise another BLAS, otherwise much slower loops. By default it
trains on one thread. Some properties cannot be changed: gradients and values are not clipped, the
coefficient of the value loss is one half, actions are clipped to the range of torques, and the
compiler option -ffast-math is set.
"""

import contextlib
import importlib.metadata
import os
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import ONE_DEVICE, Unsupported, cores, require

# RLtools stores compiled programs in the folder for temporary files, under a name that all runs
# share, and reads the name of the folder when it is imported. With a folder of its own each process
# compiles.
CACHE = Path(tempfile.mkdtemp(prefix="rltools-"))
_folder, tempfile.tempdir = tempfile.tempdir, str(CACHE)
try:
    import rltools
finally:
    tempfile.tempdir = _folder

PACKAGES = ("rltools",)
PENDULUM = {
    "path": str(Path(__file__).parent / "pendulum"),
    "action_dim": 1,
    "observation_dim": 3,
}
ACTIVATIONS = {"tanh": "TANH", "relu": "RELU"}
# Number of updates of the training run, more than are ever measured.
ENDLESS = 10**9
# Options of the compiler command that affect the speed of the program.
DECIDES = ("-O", "-march", "-ffast-math", "-DRL_TOOLS_BACKEND")


class Program:
    """A training run that continues from round to round."""

    def __init__(self, settings: dict[str, Any], steps_per_update: int, threads: int) -> None:
        """Store the arguments; `compile` does the rest.

        Args:
            settings: keyword arguments of `rltools.PPO`.
            steps_per_update: number of environment steps in one step of the algorithm.
            threads: number of threads of MKL.
        """
        self.settings, self.steps_per_update, self.devices = settings, steps_per_update, threads
        self.versions: dict[str, str] = {}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            self.versions["mkl"] = importlib.metadata.version("mkl")
        # Without the variable it uses one thread.
        os.environ["MKL_NUM_THREADS"] = str(threads)

    def compile(self, seed: int = 0) -> None:
        """Compile the C++ program to a module, and make the initial state."""
        module = rltools.PPO(PENDULUM, enable_evaluation=False, **self.settings)
        commands = (path.read_text().split() for path in CACHE.glob("rltools/build/*/cmd.txt"))
        words = [word for command in commands for word in command if word.startswith(DECIDES)]
        self.compiler_options = {"C++": ",".join(words), "threads": str(self.devices)}
        # A loaded module does not need its files, and this process may be killed later.
        shutil.rmtree(CACHE, ignore_errors=True)
        self.state = module.State(seed)

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because the program runs any number of updates."""

    def run(self, updates: int) -> int:
        """Continue training for a number of updates."""
        for _ in range(updates):
            self.state.step()
        return updates


def check_compiler() -> None:
    """Refuse a machine without a C++ compiler, which RLtools uses at run time.

    Raises:
        Unsupported: there is no compiler.
    """
    own = os.environ.get("RL_TOOLS_COMPILER")
    if not any(map(shutil.which, [own] if own else ("g++", "clang++"))):
        shutil.rmtree(CACHE, ignore_errors=True)
        raise Unsupported("needs a C++ compiler: install g++ or clang++, or set RL_TOOLS_COMPILER")


def threads_of(devices: str) -> int:
    """The number of threads, 1 or one per core.

    Args:
        devices: "one" or "all".

    Raises:
        Unsupported: MKL is not installed, so there is only one thread.
    """
    if devices == "one":
        return 1
    if cores() == 1:
        raise Unsupported(ONE_DEVICE)
    try:
        importlib.metadata.version("mkl")
    except importlib.metadata.PackageNotFoundError:
        raise Unsupported("uses one thread, unless MKL is installed") from None
    return cores()


def settings_of(configuration: Configuration) -> dict[str, Any]:
    """The settings of RLtools for a configuration.

    Raises:
        Unsupported: RLtools has no such network.
    """
    widths, layers = {*configuration.hidden}, len(configuration.hidden) + 1
    if configuration.network != "mlp" or len(widths) != 1 or layers < 3:
        raise Unsupported("supports only networks with at least two layers, all of one width")
    (width,) = widths
    found: dict[str, Any] = {
        "STEP_LIMIT": ENDLESS,
        "N_ENVIRONMENTS": configuration.num_envs,
        "ON_POLICY_RUNNER_STEPS_PER_ENV": configuration.num_steps,
        "BATCH_SIZE": configuration.minibatch_size,
        "N_EPOCHS": configuration.epochs,
        "OPTIMIZER_ALPHA": configuration.learning_rate,
        "GAMMA": configuration.gamma,
        "LAMBDA": configuration.gae_lambda,
        "EPSILON_CLIP": configuration.clip_eps,
        "ACTION_ENTROPY_COEFFICIENT": configuration.entropy_coef,
        # The same as in the other projects, exp(0).
        "INITIAL_ACTION_STD": 1.0,
    }
    for part in ("ACTOR", "CRITIC"):
        found[f"{part}_HIDDEN_DIM"] = width
        found[f"{part}_NUM_LAYERS"] = layers
        found[f"{part}_ACTIVATION_FUNCTION"] = ACTIVATIONS[configuration.activation]
    return found


def prepare(configuration: Configuration, options: Namespace) -> Program:
    """The program of RLtools, for Pendulum only."""
    require(
        configuration, ("Pendulum-v1",), "its Python interface supports continuous actions only"
    )
    check_compiler()
    settings = settings_of(configuration)
    return Program(settings, configuration.steps_per_update, threads_of(options.devices))
