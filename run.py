#!/usr/bin/env python3
"""From a bare machine to a trained agent: `python3 run.py train`, `python3 run.py test`.

`python3 run.py check-env my_module:MyEnv` says what is wrong with an environment.

Needs Python and pip, nothing else. The first call makes .venv beside this file and installs the
hash-pinned lock into it; later calls install nothing and work offline. Further arguments are
passed on.

PPO_JAX_DEVICE=cpu|cuda chooses the lock; by default CUDA where there is an NVIDIA driver.
"""

# Syntax that old Pythons can read, so that they get as far as the message about their age.
from __future__ import print_function

import hashlib
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
COMMANDS = {
    "train": ["-m", "ppo_jax.train"],
    "test": ["-m", "pytest"],
    "check-env": ["-m", "ppo_jax", "check-env"],
}


def fail(message):
    print("run.py: " + message, file=sys.stderr)
    sys.exit(1)


def lock_file():
    device = os.environ.get("PPO_JAX_DEVICE")
    if device is None:
        device = "cuda" if os.path.exists("/proc/driver/nvidia/version") else "cpu"
    if device not in ("cpu", "cuda"):
        fail("PPO_JAX_DEVICE is %r; it must be cpu or cuda" % device)
    return "requirements-cuda.lock" if device == "cuda" else "requirements.lock"


def fingerprint(lock):
    # The place counts: the package is installed by reference to it.
    digest = hashlib.sha256((sys.version + HERE).encode())
    for name in (lock, "pyproject.toml"):
        with open(os.path.join(HERE, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def install(lock, stamp, wanted):
    print("run.py: installing %s into .venv (once; a minute or two)" % lock, file=sys.stderr)
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]):
        fail("cannot create .venv; on Debian or Ubuntu: apt-get install python3-venv")
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pinned = pip + ["--require-hashes", "-r", os.path.join(HERE, lock)]
    ours = pip + ["--no-deps", "--no-build-isolation", "--no-index", "--editable", HERE]
    for command in (pinned, ours):
        if subprocess.call(command):
            fail("the installation failed; see the message above, then run this again")
    with open(stamp, "w") as file:
        file.write(wanted)


def installed(stamp, wanted):
    if not os.path.exists(stamp):
        return False
    with open(stamp) as file:
        return file.read() == wanted


def main():
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        fail("Python 3.11 to 3.14 is needed; this is %s" % sys.version.split()[0])
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        fail("say one of: %s" % ", ".join(sorted(COMMANDS)))
    lock = lock_file()
    stamp, wanted = os.path.join(VENV, "installed"), fingerprint(lock)
    if not installed(stamp, wanted):
        install(lock, stamp, wanted)
    if sys.argv[1] == "test":
        os.chdir(HERE)
    os.execv(PYTHON, [PYTHON] + COMMANDS[sys.argv[1]] + sys.argv[2:])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; run it again to go on")
