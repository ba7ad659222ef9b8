"""`ppo-jax COMMAND` runs the command, and reports an unknown one."""

import importlib
import tomllib
from pathlib import Path

import pytest

from ppo_jax import __version__
from ppo_jax.cli import main as front

ROOT = Path(__file__).parent.parent


def ends(capsys, *words):
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as end:
        front.main([*words])
    return end.value.code, *capsys.readouterr()


def test_help_lists_every_command_with_a_line(capsys):
    code, text, _ = ends(capsys, "--help")
    assert code == 0 and ends(capsys) == (2, text, "")
    for name, (module, line) in front.COMMANDS.items():
        assert f"  {name} " in text and line in text
        assert callable(importlib.import_module(module).main)


def test_version(capsys):
    assert ends(capsys, "--version") == (0, f"ppo_jax {__version__}\n", "")


def test_an_unknown_command_gets_a_hint(capsys):
    code, text, error = ends(capsys, "check_env")
    assert (code, text) == (2, "")
    assert error == "error: unknown command 'check_env'; did you mean check-env?; see --help\n"


def test_a_command_gets_the_words_that_follow_it(capsys):
    code, text, _ = ends(capsys, "evaluate", "--help")
    assert code == 0 and "--episodes" in text
    code, _, error = ends(capsys, "check-env", "CartPole-v1", "--steps", "0")
    assert code == 2 and "--steps is 0; it must be >= 1" in error


def test_the_script_is_declared():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ppo-jax": "ppo_jax.cli.main:main"}
