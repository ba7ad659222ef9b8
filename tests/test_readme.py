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


def test_the_readme_says_which_opponent_the_pong_agent_has():
    text = " ".join(README.read_text().split())
    (claim,) = re.findall(r"The Pong agent wins by .*? against the hard one\.", text)
    best = read(RESULTS / "pong.csv")[-1]
    assert "difficulty=easy" in best["env_args"] and "easy opponent" in claim
    assert f"{float(best['mean']):.1f}" in claim
