"""The compilation cache: programs are reused by later processes, and its size is limited."""

import os
import subprocess
import sys
import time

import pytest

from ppo_jax.runs import cache

START = """
import jax
from ppo_jax.runs import cache
cache.use()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
jax.jit(lambda x: x * 2 + 1)(3.0)
hits = found.count("/jax/compilation_cache/cache_hits")
print(jax.config.jax_compilation_cache_dir, hits)
"""


MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def start(folder, code=START, **more) -> list[str]:
    """The cache folder and the number of programs found there, printed by a new process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    environment = {**kept, "XDG_CACHE_HOME": str(folder), **more}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    folder, hits = start(tmp_path)
    assert folder.startswith(str(tmp_path / "ppo_jax")) and hits == "0"
    again, hits = start(tmp_path)
    assert again == folder and int(hits) > 0


LIBRARY = """
import jax, ppo_jax
from ppo_jax import config
from ppo_jax.sweep import run_seeds
print(jax.config.jax_compilation_cache_dir)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
run_seeds(config.make(preset="none", num_steps=16, total_timesteps=64, hidden=(8,)), 1)
hits = found.count("/jax/compilation_cache/cache_hits")
print(jax.config.jax_compilation_cache_dir, hits)
"""


@pytest.mark.slow
def test_calls_of_the_library_use_it_and_its_import_does_not(tmp_path):
    imported, folder, hits = start(tmp_path, LIBRARY)
    assert imported == "None" and folder.startswith(str(tmp_path / "ppo_jax")) and hits == "0"
    assert start(tmp_path, LIBRARY)[1:] != [folder, "0"]
    own = str(tmp_path / "own")
    assert start(tmp_path, LIBRARY, JAX_COMPILATION_CACHE_DIR=own)[1] == own


def test_what_the_user_has_set_stays(tmp_path):
    own = str(tmp_path / "own")
    assert start(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[0] == own
    assert not (tmp_path / "ppo_jax").exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file") == ["None", "0"]


def test_a_user_without_a_home_is_done_without():
    nobody = """
import pathlib
def home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = home
"""
    assert start("", nobody + START) == ["None", "0"]


def test_the_shortest_time_that_is_kept_is_the_users_own(tmp_path):
    code = START.replace('jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)', "")
    code += "print(jax.config.jax_persistent_cache_min_compile_time_secs)"
    for given, expected in (({}, "0.3"), ({MIN_SECONDS: "7"}, "7.0")):
        assert start(tmp_path, code, **given)[-1] == expected


def test_the_oldest_go_first(tmp_path, monkeypatch):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    monkeypatch.setattr(cache, "MAX_BYTES", 200)
    cache._trim(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
