"""Messages between processes, through the key-value store of JAX's coordination service.

The messages are short texts, a few times per second; training data goes through the devices. This
is the only module that depends on how JAX stores its client.
"""

import contextlib
import re
from typing import Any

import jax

PREFIX = "ppo_jax/"
_LATE = re.compile("deadline|timed out|timeout", re.IGNORECASE)


class Board:
    """A key-value store that all processes share.

    Args:
        client: JAX's client of the coordination service.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def put(self, name: str, text: str) -> None:
        """Write a text under a name, replacing an earlier one."""
        self._client.key_value_set(PREFIX + name, text, allow_overwrite=True)

    def all(self, folder: str) -> dict[str, str]:
        """All texts whose names begin with "folder/", keyed by the rest of the name."""
        found = self._client.key_value_dir_get(f"{PREFIX}{folder}/")
        return {name.rpartition("/")[2]: text for name, text in found}

    def wait(self, name: str, seconds: float) -> str | None:
        """Wait for the text with a name; None after `seconds` seconds."""
        try:
            return self._client.blocking_key_value_get(PREFIX + name, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if _LATE.search(str(error)):
                return None
            raise

    def forget(self, name: str) -> None:
        """Delete the text with a name, if it exists."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_delete(PREFIX + name)


def connected() -> Board:
    """The board of this process, which must have joined the others."""
    from jax._src import distributed

    return Board(distributed.global_state.client)
