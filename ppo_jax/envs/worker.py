"""One copy of a Gymnasium environment with automatic reset, in this process or in a worker process.

A worker process executes this file by its path. The file imports nothing from the package, so that
a worker process never loads JAX.
"""

import copy
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

EXPECTED = "obs, reward, terminated, truncated, info"


# The result of a step of one copy: obs, the true successor observation as the environment returned
# it; reward; terminated; truncated; info; and (obs, info) of the reset if the episode ended, else
# None.
Stepped = tuple[Any, float, bool, bool, Any, tuple[Any, Any] | None]


class Copy:
    """An environment that is reset as soon as its episode ends.

    The returned arrays may belong to the environment, whose next step may write into them, so the
    caller must copy them immediately. Only the final observation is copied here, because the
    environment is reset after it.

    Args:
        make: function that makes a gymnasium.Env.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.env = make()

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode: (obs, info).

        Raises:
            TypeError: if the environment returned something else.
        """
        result = self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"reset returned {described(result)}, expected obs, info")
        return result

    def step(self, action: Any) -> Stepped:
        """Take one step, and reset the environment if the episode ended.

        Raises:
            TypeError, ValueError: if the environment did not return the five values of Gymnasium.
        """
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise TypeError(f"step returned {described(result)}, expected {EXPECTED}")
        obs, reward, terminated, truncated, info = result
        if type(terminated) is not bool:
            terminated = flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = flag("truncated", truncated)
        if type(reward) is not float:
            reward = number(reward)
        if not (terminated or truncated):
            return obs, reward, False, False, info, None
        obs, info = copy.deepcopy(obs), dict(info) if isinstance(info, dict) else {}
        return obs, reward, terminated, truncated, info, self.reset()

    def render(self) -> Any:
        """An image from the environment."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def flag(name: str, value: Any) -> bool:
    """A flag of a step as a bool; an array with one element is accepted.

    Raises:
        TypeError: if the value is not a flag.
    """
    if getattr(value, "size", 0) == 1 and getattr(value.dtype, "kind", "") in "biu":
        return bool(value.item())
    if isinstance(value, int):
        return bool(value)
    raise TypeError(f"step returned {short(value)} as {name}, expected True or False")


def number(value: Any) -> float:
    """A reward as a float.

    Raises:
        TypeError: if the value is not a single number.
    """
    try:
        return float(value.item() if getattr(value, "size", 0) == 1 else value)
    except (TypeError, ValueError):
        raise TypeError(f"step returned {short(value)} as reward, expected a number") from None


def described(result: Any) -> str:
    """A description of a result for messages: the number of values, or the type."""
    if isinstance(result, tuple | list):
        return f"{len(result)} value{'' if len(result) == 1 else 's'}"
    return f"one {type(result).__name__}"


def short(value: Any) -> str:
    """The text of a value, shortened to 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def raised(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the line that raised it."""
    message = " ".join(str(error).split())
    text = f"raised {type(error).__name__}{': ' if message else ''}{message}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    if not frames:
        return message or text  # raised by this file, so the line number is of no use
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def serve(connection: Connection) -> None:
    """Answer the requests of a connection until it is closed.

    A request is (name of a method of Copy, arguments). The first one is ("make", the pickled
    function, entries of info to send). An answer is (True, result) or (False, description of the
    error).
    """
    one, infos = None, ()
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            break
        try:
            name, *arguments = pickle.loads(request)
            if name == "make":
                one, infos, result = Copy(pickle.loads(arguments[0])), arguments[1], None
            elif name == "close":
                break
            else:
                result = _selected(getattr(one, name)(*arguments), infos)
            answer = pickle.dumps((True, result), protocol=5)
        except BaseException as error:  # includes SystemExit raised by an environment
            answer = pickle.dumps((False, raised(error)))
        try:
            connection.send_bytes(answer)
        except OSError:
            break
    if one is not None:
        one.close()


def _selected(result: Any, infos: tuple[str, ...]) -> Any:
    """A result with only the requested entries of info, because others may not be picklable."""

    def select(info: Any) -> dict[str, Any]:
        return {k: info[k] for k in infos if k in info} if isinstance(info, dict) else {}

    if not isinstance(result, tuple):
        return result
    if len(result) == 2:
        return result[0], select(result[1])
    *step, info, after = result
    return (*step, select(info), after and (after[0], select(after[1])))


def _end_with_parent(lifeline: int) -> None:
    """Wait until the parent process has exited, then exit. The parent alone holds the other end of
    a pipe, so the pipe is closed however the parent ended."""
    os.read(lifeline, 1)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Run a worker process.

    Args:
        arguments: file descriptors of the connection and of the pipe.
    """
    connection, lifeline = Connection(int(arguments[0])), int(arguments[1])
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    sys.path[:] = pickle.loads(connection.recv_bytes())
    serve(connection)
    os._exit(0)  # even if threads of the environment are still running


if __name__ == "__main__":
    main(sys.argv[1:])
