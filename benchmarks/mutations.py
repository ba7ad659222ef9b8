"""One-line mutations of the package, each with a test that detects it.

python -m benchmarks.mutations                     try all mutations
python -m benchmarks.mutations --names R1 U4       try some mutations
python -m benchmarks.mutations --list              list the mutations

Each mutation is applied to a copy of the tracked files, in which its test is run; the mutation
survives if the test passes. The mutations are in `mutations.csv`, whose column `survives` gives the
reason if a mutation changes no result.
"""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from benchmarks.names import check_names

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_suffix(".csv")
# Exit codes of pytest: all tests passed, some failed.
PASSED, FAILED = 0, 1


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change of one place in the code.

    Attributes:
        name: short name of the mutation.
        file: path of the module below the root of the repository.
        old: text that occurs once in the module.
        new: text that replaces it.
        test: pytest id of the test that fails with the mutation.
        survives: reason why no test can fail; "" if a test fails.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    survives: str

    def apply(self, root: Path) -> None:
        """Write the mutated module.

        Args:
            root: root of the copied repository.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {self.old!r} {text.count(self.old)} times"
            )
        path.write_text(text.replace(self.old, self.new))


def mutations() -> dict[str, Mutation]:
    """All mutations by name."""
    with FILE.open(newline="") as file:
        return {row["name"]: Mutation(**row) for row in csv.DictReader(file)}


def copy_of_the_tree(folder: Path) -> Path:
    """Copy the tracked files to a folder; returns the folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder


def notices(mutation: Mutation) -> int:
    """The exit code of pytest on the mutated copy: FAILED if the test detects the mutation."""
    with tempfile.TemporaryDirectory(prefix="ppo_jax-mutation-") as folder:
        root = copy_of_the_tree(Path(folder))
        mutation.apply(root)
        words = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-m", "slow or not slow"]
        done = subprocess.run(
            [*words, mutation.test],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return done.returncode


@dataclasses.dataclass(frozen=True)
class Options:
    """Check that tests detect one-line mutations.

    Attributes:
        names: names of the mutations to try; all by default.
        list: only list the mutations.
    """

    names: tuple[str, ...] = ()
    list: bool = False


def main(options: Options) -> int:
    """Try the mutations; returns 0 if all are detected, otherwise 1."""
    known = mutations()
    check_names("names", options.names, known)
    chosen = [known[name] for name in options.names] or [*known.values()]
    unnoticed = 0
    for mutation in chosen:
        verdict = mutation.survives and f"survives: {mutation.survives}"
        if not verdict and not options.list:
            code = notices(mutation)
            words = {PASSED: "SURVIVES", FAILED: "detected"}
            verdict = words.get(code, f"pytest ended with exit code {code}")
            unnoticed += code != FAILED
        print(f"{mutation.name:6} {mutation.file:34} {verdict or mutation.test}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
