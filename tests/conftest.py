"""Tests run on the CPU, where their tolerances were set, whatever else the machine has."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of compiled programs are gigabytes, and slow everything that comes after."""
    yield
    import jax

    jax.clear_caches()
