"""How a command ends: its exit code, and one line for what the user can correct.

0: finished. 1: failed while running. 2: refused before anything ran. 128 + n: ended by signal n.
JAX is imported only where a command computes something.
"""

import sys
import traceback
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from ppo_jax.config import ConfigError, commands
from ppo_jax.config.errors import InvalidEnvironment, UnknownEnvironment
from ppo_jax.runs import failures, terminal
from ppo_jax.runs.failures import CheckpointError, RunFailed

Work = Callable[[], int]
GROUP = "ppo_jax.runs.cluster.group"


def asks_for_help(words: list[str]) -> bool:
    """Whether a command line asks for help instead of work."""
    return bool({"-h", "--help"} & {*words})


def exit_with(command: Work, before: Callable[[], None] | None = None) -> NoReturn:
    """Run a command that computes on JAX's devices, which are checked first.

    What the user can correct ends the command with one line and exit code 2, not with a traceback.

    Args:
        command: () -> exit code.
        before: function that runs before JAX's devices are started.
    """

    def checked() -> int:
        if asks_for_help(sys.argv[1:]):  # help needs no device
            return command()
        if before is not None:
            before()
        return _on_devices(command)

    exit_without_device(checked)


def exit_prepared(
    prepare: Callable[[], Work], before: Callable[[], None] | None = None
) -> NoReturn:
    """Run a command in two steps: its command line is read without JAX, and then it computes.

    Args:
        prepare: () -> the rest of the command. --help and refused options end the command here.
        before: function that runs before the command line is read.
    """

    def prepared() -> int:
        if before is not None:
            before()
        return _on_devices(prepare())

    exit_without_device(prepared)


def _on_devices(command: Work) -> int:
    """Check JAX's devices, and run a command with a time limit for each call of an environment."""
    from ppo_jax.envs.supervision import TIMEOUT, limited
    from ppo_jax.runs import devices

    devices.check()
    with limited(TIMEOUT):
        return command()


def exit_without_device(command: Work) -> NoReturn:
    """Run a command that computes nothing."""
    terminal.settle()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_shown(str(message))}\n"
    text, code = "", 1
    try:
        code = command()
    except (ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment) as error:
        text, code = str(error), 2
    except BrokenPipeError as error:
        if terminal.has_reader(sys.stdout):  # it is another pipe, for example that of a worker
            text = str(error)
        else:  # the reader of the output has ended, as in `--help | head`
            terminal.finish()
            code = 0 if asks_for_help(sys.argv[1:]) else 1
    except (RunFailed, OSError, FloatingPointError) as error:
        text = str(error)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        text = _of_jax(error)
        if not text:
            terminal.finish()
            _leave_with(error)
            raise
    group = _group()
    if group is not None:  # of several processes; it prints the line, and ends them all
        group.leave(text, code)
    if text:
        terminal.complain(commands.shown(f"error: {text}"))
    sys.exit(code)


def _shown(text: str) -> str:
    """A warning that names commands as the user starts them, without the colours that Gymnasium
    gives it, whatever the terminal."""
    text = commands.shown(text)
    if "\x1b" not in text:
        return text
    from ppo_jax.envs.first_look import plain

    return plain(text)


def _of_jax(error: BaseException) -> str:
    """One line for an error of a compiled program that has a known cause; "" for any other."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    from ppo_jax.runs import memory

    if memory.is_exhausted(error):
        return memory.exhausted(error)
    return failures.one_line(error) if failures.is_callback(error) else ""


def _group() -> ModuleType | None:
    """The module of the processes that train together, if this process uses it."""
    return sys.modules.get(GROUP)


def _leave_with(error: BaseException) -> None:
    """End the processes that work with this one, which fails with an error of the program."""
    group = _group()
    if group is None or not isinstance(group.current(), group.Group):
        return None
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return group.leave("it ended" if code else "", code)
    traceback.print_exception(error)
    return group.leave(f"{type(error).__name__}: {error}".partition("\n")[0], 1)
