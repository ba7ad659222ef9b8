"""Who may make this process import a module: the person, and a run of their own.

A folder from elsewhere may name any module that can be imported here, and importing one runs it.
Names of code in a run's files are therefore followed only if the person names them too (on the
command line or from Python), trusts the folder, or made the run: what they make is signed,
HMAC-SHA256 with a key in their configuration folder.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax import algorithms
from ppo_jax.config import ConfigError, references
from ppo_jax.config.train import CODE
from ppo_jax.suites import names_code

KEY_BYTES = 32
# What decides which code is run: names, and what environments are called with.
SIGNED = (*CODE, "env_args", "reward")


class Given(NamedTuple):
    """What a person gives beside the name of a folder.

    Attributes:
        env, policy, algorithm: names, named again, or objects in place of those that the folder
            names; None: neither.
        trust: whether the folder may name any code.
        followed: names that were followed before, in a folder around this one.
    """

    env: Any = None
    policy: Any = None
    algorithm: Any = None
    trust: bool = False
    followed: frozenset[str] = frozenset()

    @property
    def named(self) -> set[str]:
        """The names that may be followed."""
        parts = (self.env, self.policy, self.algorithm)
        return {references.name_of(part) for part in parts if part is not None} | self.followed


NOTHING = Given()


def sign(content: dict[str, Any]) -> str:
    """The signature of what a file of the user's own says about code.

    Args:
        content: of config.json or sweep.json.

    Returns:
        Hexadecimal digits; "" where no code is named, or where there is no place for a key.

    Raises:
        ConfigError: the key can be read by others, or is damaged.
    """
    key = _key(make=True) if code(content) or callbacks_of(content) else None
    return "" if key is None else _digest(key, content)


def check(
    content: dict[str, Any], named: set[str], trust: bool, path: Path, *, callbacks: bool = False
) -> None:
    """Refuse a file that names code, unless it may.

    Args:
        content: of the file, JSON.
        named: the names that the person gave, too.
        trust: whether the person trusts it.
        path: of the file, for the message.
        callbacks: whether its callbacks will be called, and not only its agent looked at.

    Raises:
        ConfigError: it names code, and is not the user's own; the names, and the two ways on.
    """
    found = code(content) + ([("callback", n) for n in callbacks_of(content)] if callbacks else [])
    unnamed = [(field, name) for field, name in found if name not in named]
    if not unnamed or trust:
        return
    key, signature = _key(make=False), content.get("signature")
    mine = "" if key is None else _digest(key, content)
    if mine and hmac.compare_digest(mine.encode(), str(signature).encode()):
        return
    listed = ", ".join(dict.fromkeys(name for _, name in unnamed))
    again = " ".join(dict.fromkeys(f"--{f.replace('_', '-')} {n}" for f, n in unnamed))
    raise ConfigError(
        f"{path} names code to import, {listed}, and is not signed as a run of your own; if you "
        f"know that code, name it again ({again}), or trust the file (--trust, or trust=True)"
    )


def vouched(content: dict[str, Any], named: set[str], trust: bool) -> bool:
    """Whether the person stands for a file that names code: trusts it, or named the code, too."""
    return trust or any(name in named for _, name in code(content))


def code(content: dict[str, Any]) -> list[tuple[str, str]]:
    """(option, name) of all that a file names which would be imported, in order."""
    found: list[tuple[str, str]] = []
    for values in _configs(content):
        env, policy = values.get("env"), values.get("policy")
        algorithm, arguments = values.get("algorithm"), values.get("env_args")
        if isinstance(env, str) and names_code(env):
            found.append(("env", env))
        if isinstance(policy, str) and _is_code(policy, "policy"):
            found.append(("policy", policy))
        if isinstance(algorithm, str) and algorithms.names_code(algorithm):
            found.append(("algorithm", algorithm))
        for argument in arguments if isinstance(arguments, list | tuple) else [arguments]:
            # Gymnasium's wrappers of other packages take names of code, too.
            if isinstance(argument, str) and re.search(r"=[^\W\d][\w.]*:[^\W\d]", argument):
                found.append(("env_args", argument))
        rewards = values.get("reward")  # of language models: folders, or functions
        for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
            # The module is imported before anybody looks for the function in it.
            if isinstance(reward, str) and ":" in reward and not Path(reward).is_dir():
                found.append(("reward", reward))
    return list(dict.fromkeys(found))


def callbacks_of(content: dict[str, Any]) -> list[str]:
    """The callbacks that a file names."""
    names = _dict(content.get("run")).get("callback")
    listed = names if isinstance(names, list | tuple) else [names]
    return [n for n in listed if isinstance(n, str) and not references.is_text(n)]


def following(content: dict[str, Any]) -> Given:
    """What may be named inside a folder whose own file was followed: the same."""
    return Given(followed=frozenset(name for _, name in code(content)))


def _is_code(name: str, what: str) -> bool:
    return not references.is_text(name) and name not in references.registered(what)


def _configs(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations in a file: one of a run, many of a sweep."""
    many = _dict(content.get("sweep")).get("configs")
    return [_dict(c) for c in [content.get("config"), *(many if isinstance(many, list) else [])]]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _digest(key: bytes, content: dict[str, Any]) -> str:
    """HMAC-SHA256 of everything in a file that decides which code is run."""
    signed = [{name: values.get(name) for name in SIGNED} for values in _configs(content)]
    callbacks = _dict(content.get("run")).get("callback")
    text = json.dumps([signed, callbacks], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def key_path() -> Path | None:
    """The file of the user's key; None without a home directory."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".config"
        except RuntimeError:
            return None
    return folder / "ppo_jax" / "key" if folder.is_absolute() else None


def _key(make: bool) -> bytes | None:
    """The user's key; None if there is none, and it is not to be made or cannot be."""
    path = key_path()
    if path is None:
        return None
    try:
        if make and not path.exists():
            _make(path)
        with path.open("rb") as file:
            status, key = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
    except OSError:
        return None
    mode = stat.S_IMODE(status.st_mode)
    if mode != 0o600 or status.st_uid != os.geteuid():
        raise ConfigError(
            f"the key {path} has mode {mode:o}, so that others may know it; delete it, and a new "
            "one is made (runs of your own then ask for --trust once), or chmod 600 it"
        )
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"the key {path} is damaged: it must have {KEY_BYTES} bytes; delete it, and a new one "
            "is made (runs of your own then ask for --trust once)"
        )
    return key


def _make(path: Path) -> None:
    """A new key, there whole or not at all; another process may be faster."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".key.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
