"""README.md: its length, its commands, and what it may not claim."""

import re
import documents

README = documents.ROOT / "README.md"


def test_the_readme_has_at_most_900_words():
    assert len(README.read_text().split()) <= 900


def test_the_readme_begins_with_the_two_commands():
    assert documents.commands(README)[:2] == ["python3 run.py train", "python3 run.py test"]


def test_the_readme_claims_no_licence():
    """None has been chosen: a file or a sentence that names one needs the owner's decision."""
    assert not [path for path in documents.ROOT.iterdir() if path.stem.upper() == "LICENSE"]
    assert "Licence: none has been chosen by the owner yet." in README.read_text()


def test_the_readme_shows_no_interval_of_few_seeds():
    rows = re.findall(r"^\| \S+ \| [\d,]+ \| (\d+) \| (.+?) \|", README.read_text(), re.M)
    assert len(rows) == 8
    for seeds, returns in rows:
        assert ("[" in returns) == (int(seeds) >= 5), returns


def test_the_readme_says_which_opponent_pong_has():
    text = " ".join(README.read_text().split())
    (claim,) = re.findall(r"[^.]*The Pong agent.*?\.csv.*?hard one\.", text)
    mean = (
        (documents.ROOT / "benchmarks/results/pong.csv").read_text().splitlines()[-1].split(",")[5]
    )
    assert "easy opponent" in claim and f"{float(mean):.1f}" in claim
