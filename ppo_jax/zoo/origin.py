"""The versions, the source code and the machine that the numbers of an agent depend on."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from ppo_jax.runs import files, provenance

PACKAGE = Path(__file__).parents[1]
LOCK = PACKAGE.parent / "requirements.lock"


def record() -> dict[str, Any]:
    """The versions, the digest of the source code, and the machine of this process.

    Two processes with equal records compute the same bits. The lock file is recorded as well, which
    installs the same versions; an installed package does not have it.
    """
    lock = {"requirements.lock": files.digest(LOCK)} if LOCK.is_file() else {}
    return {
        "versions": provenance.versions(),
        "source": source_digest(),
        "machine": {
            "device": provenance.device(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        **lock,
    }


def differences(recorded: dict[str, Any]) -> list[str]:
    """The entries of a record, without the lock file, that differ in this process, in words."""
    found, here = [], record()
    before, now = ({**r.get("versions", {}), **r.get("machine", {})} for r in (recorded, here))
    for name, value in now.items():
        if before.get(name) != value:
            found.append(f"{name} {before.get(name, 'unknown')} -> {value}")
    return found + ["the source code"] * (recorded.get("source") != here["source"])


def source_digest() -> str:
    """SHA-256 digest of all Python files of the package."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE).as_posix()} {files.digest(path)}\n".encode())
    return found.hexdigest()


def processor() -> str:
    """The model of the processor, for example "x86_64 AMD EPYC 7B13"."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor()
    return f"{platform.machine()} {model}".strip()
