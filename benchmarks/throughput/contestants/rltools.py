"""RLtools: PPO in C++, compiled for one configuration by g++ or clang++, on its own Pendulum.

Sizes and hyperparameters are constants of the compiled program. Its products come from MKL where
that is installed, else from another BLAS, else from loops that are many times slower; it is the one
project here that trains on one thread by default. Its own, and not to be set: neither gradients nor
values are clipped, the value loss has a weight of one half, actions are clipped to the range of
torques, and it compiles with -ffast-math.
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

# It keeps what it compiled in the folder of temporary files, by a name that all runs share, and
# reads the folder's name when it is imported: here each process compiles for itself.
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
# More updates than are ever asked for.
ENDLESS = 10**9
# The words of its compiler's command that decide how fast the program is.
DECIDES = ("-O", "-march", "-ffast-math", "-DRL_TOOLS_BACKEND")


class Program:
    """A training that goes on from round to round."""

    def __init__(self, settings: dict[str, Any], steps_per_update: int, threads: int) -> None:
        """Nothing is compiled yet.

        Args:
            settings: keywords of `rltools.PPO`.
            steps_per_update: environment steps of one of its steps.
            threads: of MKL.
        """
        self.settings, self.steps_per_update, self.devices = settings, steps_per_update, threads
        self.versions: dict[str, str] = {}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            self.versions["mkl"] = importlib.metadata.version("mkl")
        # It takes one itself where nothing is said.
        os.environ["MKL_NUM_THREADS"] = str(threads)

    def compile(self, seed: int = 0) -> None:
        """C++ to a module, and a first state."""
        module = rltools.PPO(PENDULUM, enable_evaluation=False, **self.settings)
        commands = (path.read_text().split() for path in CACHE.glob("rltools/build/*/cmd.txt"))
        words = [word for command in commands for word in command if word.startswith(DECIDES)]
        self.compiler_options = {"C++": ",".join(words), "threads": str(self.devices)}
        # What is loaded stays loaded, and this process may be killed.
        shutil.rmtree(CACHE, ignore_errors=True)
        self.state = module.State(seed)

    def prepare_run(self, updates: int) -> None:
        """Any number of updates will do."""

    def run(self, updates: int) -> int:
        """Train on from where it is."""
        for _ in range(updates):
            self.state.step()
        return updates


def check_compiler() -> None:
    """It compiles when it is used.

    Raises:
        Unsupported: there is no compiler.
    """
    own = os.environ.get("RL_TOOLS_COMPILER")
    if not any(map(shutil.which, [own] if own else ("g++", "clang++"))):
        shutil.rmtree(CACHE, ignore_errors=True)
        raise Unsupported("needs a C++ compiler: install g++ or clang++, or set RL_TOOLS_COMPILER")


def threads_of(devices: str) -> int:
    """One thread, or one for each core.

    Raises:
        Unsupported: without MKL it has one thread.
    """
    if devices == "one":
        return 1
    if cores() == 1:
        raise Unsupported(ONE_DEVICE)
    try:
        importlib.metadata.version("mkl")
    except importlib.metadata.PackageNotFoundError:
        raise Unsupported("has one thread, unless MKL is installed") from None
    return cores()


def settings_of(configuration: Configuration) -> dict[str, Any]:
    """The configuration in its words.

    Raises:
        Unsupported: it has no such network.
    """
    widths, layers = {*configuration.hidden}, len(configuration.hidden) + 1
    if configuration.network != "mlp" or len(widths) != 1 or layers < 3:
        raise Unsupported("has networks of two or more layers of one width alone")
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
        # That of the others: exp(0).
        "INITIAL_ACTION_STD": 1.0,
    }
    for part in ("ACTOR", "CRITIC"):
        found[f"{part}_HIDDEN_DIM"] = width
        found[f"{part}_NUM_LAYERS"] = layers
        found[f"{part}_ACTIVATION_FUNCTION"] = ACTIVATIONS[configuration.activation]
    return found


def prepare(configuration: Configuration, options: Namespace) -> Program:
    """RLtools' PPO; Pendulum only."""
    require(configuration, ("Pendulum-v1",), "its Python interface has PPO for continuous actions")
    check_compiler()
    settings = settings_of(configuration)
    return Program(settings, configuration.steps_per_update, threads_of(options.devices))
