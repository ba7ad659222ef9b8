"""What the command needs where only the usual packages of JAX are installed.

Assumed to be there: jax, flax, optax, chex, orbax-checkpoint, numpy, scipy, matplotlib, rich,
safetensors, pillow, and what these need. The rest is few and small, and can be carried as wheels
to a machine without a network.
"""

from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
# gymnax also asks for seaborn (and so for pandas), which draws; nothing here does.
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

# PureJaxRL and Rejax, which need an older gymnax; beside NEEDED, and installed without what these
# name themselves (jax of another version would hide the machine's own).
PEERS = (
    "gymnax==0.0.9",
    "rejax==0.1.3",
    "distrax==0.1.9",
    "attrs==26.1.0",
    "decorator==5.3.1",
    "dm-tree==0.1.10",
    "gast==0.7.0",
    "pandas==3.1.1",
    "seaborn==0.13.2",
    "tfp-nightly==0.26.0.dev20261027",
    "wrapt==2.5.2",
)


def pinned() -> list[str]:
    """NAME==VERSION of each, as in the lock."""
    versions = {}
    for line in LOCK.read_text().splitlines():
        name, equals, rest = line.partition("==")
        if equals and not line.startswith(" "):
            versions[name] = rest.split()[0]
    return [f"{name}=={versions[name]}" for name in NEEDED]
