"""Requested devices that do not exist: one line, before anything is compiled or written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_jax.runs import devices

ROOT = Path(devices.__file__).parent.parent.parent
COMMANDS = """
import sys
from ppo_jax.cli.train import main as train
from ppo_jax.cli.evaluate import main as evaluate
from ppo_jax.cli.export import main as export
from ppo_jax.cli.rlhf import main
from ppo_jax.cli.sweep import main as sweep

runs = [(train, []), (evaluate, ["run"]), (export, ["run"]), (sweep, ["--seeds", "2"])]
runs += [(main, []), (main, ["demo"]), (main, ["sft"]), (main, ["generate"])]
for command, arguments in runs:
    try:
        command(arguments)
    except SystemExit as stop:
        assert stop.code == 2, (command, stop.code)
"""
START = """
import jax
from ppo_jax.cli.errors import exit_with

exit_with(lambda: print(jax.devices()[0].platform) or 0)
"""


def python(code, folder, platforms, *more):
    """Run code in a new process in a folder, with JAX_PLATFORMS set, or unset for None."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environment |= {} if platforms is None else {"JAX_PLATFORMS": platforms}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, *more)))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("platforms", "said"),
    [
        ("cuda", "JAX finds no such device; to use an NVIDIA GPU, install its driver"),
        ("gpux", "JAX finds no such device (Unable to initialize backend 'gpux'"),
    ],
)
@pytest.mark.skipif(devices._nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_every_command_refuses_a_platform_that_is_not_there(tmp_path, platforms, said):
    result = python(COMMANDS, tmp_path, platforms)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 8 and len({*lines}) == 1, result.stderr
    assert lines[0].startswith(f"error: JAX_PLATFORMS={platforms}, but ") and said in lines[0]
    assert "unset JAX_PLATFORMS or set JAX_PLATFORMS=cpu" in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(devices._nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_cuda_packages_without_a_driver_are_one_warning(tmp_path):
    """A plugin that fails as JAX's CUDA plugin does, and another with its own error."""
    for name, error in (("xla_cuda99", "Unable to load cuPTI."), ("xla_other", "Boom")):
        plugin = tmp_path / "packages" / "jax_plugins" / name
        plugin.mkdir(parents=True)
        (plugin / "__init__.py").write_text(
            f"def initialize():\n    raise RuntimeError({error!r})\n"
        )
    result = python(START, tmp_path, None, tmp_path / "packages")
    assert (result.returncode, result.stdout) == (0, "cpu\n")
    warning = "warning: the CUDA packages are installed, but no NVIDIA driver is found"
    assert warning in result.stderr and "running on the CPU" in result.stderr
    assert "cuPTI" not in result.stderr and "RuntimeError: Boom" in result.stderr
    asked = python(START, tmp_path, "cuda", tmp_path / "packages")
    assert asked.returncode == 2 and "JAX finds no such device" in asked.stderr
    assert "cuPTI" not in asked.stderr and "warning" not in asked.stderr
    chosen = python(START, tmp_path, "cpu", tmp_path / "packages")
    assert (chosen.returncode, chosen.stdout) == (0, "cpu\n") and "warning" not in chosen.stderr
