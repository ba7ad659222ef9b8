"""README.md: its length, its commands, and what it may not claim."""

import re

import documents
from benchmarks.table import RESULTS, read

README = documents.ROOT / "README.md"


def test_the_readme_has_at_most_900_words():
    assert len(README.read_text().split()) <= 900


def test_the_readme_begins_with_the_two_commands():
    assert documents.commands(README)[:2] == ["python3 run.py train", "python3 run.py test"]


def test_the_readme_claims_no_licence():
    """The owner has chosen none: a file or a sentence that names one needs the owner's decision."""
    assert not [path for path in documents.ROOT.iterdir() if path.stem.upper() == "LICENSE"]
    assert "Licence: none has been chosen by the owner yet." in README.read_text()


def test_the_readme_shows_no_interval_of_few_seeds():
    rows = re.findall(r"^\| \S+ \| [\d,]+ \| (\d+) \| (.+?) \|", README.read_text(), re.M)
    assert len(rows) == 8
    for seeds, returns in rows:
        assert ("[" in returns) == (int(seeds) >= 5), returns


def test_the_readme_says_how_the_pong_agents_play():
    text, rows = " ".join(README.read_text().split()), read(RESULTS / "pong.csv")
    (claim,) = re.findall(r"From pixels, three Pong agents win by .*? memory", text)
    cnn = [r for r in rows if r["env"] == "Pong" and r["network"] == "small"]
    easy, hard = (
        sorted(float(r["mean"]) for r in cnn if f"difficulty={kind}" in r["env_args"])
        for kind in ("easy", "hard")
    )
    assert f"{easy[0]:.1f} to {easy[-1]:.1f} of 21 points against the easy" in claim
    assert len(easy) == 3 and f"one by {hard[-1]:.1f} against the hard one" in claim
    pixels = [float(r["mean"]) for r in rows if "NoFrameskip" in r["env"]][-1]
    (memory,) = (float(r["mean"]) for r in rows if "PongRAM" in r["env"])
    assert f"Atari's Pong by {pixels:.1f}, and one by {memory:.1f} from the console's" in claim
