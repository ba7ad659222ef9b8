"""SLURM's commands on one machine, as far as submitit uses them, for a folder on the PATH.

`install` writes sbatch, srun, sacct and scancel, each of which runs this file. Jobs are processes,
whose state is stored in $FAKE_SLURM.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel")


def install(folder: Path) -> dict[str, str]:
    """Environment variables for processes that find this SLURM in a folder."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "FAKE_SLURM": str(folder)}


def jobs() -> Path:
    return Path(os.environ["FAKE_SLURM"]) / "jobs"


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    if options.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = 100 + len([*jobs().glob("*.sh")])
    copy = jobs() / f"{number}.sh"
    copy.write_text(text)
    last, parallel = re.fullmatch(r"0-(\d+)%(\d+)", options.get("array", "0-0%1")).groups()
    indices = range(int(last) + 1) if "array" in options else [None]
    log = (jobs() / f"{number}.log").open("wb")
    for i in indices:
        (jobs() / f"{number}{'' if i is None else f'_{i}'}.json").write_text('{"pid": null}')
    subprocess.Popen(
        [sys.executable, __file__, "controller", str(number), parallel, json.dumps([*indices])],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    print(f"Submitted batch job {number}")


def controller(number: str, parallel: str, indices: str) -> None:
    """Run the jobs of an array, with a limit on how many run at the same time."""
    waiting, running = json.loads(indices), {}
    while waiting or running:
        while waiting and len(running) < int(parallel):
            i = waiting.pop(0)
            name = number if i is None else f"{number}_{i}"
            mark = jobs() / f"{name}.json"
            if json.loads(mark.read_text()).get("cancelled"):
                continue
            array = (
                {} if i is None else {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(i)}
            )
            known = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", **array}
            process = subprocess.Popen(
                ["/bin/bash", str(jobs() / f"{number}.sh")],
                env=os.environ | known, start_new_session=True,
            )  # fmt: skip
            mark.write_text(json.dumps({"pid": process.pid}))
            running[name] = process
        for name, process in [*running.items()]:
            try:
                code = process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            del running[name]
            (jobs() / f"{name}.json").write_text(json.dumps({"code": code}))


def srun(*words: str) -> None:
    """Run the command after the options, with its output redirected as the options specify."""
    left, options = [*words], {}
    while left[0].startswith("--"):
        word = left.pop(0)
        if word in ("--output", "--error"):
            options[word] = left.pop(0)
    array = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    for word, number in (("--output", 1), ("--error", 2)):
        file = options[word].replace("%A_%a", array).replace("%j", os.environ["SLURM_JOB_ID"])
        os.dup2(os.open(file.replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(left[0], left)


def sacct(*words: str) -> None:
    """Print the state of each job."""
    print("JobID|State|NodeList")
    for file in sorted(jobs().glob("*.json")):
        known = json.loads(file.read_text())
        state = "PENDING" if known.get("pid", 0) is None else "RUNNING"
        if "code" in known:
            state = "COMPLETED" if known["code"] == 0 else "FAILED"
        if known.get("cancelled"):
            state = "CANCELLED"
        print(f"{file.stem}|{state}|here")


def scancel(*numbers: str) -> None:
    for number in numbers:
        for file in (*jobs().glob(f"{number}.json"), *jobs().glob(f"{number}_*.json")):
            pid = json.loads(file.read_text()).get("pid", 0)
            if pid:
                os.killpg(pid, signal.SIGKILL)
            if pid or pid is None:
                file.write_text('{"cancelled": true}')


if __name__ == "__main__":
    functions = {f.__name__: f for f in (sbatch, srun, sacct, scancel, controller)}
    functions[sys.argv[1]](*sys.argv[2:])
