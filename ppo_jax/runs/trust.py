"""Which modules a run folder may make this process import: those the user names, or has signed.

A folder from another source can name any importable module, and importing a module executes it.
Code that a run's files name is therefore imported only if the user also names it (on the command
line or from Python), trusts the folder, or created the run: the files of a run are signed with
HMAC-SHA256 and a key in the user's configuration folder.
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
# Fields that decide which code is executed: names, and the arguments of environments.
SIGNED = (*CODE, "env_args", "reward")


class Given(NamedTuple):
    """What the user gives in addition to the path of a folder.

    Attributes:
        env, policy, algorithm: names in the folder that the user repeats, or objects that replace
            what the folder names; None if the user gives nothing.
        trust: whether the folder may name any code.
        followed: names that were accepted for a folder which contains this one.
    """

    env: Any = None
    policy: Any = None
    algorithm: Any = None
    trust: bool = False
    followed: frozenset[str] = frozenset()

    @property
    def named(self) -> set[str]:
        """The names of code that may be imported."""
        parts = (self.env, self.policy, self.algorithm)
        return {references.name_of(part) for part in parts if part is not None} | self.followed


NOTHING = Given()


def sign(content: dict[str, Any]) -> str:
    """Sign the parts of a file that name code.

    Args:
        content: content of config.json or sweep.json.

    Returns:
        The signature in hexadecimal digits; "" if no code is named or no key can be stored.

    Raises:
        ConfigError: the key can be read by other users, or is damaged.
    """
    key = _key(make=True) if code(content) or callbacks_of(content) else None
    return "" if key is None else _digest(key, content)


def check(
    content: dict[str, Any], named: set[str], trust: bool, path: Path, *, callbacks: bool = False
) -> None:
    """Refuse a file that names code, unless the code may be imported.

    Args:
        content: JSON content of the file.
        named: names that the user repeated.
        trust: whether the user trusts the file.
        path: path of the file, for the message.
        callbacks: whether the callbacks in the file will be called, so that they are checked too.

    Raises:
        ConfigError: the file names code and was not signed by this user; the message lists the
            names and how to allow them.
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
        f"{path} names code to import, {listed}, and was not signed with your key; if you know "
        f"that code, name it again ({again}), or trust the file (--trust, or trust=True)"
    )


def is_trusted(content: dict[str, Any], named: set[str], trust: bool) -> bool:
    """Whether the user trusts a file that names code, or has repeated one of its names."""
    return trust or any(name in named for _, name in code(content))


def code(content: dict[str, Any]) -> list[tuple[str, str]]:
    """All code that a file names for import, as (option, name), in order."""
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
            # Gymnasium wrappers of other packages may also take names of code.
            if isinstance(argument, str) and re.search(r"=[^\W\d][\w.]*:[^\W\d]", argument):
                found.append(("env_args", argument))
        rewards = values.get("reward")  # language models: folders or functions
        for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
            # The module is imported before the function is looked up in it.
            if isinstance(reward, str) and ":" in reward and not Path(reward).is_dir():
                found.append(("reward", reward))
    return list(dict.fromkeys(found))


def callbacks_of(content: dict[str, Any]) -> list[str]:
    """The callbacks that a file names."""
    names = _dict(content.get("run")).get("callback")
    listed = names if isinstance(names, list | tuple) else [names]
    return [n for n in listed if isinstance(n, str) and not references.is_text(n)]


def following(content: dict[str, Any]) -> Given:
    """The names that a folder inside an accepted folder may use: those already accepted."""
    return Given(followed=frozenset(name for _, name in code(content)))


def _is_code(name: str, what: str) -> bool:
    return not references.is_text(name) and name not in references.registered(what)


def _configs(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations in a file: one for a run, many for a sweep."""
    many = _dict(content.get("sweep")).get("configs")
    return [_dict(c) for c in [content.get("config"), *(many if isinstance(many, list) else [])]]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _digest(key: bytes, content: dict[str, Any]) -> str:
    """HMAC-SHA256 of all parts of a file that decide which code is executed."""
    signed = [{name: values.get(name) for name in SIGNED} for values in _configs(content)]
    callbacks = _dict(content.get("run")).get("callback")
    text = json.dumps([signed, callbacks], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def key_path() -> Path | None:
    """The path of the user's key; None without a home directory."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".config"
        except RuntimeError:
            return None
    return folder / "ppo_jax" / "key" if folder.is_absolute() else None


def _key(make: bool) -> bytes | None:
    """The user's key; None if it does not exist and is not, or cannot be, created."""
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
            f"the key {path} has mode {mode:o}, so that other users may read it; either delete it, "
            "and a new key is created (your own runs then need --trust once), or chmod 600 it"
        )
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"the key {path} is damaged: it must have {KEY_BYTES} bytes; delete it, and a new key "
            "is created (your own runs then need --trust once)"
        )
    return key


def _make(path: Path) -> None:
    """Create a key atomically; another process may create it at the same time."""
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
