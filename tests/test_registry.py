"""Names of environments: installed and missing suites, and ids of all forms."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from ppo_jax import envs
from ppo_jax.envs import registry

ROOT = Path(__file__).parent.parent


@pytest.fixture
def toy(monkeypatch):
    """A suite whose ids contain colons and slashes, one of them unlisted."""
    module = ModuleType("toy")
    module.names = lambda: ["Listed/A-v0"]
    module.has = lambda env_id: env_id in ("Listed/A-v0", "package:Hidden-v0")
    module.make = lambda env_id, **kwargs: (env_id, kwargs)
    monkeypatch.setitem(sys.modules, "toy", module)
    monkeypatch.setitem(registry.SUITES, "toy", "toy")


def without(monkeypatch, *packages):
    """Behave as if these packages were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else find_spec(name)
    )


@pytest.mark.parametrize("env_id", ["Listed/A-v0", "package:Hidden-v0"])
def test_everything_after_the_first_colon_is_the_id(toy, env_id):
    assert envs.canonical(f"toy:{env_id}") == f"toy:{env_id}"
    assert envs.make(f"toy:{env_id}", speed=2) == (env_id, {"speed": 2})


def test_a_wrong_id_is_held_against_its_own_suite(toy):
    with pytest.raises(envs.UnknownEnvironment, match="did you mean Listed/A-v0?"):
        envs.make("toy:Listed/B-v0")
    with pytest.raises(envs.UnknownEnvironment, match="'Listed/A-v0'; "):
        envs.make("Listed/A-v0")  # not searched by an id without a suite


@pytest.mark.parametrize("suite", registry.OPTIONAL)
def test_a_suite_that_is_not_installed_says_what_to_install(monkeypatch, suite):
    package, extra = registry.OPTIONAL[suite]
    without(monkeypatch, package)
    message = rf'suite {suite!r} needs the package {package}.*pip install -e ".*\[{extra}\]"'
    with pytest.raises(envs.UnknownEnvironment, match=message):
        envs.make(f"{suite}:anything")
    with pytest.raises(envs.UnknownEnvironment, match=message):
        envs.names(suite)
    assert not envs.suites()[suite] and envs.suites()["gymnax"]


def test_every_optional_suite_has_its_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra for _, extra in registry.OPTIONAL.values()}
    assert extras <= project["optional-dependencies"].keys()
    assert {*registry.OPTIONAL, *registry.BARE} == {*registry.SUITES}


def test_listing_imports_no_optional_suite():
    code = (
        "import sys, ppo_jax.envs as e; e.names(); e.suites(); e.canonical('CartPole-v1'); "
        "from ppo_jax.envs.registry import OPTIONAL; "
        # gymnax itself imports gymnasium.
        "assert not {p for p, _ in OPTIONAL.values() if p != 'gymnasium'} & {*sys.modules}"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_names_are_full_and_each_has_its_suite():
    assert "gymnax:CartPole-v1" in envs.names()
    assert envs.names("ppo_jax") == [n for n in envs.names() if n.startswith("ppo_jax:")]


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("CartPole-v1", "CartPole-v1", True),
        ("CartPole-v1", "gymnax:CartPole-v1", True),
        ("CartPole-v1", "gymnasium:CartPole-v1", False),
        ("CartPole-v1", "Pendulum-v1", False),
        ("Pong", "ppo_jax:Pong", True),
        ("Pong", "ale:Pong", False),
        ("ale:Pong", "ALE/Pong-v5", True),
        ("PongNoFrameskip-v4", "ale:ALE/Pong-v5", True),
        ("ale:ALE/Pong-v5", "ALE/Breakout-v5", False),
    ],
)
def test_names_of_one_environment(name, other, same):
    assert envs.same_env(name, other) == envs.same_env(other, name) == same


def test_objects_of_other_libraries_are_recognised_by_their_suites(monkeypatch):
    """A suite of the table recognises objects of its own, and adapts them."""
    module = ModuleType("toy")
    module.recognizes = lambda env: env == 5
    module.adapt = lambda env: envs.make("CartPole-v1")
    monkeypatch.setitem(sys.modules, "toy", module)
    monkeypatch.setitem(registry.SUITES, "toy", "toy")
    monkeypatch.setattr(registry, "ADAPTING", (*registry.ADAPTING, "toy"))
    assert envs.as_env(5).name == "CartPole-v1"
    with pytest.raises(envs.InvalidEnvironment, match="lacks reset, step"):
        envs.as_env(6)
