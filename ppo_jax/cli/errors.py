"""How a command ends: exit codes, and one line for what a person can mend."""

import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import jax

from ppo_jax.config import ConfigError
from ppo_jax.runs import devices, failures, memory, terminal
from ppo_jax.runs.job import RunFailed


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command that computes on JAX's devices, which are looked at first.

    What a person can mend is one line and exit code 2, not a traceback.
    """

    def checked() -> int:
        if not {"-h", "--help"} & {*sys.argv[1:]}:  # help needs no device
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
    try:
        with limited(TIMEOUT):
            code = command()
        sys.exit(code)
    except (ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment) as error:
        terminal.complain(f"error: {error}")
        sys.exit(2)
    except jax.errors.JaxRuntimeError as error:
        if memory.is_exhausted(error):
            text = memory.exhausted(error)
        elif failures.is_callback(error):
            text = failures.one_line(error)
        else:
            raise
        terminal.complain(f"error: {text}")
        sys.exit(1)
    except (RunFailed, OSError, FloatingPointError) as error:
        terminal.complain(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
