"""Settings for all tests: they run on the CPU, for which their tolerances were chosen."""

import gc
import importlib.metadata
import itertools
import os
import shutil
import sys
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
# Set by `python3 run.py test`: the tests read messages that name the commands of a module.
os.environ.pop("PPO_JAX_COMMAND", None)
# Tests compile hundreds of programs and run each briefly: without LLVM's optimisations and XLA's
# fused kernels, and with one LLVM module per program instead of up to 32, which are compiled in
# parallel, this takes a third of the CPU time. Tests that train for minutes need all three. Worker
# processes inherit the choice of the first process, which has the command line. Users' programs are
# compiled differently; tests/test_user_options.py therefore trains every method in a process
# without these flags (as_users_compile.py), with the XLA_FLAGS that were given to the tests.
LONG = {"learning", "documents", "suites"}
marked = " ".join(value for flag, value in itertools.pairwise(sys.argv) if flag == "-m")
os.environ.setdefault("PPO_JAX_TEST_QUICK", "0" if LONG & {*marked.split()} else "1")
os.environ.setdefault("PPO_JAX_TEST_USER_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
if os.environ["PPO_JAX_TEST_QUICK"] == "1":
    QUICK = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions lack these flags
        QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"


# Inherited by workers and by commands that tests start. Half of all compilations repeat an earlier
# one, mostly of a small program: the persistent cache, which by default keeps only what took a
# second, keeps all of them here. .ci/run names one folder for all its steps.
OWN_CACHE = not os.environ.get("PPO_JAX_TEST_CACHE")
CACHE = os.environ.get("PPO_JAX_TEST_CACHE") or tempfile.mkdtemp(prefix="ppo_jax-tests-")
os.environ["PPO_JAX_TEST_CACHE"] = CACHE
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_collection_finish(session):
    """Keep Python's garbage collector from visiting all imported modules at each collection.

    Tracing allocates many small objects; with the default thresholds, a tenth of the CPU time of
    the tests is spent in the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_unconfigure(config):
    """The process that made the folder ends last, and deletes it."""
    if OWN_CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Free compiled programs, which would otherwise use gigabytes and slow down later tests."""
    yield
    import jax

    jax.clear_caches()
