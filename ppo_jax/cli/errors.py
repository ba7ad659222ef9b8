"""How a command ends: exit codes, and one line for what a person can mend."""

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

import jax

from ppo_jax.config import ConfigError
from ppo_jax.runs import cluster, devices, failures, memory, terminal
from ppo_jax.runs.job import RunFailed


def exit_with(command: Callable[[], int], before: Callable[[], None] | None = None) -> NoReturn:
    """Run a command that computes on JAX's devices, which are looked at first.

    What a person can mend is one line and exit code 2, not a traceback.

    Args:
        command: () -> exit code.
        before: what has to be done before JAX's devices are started.
    """

    def checked() -> int:
        if not {"-h", "--help"} & {*sys.argv[1:]}:  # help needs no device
            if before is not None:
                before()
            devices.check()
        return command()

    exit_without_device(checked)


def exit_without_device(command: Callable[[], int]) -> NoReturn:
    """Run a command that computes nothing."""
    from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
    from ppo_jax.envs.first_look import plain
    from ppo_jax.envs.supervision import TIMEOUT, limited
    from ppo_jax.runs.checkpoint import CheckpointError

    terminal.settle()
    # Gymnasium's warnings bring colours, whatever the terminal.
    shown = lambda text: plain(text) if "\x1b" in text else text
    warnings.formatwarning = lambda message, *_, **__: f"warning: {shown(str(message))}\n"
    text, code = "", 1
    try:
        with limited(TIMEOUT):
            code = command()
    except (ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment) as error:
        text, code = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        if memory.is_exhausted(error):
            text = memory.exhausted(error)
        elif failures.is_callback(error):
            text = failures.one_line(error)
        else:
            _leave_with(error)
            raise
    except (RunFailed, OSError, FloatingPointError) as error:
        text = str(error)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        _leave_with(error)
        raise
    cluster.leave(text, code)  # of several processes; it prints the line, and ends them all
    if text:
        terminal.complain(f"error: {text}")
    sys.exit(code)


def _leave_with(error: BaseException) -> None:
    """End the processes that work with this one, which fails with an error of the program."""
    if not isinstance(cluster.current(), cluster.Group):
        return None
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return cluster.leave("it ended" if code else "", code)
    traceback.print_exception(error)
    return cluster.leave(f"{type(error).__name__}: {error}".partition("\n")[0], 1)
