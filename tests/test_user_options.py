"""All methods learn when they are compiled as for users, unlike in the other tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_jax.algorithms import ALGORITHMS


@pytest.mark.slow
def test_every_method_learns_as_the_command_compiles_it():
    """With the optimisations and kernels that conftest.py disables; in a separate process, because
    XLA reads its flags once."""
    script = Path(__file__).parent / "as_users_compile.py"
    flags = os.environ["PPO_JAX_TEST_USER_XLA_FLAGS"]
    assert "backend_optimization_level" not in flags and "fusion_emitters" not in flags
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    confidence = json.loads(done.stdout.splitlines()[-1])
    assert confidence.keys() == ALGORITHMS.keys()
    for name, (before, after) in confidence.items():
        assert before < 0.6 and after > 0.9, (name, before, after)
