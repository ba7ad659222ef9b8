"""Measure ppo_jax on an accelerator, in at most ten minutes.

python -m benchmarks.accelerator --minutes 8              on a machine with a GPU
python -m benchmarks.accelerator --smoke                  a test with tiny sizes, also on a CPU
python -m benchmarks.accelerator --requirements           packages to install on such a machine
python -m benchmarks.accelerator --table                  print the committed results

The command runs from a checkout without installation. Each row is written to accelerator.csv as
soon as it is measured, so that an interrupted run keeps its results. Rows of other devices, and
values that are not measured again, are kept. The order is: training, resuming and agreement with
the CPU; peak rates of the device; environment steps per second; language models; PureJaxRL and
Rejax, where they are installed; returns of 64 seeds; the parts of an update, if time is left.
"""

import dataclasses
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

SMOKE = Path("runs/accelerator-smoke")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure ppo_jax on an accelerator.

    Attributes:
        minutes: wall-clock time of the whole run in minutes; tasks that do not fit are skipped and
            reported.
        out: folder of accelerator.csv; by default benchmarks/results, or runs/accelerator-smoke
            with --smoke.
        smoke: run all tasks with tiny sizes, also on a CPU.
        sections: the sections to measure: checks, control, language, peers, learning, profile.
        tasks: the only tasks to measure, by their names in the CSV; they share the whole time.
        purejaxrl: folder of PureJaxRL's ppo.py.
        peers: folder into which the peers were installed by pip install --target.
        requirements: only print the packages that are required besides the usual ones of JAX.
        peer_requirements: only print the packages that the peers require.
        table: only print the committed results.
    """

    minutes: float = 8.0
    out: Path | None = None
    smoke: bool = False
    sections: tuple[str, ...] = ("checks", "control", "language", "peers", "learning", "profile")
    tasks: tuple[str, ...] = ()
    purejaxrl: Path | None = None
    peers: Path | None = None
    requirements: bool = False
    peer_requirements: bool = False
    table: bool = False


def check(options: Options) -> None:
    """Refuse invalid options before anything is measured.

    Raises:
        SystemExit: an option is invalid; the message names its value and the allowed ones.
    """
    known = Options().sections
    for section in options.sections:
        if section not in known:
            refuse(f"--sections: unknown section {section!r}; choose from: {', '.join(known)}")
    if options.tasks:
        check_tasks(options.tasks)
    if not 0 < options.minutes < float("inf"):
        refuse(f"--minutes is {options.minutes}; it must be > 0 and finite")
    if options.purejaxrl is not None and not (options.purejaxrl / "ppo.py").is_file():
        refuse(f"--purejaxrl: there is no ppo.py in {options.purejaxrl}")
    if options.peers is not None and not options.peers.is_dir():
        refuse(f"--peers: {options.peers} is not a folder")


def check_tasks(tasks: tuple[str, ...]) -> None:
    """Refuse names of tasks that do not exist.

    Raises:
        SystemExit: a task is unknown; the message names it and the existing tasks.
    """
    from benchmarks.accelerator.session import order

    known = dict.fromkeys(name for _, name in order())
    for task in tasks:
        if task not in known:
            refuse(f"--tasks: unknown task {task!r}; choose from: {', '.join(known)}")


def refuse(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def measure(options: Options) -> int:
    """Run the tasks; returns 0, 1 if a task failed, or 128 + the number of the ending signal."""
    from benchmarks.accelerator import report
    from benchmarks.accelerator.session import Refused, Session
    from benchmarks.table import RESULTS

    signal.signal(signal.SIGTERM, stop)
    out = options.out or (SMOKE if options.smoke else RESULTS)
    with tempfile.TemporaryDirectory(prefix="ppo_jax-compiled-") as cache:
        session = Session(
            out=out,
            smoke=options.smoke,
            seconds=60 * options.minutes,
            purejaxrl=options.purejaxrl,
            peers=options.peers,
            cache=cache,
            sections=options.sections,
            tasks=options.tasks,
        )
        code = 0
        try:
            session.run()
        except Refused as error:
            refuse(str(error))
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except Terminated:
            code = 128 + signal.SIGTERM
    report.plot(out, out / "accelerator.png")
    print(f"\n{report.markdown(out)}\nrows: {out / 'accelerator.csv'}")
    for name in session.failed:
        print(f"failed: {name}", file=sys.stderr)
    return code or (1 if session.failed else 0)


class Terminated(Exception):
    """Raised when the process receives SIGTERM."""


def stop(number: int, frame: object) -> None:
    """End the run as Ctrl-C does, so that its rows are printed and all workers end."""
    raise Terminated


def main() -> None:
    """Parse the command line and run the command; --requirements needs no installed package."""
    if "--requirements" in sys.argv[1:]:
        from benchmarks.accelerator.requirements import pinned

        print("\n".join(pinned()))
        return
    try:
        import tyro
    except ImportError:
        refuse(
            "tyro is not installed; `python -m benchmarks.accelerator --requirements` prints the "
            "packages to install besides the usual ones of JAX"
        )

    options = tyro.cli(Options, prog="python -m benchmarks.accelerator", description=__doc__)
    check(options)
    if options.peer_requirements:
        from benchmarks.accelerator.requirements import PEERS

        print("\n".join(PEERS))
    elif options.table:
        from benchmarks.accelerator import report
        from benchmarks.table import RESULTS

        print(report.markdown(RESULTS), end="")
    else:
        sys.exit(measure(options))


if __name__ == "__main__":
    main()
