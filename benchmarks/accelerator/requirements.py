"""What the command needs where only the usual packages of JAX are installed.

Assumed to be there: jax, flax, optax, chex, orbax-checkpoint, numpy, scipy, matplotlib, rich,
safetensors, pillow, and what these need. The rest is few and small, and can be carried as wheels
to a machine without a network.
"""

from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
# Of gymnax, seaborn (and with it pandas) is left out: it draws, and nothing here does.
NEEDED = (
    "absl-py",
    "cloudpickle",
    "docstring-parser",
    "farama-notifications",
    "gymnasium",
    "gymnax",
    "six",
    "typeguard",
    "typing-extensions",
    "tyro",
)


def pinned() -> list[str]:
    """NAME==VERSION of each, as in the lock."""
    versions = {}
    for line in LOCK.read_text().splitlines():
        name, equals, rest = line.partition("==")
        if equals and not line.startswith(" "):
            versions[name] = rest.split()[0]
    return [f"{name}=={versions[name]}" for name in NEEDED]
