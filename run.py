#!/usr/bin/env python3
"""Set up a virtual environment and run a command of ppo_jax in it.

    python3 run.py train          train an agent
    python3 run.py test           run the tests
    python3 run.py install EXTRA...
                                  install extras into .venv, such as brax or tensorboard
    python3 run.py COMMAND ...    any other command of ppo-jax: evaluate, sweep, plot, export,
                                  rlhf, envs, presets, algorithms, check-env, benchmark

Python and pip are all that is needed. The first call creates .venv beside this file and installs
the packages of the lock file, whose hashes pip verifies; later calls install nothing and work
offline. All arguments are passed on to the command.

After an update of the repository, the next call installs the packages that changed. Extras and
other packages in .venv stay, unless the repository was moved or Python has another version.

PPO_JAX_DEVICE=cpu|cuda chooses the lock file; by default cuda where there is an NVIDIA driver.
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
PIP = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
# Commands that are not those of `python -m ppo_jax`.
OTHERS = {"test": ["-m", "pytest"]}


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
    if not works(stamp) and subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]):
        fail("cannot create .venv; on Debian or Ubuntu: apt-get install python3-venv")
    pinned = PIP + ["--require-hashes", "-r", os.path.join(HERE, lock)]
    ours = PIP + ["--no-deps", "--no-build-isolation", "--no-index", "--editable", HERE]
    for command in (pinned, ours):
        if subprocess.call(command):
            fail("the installation failed; see the message above, then run this again")
    with open(stamp, "w") as file:
        file.write(wanted + "\n" + HERE)


def works(stamp):
    """Whether .venv was completed in this place before, for this version of Python, and has pip."""
    if not (os.path.exists(PYTHON) and read(stamp)[1:] == [HERE]):
        return False
    script = "import sys, pip; sys.exit(sys.version_info[:2] != %r)" % (sys.version_info[:2],)
    with open(os.devnull, "w") as nowhere:
        return subprocess.call([PYTHON, "-c", script], stderr=nowhere) == 0


def check_extras(extras):
    """Refuse names that are no extras: pip would only warn of them, and --quiet hides that."""
    import tomllib  # part of Python since 3.11

    with open(os.path.join(HERE, "pyproject.toml"), "rb") as file:
        known = sorted(tomllib.load(file)["project"]["optional-dependencies"])
    unknown = [name for name in extras if name not in known]
    if unknown or not extras:
        given = "unknown extra %s" % unknown[0] if unknown else "name the extras to install"
        fail("%s; docs/installation.md describes them: %s" % (given, ", ".join(known)))


def add(extras):
    """Install extras of the package; pip changes a pinned package only where an extra needs it."""
    wanted = "%s[%s]" % (HERE, ",".join(extras))
    sys.exit(subprocess.call(PIP + ["--no-build-isolation", "--editable", wanted]))


def installed(stamp, wanted):
    return read(stamp)[:1] == [wanted]


def read(stamp):
    """The lines of the file that the last complete installation wrote: fingerprint, place."""
    if not os.path.exists(stamp):
        return []
    with open(stamp) as file:
        return file.read().splitlines()


def quoted(path):
    return path if path.replace("/", "").replace(".", "").isalnum() else "'%s'" % path


def main():
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        fail("Python 3.11 to 3.14 is needed; this is %s" % sys.version.split()[0])
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) < 2:
        fail("name a command; python3 run.py --help lists the commands")
    if sys.argv[1] == "install":
        check_extras(sys.argv[2:])
    lock = lock_file()
    stamp, wanted = os.path.join(VENV, "installed"), fingerprint(lock)
    if not installed(stamp, wanted):
        install(lock, stamp, wanted)
    if sys.argv[1] == "install":
        add(sys.argv[2:])
    if sys.argv[1] == "test":
        os.chdir(HERE)
    os.environ["PPO_JAX_COMMAND"] = "python3 " + quoted(os.path.relpath(os.path.abspath(__file__)))
    words = OTHERS.get(sys.argv[1], ["-m", "ppo_jax", sys.argv[1]]) + sys.argv[2:]
    os.execv(PYTHON, [PYTHON] + words)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of --help has ended, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to continue")
