"""The virtual environment of the peers, which is separate from the one of ppo_jax."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

# Rejax and PureJaxRL require gymnax < 1.
REQUIREMENTS = (
    "gymnax==0.0.9",
    "rejax==0.1.3",
    "brax==0.14.2",
    "distrax==0.1.9",
    "sbx-rl==0.28.0",
    "stable-baselines3==2.9.2",
    "gymnasium==1.4.0",
    "torch==2.13.0",
    # MKL is available for x86 only.
    "rltools[mkl]==2.2.1; platform_machine in 'x86_64 AMD64'",
    "rltools==2.2.1; platform_machine not in 'x86_64 AMD64'",
)


def requirements() -> list[str]:
    """The peers and the same versions of jax and jaxlib as ours, with CUDA if it is installed."""
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    found = [f"{name}=={version}" for name, version in ours.items()]
    plugins = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    cuda = next((p for p in plugins if p and p.startswith("jax-cuda") and "plugin" in p), None)
    if cuda is not None:
        extra = cuda.split("-")[1]
        found.append(f"jax[{extra}]=={ours['jax']}")
    return [*found, *REQUIREMENTS]


def python(folder: Path | None = None) -> str:
    """Path of the peers' Python interpreter; their virtual environment is made if missing.

    Args:
        folder: folder of the virtual environment; None for one in the user's cache, with a name for
            this version of Python and jax.

    Raises:
        SystemExit: pip failed and printed the reason, or the given folder contains other files.
    """
    jax = importlib.metadata.version("jax")
    return environment(f"peers-{platform.python_version()}-jax-{jax}", requirements(), folder)


def environment(name: str, packages: list[str], folder: Path | None = None) -> str:
    """Path of the Python interpreter of a virtual environment, which is made if missing.

    Args:
        name: name of the folder in the user's cache.
        packages: requirements that pip installs.
        folder: folder to use instead of the one in the user's cache.

    Raises:
        SystemExit: pip failed and printed the reason, or the given folder contains other files.
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
        raise SystemExit(f"{folder} does not contain the required packages; give an empty folder")
    print(f"installing the peers into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(executable), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.call([*pip, *packages]):
        raise SystemExit("the peers could not be installed; see the message of pip above")
    finished.write_text(wanted)
    return str(executable)
