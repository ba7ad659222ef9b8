"""Packages that the command requires on a machine with the usual packages of JAX.

Assumed to be installed: jax, flax, optax, chex, orbax-checkpoint, numpy, scipy, matplotlib, rich,
safetensors, pillow, and their dependencies. The other packages are few and small, and can be copied
as wheels to a machine without a network.
"""

from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
# gymnax also requires seaborn (and so pandas) for plotting, which is not used here.
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

# Requirements of PureJaxRL and Rejax, which use an older gymnax. They are installed besides NEEDED
# and without their own dependencies, because another version of jax would hide the machine's.
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
    """NAME==VERSION of each package, as in requirements.lock."""
    versions = {}
    for line in LOCK.read_text().splitlines():
        name, equals, rest = line.partition("==")
        if equals and not line.startswith(" "):
            versions[name] = rest.split()[0]
    return [f"{name}=={versions[name]}" for name in NEEDED]
