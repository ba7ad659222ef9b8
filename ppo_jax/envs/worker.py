"""One copy of a Gymnasium environment, which restarts itself.

Stepped in this process, or in one of its own, whose program this file is, too: it is read there by
its path and imports nothing of the package, so that a worker process never loads JAX.
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


# What a step of one copy brought: obs, the true successor, as the environment has it; reward;
# terminated; truncated; info; and (obs, info) of the next episode's reset, if the step ended one,
# else None.
Stepped = tuple[Any, float, bool, bool, Any, tuple[Any, Any] | None]


class Copy:
    """An environment, reset as soon as its episode ends.

    What it returns may be the environment's own arrays, which its next step may write into: the
    caller copies at once. Only the final observation, after which the environment was reset, is
    copied here.

    Args:
        make: () -> gymnasium.Env.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.env = make()

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(obs, info) of a new episode.

        Raises:
            TypeError: the environment returned something else.
        """
        result = self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"reset returned {described(result)}, expected obs, info")
        return result

    def step(self, action: Any) -> Stepped:
        """One step, and the reset after it where it ended the episode.

        Raises:
            TypeError, ValueError: the environment returned something else than the five values of
                Gymnasium.
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
        """The environment's picture."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def flag(name: str, value: Any) -> bool:
    """A flag of a step as a bool; one in an array counts, too.

    Raises:
        TypeError: it is none.
    """
    if getattr(value, "size", 0) == 1 and getattr(value.dtype, "kind", "") in "biu":
        return bool(value.item())
    if isinstance(value, int):
        return bool(value)
    raise TypeError(f"step returned {short(value)} as {name}, expected True or False")


def number(value: Any) -> float:
    """A reward as a float.

    Raises:
        TypeError: it is no single number.
    """
    try:
        return float(value.item() if getattr(value, "size", 0) == 1 else value)
    except (TypeError, ValueError):
        raise TypeError(f"step returned {short(value)} as reward, expected a number") from None


def described(result: Any) -> str:
    """What a function returned, for messages: the number of values, or its type."""
    if isinstance(result, tuple | list):
        return f"{len(result)} value{'' if len(result) == 1 else 's'}"
    return f"one {type(result).__name__}"


def short(value: Any) -> str:
    """A value in few letters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def raised(error: BaseException) -> str:
    """An exception in one line: its type, its message, and where it was raised."""
    message = " ".join(str(error).split())
    text = f"raised {type(error).__name__}{': ' if message else ''}{message}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    if not frames:
        return message or text  # of this file: the message says it all
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def serve(connection: Connection) -> None:
    """Do what the other end of a connection asks for, until it closes.

    Each request is (name of a method of Copy, arguments), the first ("make", the pickled function,
    entries of info to send). Each answer is (True, result) or (False, what went wrong).
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
        except BaseException as error:  # SystemExit of an environment's own, too
            answer = pickle.dumps((False, raised(error)))
        try:
            connection.send_bytes(answer)
        except OSError:
            break
    if one is not None:
        one.close()


def _selected(result: Any, infos: tuple[str, ...]) -> Any:
    """A result with only those entries of info that somebody reads: the others may be anything."""

    def select(info: Any) -> dict[str, Any]:
        return {k: info[k] for k in infos if k in info} if isinstance(info, dict) else {}

    if not isinstance(result, tuple):
        return result
    if len(result) == 2:
        return result[0], select(result[1])
    *step, info, after = result
    return (*step, select(info), after and (after[0], select(after[1])))


def _end_with_parent(lifeline: int) -> None:
    """Wait for the end of a pipe that the parent process alone holds open: it is gone, however it
    ended, and so is the reason for this process, whatever its environment is doing."""
    os.read(lifeline, 1)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """A worker process.

    Args:
        arguments: file descriptors of the connection and of the pipe.
    """
    connection, lifeline = Connection(int(arguments[0])), int(arguments[1])
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    sys.path[:] = pickle.loads(connection.recv_bytes())
    serve(connection)
    os._exit(0)  # threads of the environment do not keep the process


if __name__ == "__main__":
    main(sys.argv[1:])
