"""Tests run on the CPU, where their tolerances were set, whatever else the machine has."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
