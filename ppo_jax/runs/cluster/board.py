"""The key-value store of JAX's coordination service: what the processes tell each other.

Texts of a few bytes, a few times a second; numbers of the training go through the devices. This is
the only place that knows how JAX keeps its client.
"""

import contextlib
import re
from typing import Any

import jax

PREFIX = "ppo_jax/"
_LATE = re.compile("deadline|timed out|timeout", re.IGNORECASE)


class Board:
    """Names and texts that all processes see.

    Args:
        client: JAX's, of the coordination service.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, name: str, text: str) -> None:
        """Write a text, in the place of an earlier one."""
        self._client.key_value_set(PREFIX + name, text, allow_overwrite=True)

    def all(self, folder: str) -> dict[str, str]:
        """The texts whose names begin with "folder/", by the rest of the name."""
        found = self._client.key_value_dir_get(f"{PREFIX}{folder}/")
        return {name.rpartition("/")[2]: text for name, text in found}

    def wait(self, name: str, seconds: float) -> str | None:
        """A text, once it is there; None if it is not after so many seconds."""
        try:
            return self._client.blocking_key_value_get(PREFIX + name, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if _LATE.search(str(error)):
                return None
            raise

    def forget(self, name: str) -> None:
        """Delete a text, if it is there."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_delete(PREFIX + name)


def connected() -> Board:
    """The board of this process, which has joined others."""
    from jax._src import distributed

    return Board(distributed.global_state.client)
