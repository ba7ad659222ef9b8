"""Tests run on the CPU, where their tolerances were set, whatever else the machine has."""

import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")


# Workers inherit it: the same small programs recur in many tests, and each is compiled once.
CACHE = os.environ.get("PPO_JAX_TEST_CACHE") or tempfile.mkdtemp(prefix="ppo_jax-tests-")
os.environ["PPO_JAX_TEST_CACHE"] = CACHE


def pytest_configure(config):
    """Programs that took long to compile are kept for the others."""
    import jax

    jax.config.update("jax_compilation_cache_dir", CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_unconfigure(config):
    """The first process to start is the last to go, and cleans up."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of compiled programs are gigabytes, and slow everything that comes after."""
    yield
    import jax

    jax.clear_caches()
