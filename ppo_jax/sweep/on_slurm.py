"""SLURM workers: job arrays that submitit starts and whose results it collects.

submitit stores orders, results and logs as files in a new folder inside the folder of the sweep,
which all machines of the cluster must share. Results are pickle files, which are not safe to read
from an untrusted source: each session creates its folder itself, with access for its user only.
"""

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError, installation
from ppo_jax.runs import files
from ppo_jax.sweep.cluster import WorkerOptions
from ppo_jax.sweep.store import JOBS, clear_jobs
from ppo_jax.sweep.worker import Failed, Order, Outcome, Place, work

# LOOK: seconds between two checks for signals; QUERY_SECONDS: seconds between two queries to SLURM
# about jobs without a result; LATE: seconds until a result is visible on a network file system.
LOOK, QUERY_SECONDS, LATE = 0.5, 30.0, 30.0
# Largest number of jobs in an array: SLURM's default limit is 1001.
ARRAY = 1000
MINUTES = 60
# Options of sbatch that the sweep sets itself -> its own flag for them.
OWN = {
    "array": "--workers", "cpus-per-task": "--cpus-per-worker", "gpus": "--gpus-per-worker",
    "gpus-per-node": "--gpus-per-worker", "gpus-per-task": "--gpus-per-worker",
    "chdir": "", "error": "", "export": "", "nodes": "", "ntasks": "", "ntasks-per-node": "",
    "open-mode": "", "output": "", "signal": "", "wait": "",
}  # fmt: skip
TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")


def check(options: WorkerOptions) -> None:
    """Refuse --cluster slurm if submitit or SLURM is missing, or if an option is invalid.

    Args:
        options: options of the command line.

    Raises:
        ConfigError: a program is missing, or an option is invalid.
    """
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError(f"--cluster slurm needs submitit: {installation.command('[slurm]')}")
    missing = [p for p in ("sbatch", "srun", "scancel", "sacct") if shutil.which(p) is None]
    if missing and not options.slurm_local:
        raise ConfigError(
            f"--cluster slurm: there is no {missing[0]} on the PATH; start the sweep on a login "
            "node of the SLURM cluster, or test its jobs on this machine with --slurm-local"
        )
    parse(options.slurm)


def parse(words: Sequence[str]) -> tuple[dict[str, str], int]:
    """Parse options of sbatch, each as name=value: (options, time limit of a job in minutes).

    Raises:
        ConfigError: a text has another form, a name is repeated, or the sweep sets it itself.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "\n" in value or not value:
            raise ConfigError(f"--slurm is {word!r}; give name=value, as partition=gpu or mem=8G")
        if name in OWN:
            instead = f"; give {OWN[name]}" if OWN[name] else ""
            raise ConfigError(f"--slurm {word}: the sweep sets {name} itself{instead}")
        if name in found:
            raise ConfigError(f"--slurm gives {name} twice")
        found[name] = value.strip()
    text = found.pop("time", str(MINUTES))
    minutes = _minutes(text)
    if minutes is None:
        raise ConfigError(f"--slurm time={text}: give minutes, H:MM:SS or D-HH:MM:SS")
    return found, minutes


def _minutes(text: str) -> int | None:
    """A time limit in one of sbatch's formats, in minutes; None for any other text."""
    match = TIME.fullmatch(text)
    if match is None:
        return None
    a, b, c = (int(match[name] or 0) for name in "abc")
    if match["d"] is not None:  # days-hours:minutes:seconds
        seconds = 86400 * int(match["d"]) + 3600 * a + 60 * b + c
    elif match["c"] is not None:
        seconds = 3600 * a + 60 * b + c
    else:
        seconds = 60 * a + b
    return -(-seconds // 60) or None


@contextlib.contextmanager
def opened(options: WorkerOptions, place: Place) -> Iterator["OnSlurm"]:
    """SLURM workers, until the block ends.

    Args:
        options: options of the command line.
        place: resources of each worker.
    """
    launcher = OnSlurm(options, place)
    try:
        yield launcher
    finally:
        launcher.cancel()


class OnSlurm:
    """Sends orders as jobs of a SLURM array, or as processes of this machine.

    Args:
        options: options of the command line.
        place: resources of each worker.
    """

    def __init__(self, options: WorkerOptions, place: Place) -> None:
        self.options, self.place = options, place
        self.local = options.slurm_local
        self.name = "this machine, as SLURM's jobs" if self.local else "SLURM"
        self.queue: deque[Order] = deque()
        self.running: dict[int, Any] = {}
        self.gone: dict[int, float] = {}
        self.executor: Any = None
        self.folder, self.last_query = Path(), 0.0
        self.failed: bool | None = None  # whether a job of this session failed; None: no job yet

    def submit(self, orders: Sequence[Order], folder: Path) -> None:
        """Queue orders; see `Launcher.submit`."""
        if self.failed is None:
            clear_jobs(folder)
            self.folder, self.failed = folder.absolute() / JOBS / secrets.token_hex(8), False
            self.folder.mkdir(parents=True, mode=0o700)
            self.executor = self._executor(folder.resolve().name)
        self.queue += orders
        self._start()

    def _executor(self, sweep: str) -> Any:
        import submitit

        more, minutes = parse(self.options.slurm)
        if self.local:
            executor: Any = submitit.LocalExecutor(self.folder)
            executor.update_parameters(timeout_min=minutes, gpus_per_node=self.place.gpus)
            return executor
        cores = self.place.cores
        gpus = {"gpus_per_node": self.place.gpus} if self.place.gpus else {}
        executor = submitit.SlurmExecutor(self.folder)
        executor.update_parameters(
            job_name=re.sub(r"[^\w.-]", "_", f"ppo_jax-{sweep}"),
            time=minutes,
            cpus_per_task=cores,
            array_parallelism=self.options.workers or ARRAY,
            # srun does not use all cores of the job by default.
            srun_args=[f"--cpus-per-task={cores}"],
            additional_parameters=more,
            **gpus,
        )
        return executor

    def _start(self) -> None:
        """Submit orders: all of them to SLURM, or one per worker on this machine."""
        room = (self.options.workers or 1) - len(self.running) if self.local else len(self.queue)
        while self.queue and room > 0:
            orders = [self.queue.popleft() for _ in range(min(room, ARRAY, len(self.queue)))]
            room -= len(orders)
            try:
                with self._apart():
                    jobs = self.executor.map_array(work, orders)
            except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                raise ConfigError(
                    f"sbatch rejected the jobs: {_refusal(error)}; correct the option of --slurm, "
                    "and --resume the sweep"
                ) from error
            self.running |= {o.number: job for o, job in zip(orders, jobs, strict=True)}

    def _apart(self) -> contextlib.AbstractContextManager[Any]:
        """Hide the SLURM job in which this process may run from jobs started in the block."""
        if self.local:
            return _stderr_into(self.folder / "jobs.log")
        from submitit.helpers import clean_env

        return clean_env()

    def ended(self) -> list[tuple[int, Outcome]]:
        """Return finished orders; see `Launcher.ended`."""
        self._ask()
        found = []
        for number, job in [*self.running.items()]:
            if job.paths.result_pickle.exists() or job.done():
                outcome = self._outcome(number, job)
                if outcome is not None:
                    del self.running[number]
                    found.append((number, outcome))
        if not found:
            time.sleep(LOOK)
        self._start()
        return found

    def _ask(self) -> None:
        """Query SLURM for the state of all jobs more often than submitit does by default."""
        if not self.local and self.running and time.monotonic() - self.last_query > QUERY_SECONDS:
            self.last_query = time.monotonic()
            next(iter(self.running.values())).done(force_check=True)

    def _outcome(self, number: int, job: Any) -> Outcome | None:
        """The outcome of a job; None while its result may still appear."""
        result = job.paths.result_pickle
        if not result.exists():
            since = self.gone.setdefault(number, time.monotonic())
            if time.monotonic() - since < (LOOK if self.local else LATE):
                return None
        self.gone.pop(number, None)
        try:
            if not result.exists():
                state = "killed" if self.local else f"{job.state}".lower()
                return self._lost(job, f"its job {job.job_id} ended without a result ({state})")
            outcome = job.result()
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            message = next((x for x in reversed(lines) if re.match(r"[\w.]+: ", x)), lines[0])
            return self._lost(job, f"its job {job.job_id} failed: {message}")
        for file in (result, job.paths.submitted_pickle):
            files.delete(file)
        self.failed = self.failed or isinstance(outcome, Failed)
        return outcome

    def _lost(self, job: Any, reason: str) -> Failed:
        self.failed = True
        files.delete(job.paths.result_pickle)
        return Failed(f"{reason}; its log is {job.paths.stderr}")

    def cancel(self) -> None:
        """End all jobs; see `Launcher.cancel`. Logs are kept if a job failed."""
        self.queue.clear()
        jobs, self.running = [*self.running.values()], {}
        if self.local:
            self._end(jobs)
        elif jobs:
            ids = dict.fromkeys(job.job_id.partition("_")[0] for job in jobs)
            subprocess.run(["scancel", *ids], check=False, capture_output=True)
        if self.failed is False:
            files.delete(self.folder)
            files.remove_empty(self.folder.parent)
        self.failed = None

    def _end(self, jobs: Sequence[Any]) -> None:
        """End processes of this machine, and wait until they have ended."""
        for job in jobs:
            job.cancel(check=False)
        limit = time.monotonic() + 10
        while not all(job.done() for job in jobs) and time.monotonic() < limit:
            time.sleep(0.05)


@contextlib.contextmanager
def _stderr_into(file: Path) -> Iterator[None]:
    """Redirect stderr of processes started in the block to a file: submitit's controllers print a
    traceback when a signal ends them."""
    sys.stderr.flush()
    kept = os.dup(2)
    with file.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _refusal(error: BaseException) -> str:
    """The error message of sbatch, in one line."""
    output = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
    return " ".join(text.split())
