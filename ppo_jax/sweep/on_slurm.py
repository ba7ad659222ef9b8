"""Workers of SLURM: job arrays that submitit starts, and whose results it brings back.

submitit keeps orders, results and logs as files in a new folder inside that of the sweep, which
SLURM's machines must share. Results are pickles: the folder is made by each session for itself, for
its user alone, so that nobody else's are ever read.
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

from ppo_jax.config import ConfigError
from ppo_jax.runs import files
from ppo_jax.sweep.cluster import WorkerOptions
from ppo_jax.sweep.store import JOBS, clear_jobs
from ppo_jax.sweep.worker import Failed, Order, Outcome, Place, work

# Seconds between two looks at signals, and between two questions to SLURM about jobs that left no
# result; how long a result may take to be seen on a network file system.
LOOK, ASK, LATE = 0.5, 30.0, 30.0
# Jobs of an array at most: SLURM's own limit is 1001 where nothing else is configured.
ARRAY = 1000
MINUTES = 60
# What the sweep sets itself -> the flag for it.
OWN = {
    "array": "--workers", "cpus-per-task": "--cpus-per-worker", "gpus": "--gpus-per-worker",
    "gpus-per-node": "--gpus-per-worker", "gpus-per-task": "--gpus-per-worker",
    "chdir": "", "error": "", "export": "", "nodes": "", "ntasks": "", "ntasks-per-node": "",
    "open-mode": "", "output": "", "signal": "", "wait": "",
}  # fmt: skip
TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")


def check(options: WorkerOptions) -> None:
    """Refuse where submitit or SLURM is not there, and what sbatch does not take.

    Args:
        options: as on the command line.

    Raises:
        ConfigError: what is missing or wrong.
    """
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("--cluster slurm needs submitit; pip install 'ppo_jax[slurm]'")
    missing = [p for p in ("sbatch", "srun", "scancel", "sacct") if shutil.which(p) is None]
    if missing and not options.slurm_local:
        raise ConfigError(
            f"--cluster slurm: there is no {missing[0]} on the PATH; start the sweep on a login "
            "machine of the SLURM cluster, or rehearse its jobs on this machine with --slurm-local"
        )
    parse(options.slurm)


def parse(words: Sequence[str]) -> tuple[dict[str, str], int]:
    """(options of sbatch, minutes that a job may take), from name=value each.

    Raises:
        ConfigError: a word that is none, a name given twice, or one that the sweep sets itself.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "\n" in value or not value:
            raise ConfigError(f"--slurm is {word!r}; write name=value, as partition=gpu or mem=8G")
        if name in OWN:
            instead = f"; give {OWN[name]}" if OWN[name] else ""
            raise ConfigError(f"--slurm {word}: the sweep sets {name} itself{instead}")
        if name in found:
            raise ConfigError(f"--slurm gives {name} twice")
        found[name] = value.strip()
    text = found.pop("time", str(MINUTES))
    minutes = _minutes(text)
    if minutes is None:
        raise ConfigError(f"--slurm time={text}: write minutes, H:MM:SS or D-HH:MM:SS")
    return found, minutes


def _minutes(text: str) -> int | None:
    """A time limit in one of sbatch's forms; None for what is none."""
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
    """Workers of SLURM, until the block ends.

    Args:
        options: as on the command line.
        place: what each worker is given.
    """
    launcher = OnSlurm(options, place)
    try:
        yield launcher
    finally:
        launcher.cancel()


class OnSlurm:
    """Orders as jobs of an array of SLURM, or as processes of this machine.

    Args:
        options: as on the command line.
        place: what each worker is given.
    """

    def __init__(self, options: WorkerOptions, place: Place) -> None:
        self.options, self.place = options, place
        self.local = options.slurm_local
        self.name = "this machine, as SLURM's jobs" if self.local else "SLURM"
        self.queue: deque[Order] = deque()
        self.running: dict[int, Any] = {}
        self.gone: dict[int, float] = {}
        self.executor: Any = None
        self.folder, self.asked = Path(), 0.0
        self.failed: bool | None = None  # whether a job of this session did; None: it has none yet

    def submit(self, orders: Sequence[Order], folder: Path) -> None:
        """As `Launcher.submit`."""
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
            # srun does not take over the cores of the job by itself.
            srun_args=[f"--cpus-per-task={cores}"],
            additional_parameters=more,
            **gpus,
        )
        return executor

    def _start(self) -> None:
        """Hand over what there is room for: to SLURM all, here as many as there are workers."""
        room = (self.options.workers or 1) - len(self.running) if self.local else len(self.queue)
        while self.queue and room > 0:
            orders = [self.queue.popleft() for _ in range(min(room, ARRAY, len(self.queue)))]
            room -= len(orders)
            try:
                with self._apart():
                    jobs = self.executor.map_array(work, orders)
            except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
                raise ConfigError(
                    f"sbatch took no jobs: {_refusal(error)}; change what is wrong in --slurm, and "
                    "--resume the sweep"
                ) from error
            self.running |= {o.number: job for o, job in zip(orders, jobs, strict=True)}

    def _apart(self) -> contextlib.AbstractContextManager[Any]:
        """Jobs that are started in the block know nothing of the job that this process may be."""
        if self.local:
            return _stderr_into(self.folder / "jobs.log")
        from submitit.helpers import clean_env

        return clean_env()

    def ended(self) -> list[tuple[int, Outcome]]:
        """As `Launcher.ended`."""
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
        """Have submitit ask SLURM now and then, and not once in ten minutes, for all jobs."""
        if not self.local and self.running and time.monotonic() - self.asked > ASK:
            self.asked = time.monotonic()
            next(iter(self.running.values())).done(force_check=True)

    def _outcome(self, number: int, job: Any) -> Outcome | None:
        """What a job left; None while its result may still appear."""
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
            told = next((x for x in reversed(lines) if re.match(r"[\w.]+: ", x)), lines[0])
            return self._lost(job, f"its job {job.job_id} failed: {told}")
        for file in (result, job.paths.submitted_pickle):
            files.delete(file)
        self.failed = self.failed or isinstance(outcome, Failed)
        return outcome

    def _lost(self, job: Any, reason: str) -> Failed:
        self.failed = True
        files.delete(job.paths.result_pickle)
        return Failed(f"{reason}; its log is {job.paths.stderr}")

    def cancel(self) -> None:
        """As `Launcher.cancel`; logs stay where something failed."""
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
        """End processes of this machine, and wait until they are gone."""
        for job in jobs:
            job.cancel(check=False)
        limit = time.monotonic() + 10
        while not all(job.done() for job in jobs) and time.monotonic() < limit:
            time.sleep(0.05)


@contextlib.contextmanager
def _stderr_into(file: Path) -> Iterator[None]:
    """Processes that are started in the block complain into a file: submitit's controllers end on
    a signal with a traceback."""
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
    """What sbatch said, in one line."""
    said = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split())
