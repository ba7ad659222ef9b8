"""Verification of exported files: actions are compared in a new process that reads only the file.

The new process runs

    python -m ppo_jax.export.verify FORMAT FILE OBSERVATIONS.npz ACTIONS.npz
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax import precision
from ppo_jax.agent import Agent, Parts, read_weights
from ppo_jax.envs import spaces
from ppo_jax.types import PyTree

OBSERVATIONS = 256
# Programs may sum in a different order, so that real-valued actions differ in their last digits.
TOLERANCE = 1e-4


class NotTheSame(RuntimeError):
    """Actions of the exported file differ from those of the run."""


def compare(parts: Parts, format: str, path: Path) -> tuple[int, float]:
    """Reload a file in a new process and compare its actions with those of the agent.

    Args:
        parts: parts of the agent.
        format: name of the format.
        path: path of the file.

    Returns:
        (number of observations, largest difference of an action)

    Raises:
        NotTheSame: the file cannot be reloaded, an integer action differs, or a real-valued action
            differs by more than 1e-4 of the largest action.
    """
    obs = parts.codec.unread(observations(parts.observation_space, parts.obs, OBSERVATIONS))
    # Accelerators round matrix products by default, and the new process runs on the CPU.
    exact = parts._replace(policy=precision.apply("highest", parts.policy))
    agent = Agent(exact)
    expected = agent.act_on(obs)
    agent.reset()
    alone = agent.act_on([x[:1] for x in obs])
    found, found_alone = _in_a_fresh_process(format, path, obs)
    types = (expected.dtype, parts.codec.action.port.program_dtype)
    if found.shape != expected.shape or found.dtype not in types:
        raise NotTheSame(
            f"{path} returns actions {found.shape} {found.dtype}, but the run "
            f"{expected.shape} {expected.dtype}"
        )
    pairs = ((found, expected), (found_alone, alone))
    difference = max(float(np.max(np.abs(a.astype(float) - b), initial=0)) for a, b in pairs)
    whole = np.issubdtype(expected.dtype, np.integer)
    allowed = 0.0 if whole else TOLERANCE * max(1.0, float(np.max(np.abs(expected))))
    if not difference <= allowed:
        raise NotTheSame(
            f"the actions of {path} differ from those of the run: for {len(expected)} "
            f"observations, the largest difference is {difference:.3g}; do not use the file"
        )
    return len(expected), difference


def _in_a_fresh_process(format: str, path: Path, obs: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The actions of the file for all observations together, and for the first one alone."""
    with tempfile.TemporaryDirectory() as name:
        inputs, actions = Path(name, "observations.npz"), Path(name, "actions.npz")
        np.savez(inputs, *obs)
        command = [sys.executable, "-m", __name__, format, str(path), str(inputs), str(actions)]
        # The new process uses the CPU, because this process may hold the accelerator.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip() or "no message").splitlines()[-1]
            raise NotTheSame(f"{path} cannot be reloaded in a new process: {last}")
        with np.load(actions) as file:
            return file["all"], file["first"]


def observations(space: PyTree, seen: PyTree, count: int, seed: int = 0) -> PyTree:
    """Observations for the comparison: those of the run, and random ones around them.

    Args:
        space: observation space.
        seen: [N, ...] observations of the run, which come first.
        count: number of observations.
        seed: seed of the random observations.

    Returns:
        Observations [count, ...] with the structure and the types of `seen`.
    """
    rng = np.random.default_rng(seed)

    def more(leaf: spaces.Space, x: Any) -> np.ndarray:
        real = np.asarray(x)[:count]
        around = real[rng.integers(len(real), size=count - len(real))]
        return np.concatenate([real, _varied(rng, leaf, around)])

    return jax.tree.map(more, space, seen)


def _varied(rng: np.random.Generator, space: spaces.Space, x: np.ndarray) -> np.ndarray:
    """Add noise of the data's scale to real numbers; draw integers from their space."""
    if np.issubdtype(x.dtype, np.floating):
        scale = np.std(x, axis=0) + 0.1 if len(x) else 1.0
        return (x + scale * rng.standard_normal(x.shape)).astype(x.dtype)
    low: Any = 0
    high: Any = 1
    if isinstance(space, spaces.Discrete):
        high = space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        high = np.asarray(space.sizes) - 1
    elif isinstance(space, spaces.Box):
        low, high = np.asarray(space.low, np.int64), np.asarray(space.high, np.int64)
    return rng.integers(low, high, x.shape, endpoint=True).astype(x.dtype)


def _stablehlo(path: Path, obs: list[np.ndarray]) -> np.ndarray:
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    pairs = zip(obs, program.in_avals, strict=True)
    return np.asarray(program.call(*(x.astype(aval.dtype) for x, aval in pairs)))


def _onnx(path: Path, obs: list[np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, obs, strict=True)))[0]


def _safetensors(path: Path, obs: list[np.ndarray]) -> np.ndarray:
    from ppo_jax.runs.trust import Given

    parts = read_weights(path, Given(trust=True))  # written by this process, from a loaded run
    return Agent(parts).act_on(obs)


RELOAD = {"stablehlo": _stablehlo, "onnx": _onnx, "safetensors": _safetensors}


def main(format: str, path: str, inputs: str, actions: str) -> None:
    """Run the exported policy on the observations; called in the new process."""
    with np.load(inputs) as file:
        obs = [file[f"arr_{k}"] for k in range(len(file.files))]
    act = RELOAD[format]
    first = act(Path(path), [x[:1] for x in obs])
    np.savez(actions, all=act(Path(path), obs), first=first)


if __name__ == "__main__":
    main(*sys.argv[1:])
