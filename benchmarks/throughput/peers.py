"""The peers' own environment: made by pip, beside ours and never inside it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

# gymnax < 1 is what Rejax and PureJaxRL were written for.
REQUIREMENTS = (
    "gymnax==0.0.9",
    "rejax==0.1.3",
    "brax==0.14.2",
    "distrax==0.1.9",
    "sbx-rl==0.28.0",
    "stable-baselines3==2.9.2",
    "gymnasium==1.4.0",
    "torch==2.13.0",
    # MKL is built for x86 alone.
    "rltools[mkl]==2.2.1; platform_machine in 'x86_64 AMD64'",
    "rltools==2.2.1; platform_machine not in 'x86_64 AMD64'",
)


def requirements() -> list[str]:
    """The peers, with our jax and jaxlib to the digit, and CUDA's parts if we have them."""
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    found = [f"{name}=={version}" for name, version in ours.items()]
    plugins = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    cuda = next((p for p in plugins if p and p.startswith("jax-cuda") and "plugin" in p), None)
    if cuda is not None:
        extra = cuda.split("-")[1]
        found.append(f"jax[{extra}]=={ours['jax']}")
    return [*found, *REQUIREMENTS]


def python(folder: Path | None = None) -> str:
    """The peers' Python; their environment is made if it is not there (several minutes).

    Args:
        folder: of the virtual environment; None: one in the user's cache for this Python and jax.

    Raises:
        SystemExit: it cannot be made, and pip has said why; or a given folder holds other things.
    """
    jax = importlib.metadata.version("jax")
    return environment(f"peers-{platform.python_version()}-jax-{jax}", requirements(), folder)


def environment(name: str, packages: list[str], folder: Path | None = None) -> str:
    """The Python of a virtual environment, made if it is not there.

    Args:
        name: of its folder in the user's cache.
        packages: what pip installs into it.
        folder: another folder.

    Raises:
        SystemExit: as for `python`.
    """
    given = folder is not None
    if folder is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "ppo_jax" / name
    executable, finished = folder / "bin" / "python", folder / "finished"
    wanted = "\n".join(packages) + "\n"
    if finished.exists() and finished.read_text() == wanted:
        return str(executable)
    if given and folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} does not hold the peers that are wanted; give an empty folder")
    print(f"installing the peers into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(executable), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.call([*pip, *packages]):
        raise SystemExit("the peers could not be installed; see pip's message above")
    finished.write_text(wanted)
    return str(executable)
