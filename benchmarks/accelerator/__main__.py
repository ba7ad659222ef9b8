"""Ten minutes of an accelerator: everything that this project claims of one, measured.

python -m benchmarks.accelerator --minutes 8              on a machine with a GPU
python -m benchmarks.accelerator --smoke                  two minutes on two CPU cores, tiny sizes
python -m benchmarks.accelerator --requirements           packages to carry to such a machine
python -m benchmarks.accelerator --table                  print the committed results

It runs from a checkout without installation. Each row is written to accelerator.csv as soon as it
is measured, so that a run that is cut keeps what it has. Rows of other devices, and values that
were not measured again, stay. In order: training, resuming and agreement with the CPU; the device's
peak rates; environment steps per second; language models; PureJaxRL and Rejax, where they are
installed; what 64 seeds learn; the parts of an update, if time is left.
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
    """Measure what this project does on an accelerator.

    Attributes:
        minutes: wall-clock time of the whole run; what does not fit is left out and named.
        out: folder of accelerator.csv; by default benchmarks/results, or runs/accelerator-smoke
            with --smoke.
        smoke: do all of it with tiny sizes, also on a CPU.
        sections: the sections to measure: checks, control, language, peers, learning, profile.
        tasks: the only tasks to measure, by the names in the CSV; they share the whole time.
        purejaxrl: folder of PureJaxRL's ppo.py.
        peers: folder into which the peers were installed by pip install --target.
        requirements: only print the packages that are needed beyond the usual ones of JAX.
        peer_requirements: only print the packages that the peers need.
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
    """Refuse what cannot work before anything is measured.

    Raises:
        SystemExit: what was given, and what is allowed.
    """
    known = Options().sections
    for section in options.sections:
        if section not in known:
            refuse(f"--sections: unknown {section!r}; there are: {', '.join(known)}")
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
        SystemExit: what was given, and what is allowed.
    """
    from benchmarks.accelerator.session import order

    known = dict.fromkeys(name for _, name in order())
    for task in tasks:
        if task not in known:
            refuse(f"--tasks: unknown {task!r}; there are: {', '.join(known)}")


def refuse(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def measure(options: Options) -> int:
    """Run everything: 0, 1 where something failed, or 128 + the signal that ended it."""
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
    """SIGTERM arrived."""


def stop(number: int, frame: object) -> None:
    """End the run as Ctrl-C does, so that its rows are shown and no process is left."""
    raise Terminated


def main() -> None:
    """The command line. What is only printed needs the standard library alone."""
    if "--requirements" in sys.argv[1:]:
        from benchmarks.accelerator.requirements import pinned

        print("\n".join(pinned()))
        return
    try:
        import tyro
    except ImportError:
        refuse(
            "tyro is not installed; `python -m benchmarks.accelerator --requirements` prints what "
            "is needed beside the usual packages of JAX"
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
