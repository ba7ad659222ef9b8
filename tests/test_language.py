"""The prose of the repository follows tests/language_rules.py, which finds known faults."""

import pytest

import language_rules as language

FORBIDDEN = [
    "the deviation of the returns",
    "scaled by running moments",
    "the share of seeds at the mark",
    "held against the known optimum",
    "holds them up against the files",
    "there are two endings",
    "memory where one look is not enough",
    "the house in one picture",
    "a judge who errs",
    "responses are judged",
    "unless told otherwise",
    "what was said before",
    "what learning heeds",
    "the policy is what learns",
    "of everything random",
    "flags go before it",
]
ALLOWED = [
    "standard deviation and mean absolute deviation",
    "first and second moments of Adam",
    "a question mark; benchmarks; a marked row",
    "LLM-as-a-judge",
    "`moments` and ``mark``",
    "the deadline has been missed",
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_a_forbidden_phrase_is_found_in_every_kind_of_file(text, tmp_path):
    broken = text.replace(" ", "\n", 1)
    comment = "# " + broken.replace("\n", "\n# ")
    python = f'"""One line.\n\n    {broken}\n"""\n\nx = 1\n{comment}\nprint(f"{{x}} {text}")\n'
    first, second, third = (line for line, *_ in language._python(python))
    assert first in (3, 4) and second in (8, 9) and third == 10
    assert len([*language._markdown(f"# Title\n\n{text}\n")]) == 1
    assert len([*language._comments(f"x = 1\n# {text}\n")]) == 1
    path = tmp_path / "page.md"
    path.write_text(f"`code`\n\n{text}\n")
    assert str(language.check(path)[0]).startswith(f"{path}:3: ")


@pytest.mark.parametrize("text", ALLOWED)
def test_other_senses_and_code_are_not_refused(text):
    assert not [*language._python(f'"""{text}"""\n# {text}\n')]
    assert not [*language._markdown(text)]


def test_every_word_has_an_example():
    found = {rule for text in FORBIDDEN for _, rule, _ in language._words(text, 1)}
    assert found == {*language.WORDS}


def test_code_in_pages_is_not_prose():
    page = "```\nthe deviation\n```\n\n    the deviation\n\n$$\nmark\n$$\n[a](the mark.md)\n"
    assert not [*language._markdown(page)]


def entry(text: str, section: str = "Args") -> list[str]:
    """Rules that one entry of a docstring breaks."""
    name = "" if section == "Returns" else "name: "
    lines = ["One line.", "", f"    {section}:", f"        {name}{text}", ""]
    return [rule for _, rule, _ in language._entries("\n".join(lines), 1)]


@pytest.mark.parametrize("section", ["Args", "Attributes", "Returns"])
def test_entries_are_whole_phrases(section):
    for text in ("of the policy.", "how many.", "[B] int32, of the token to come.", "whose it is."):
        assert any("noun phrase" in rule for rule in entry(text, section)), text
    for text in ("itself.", "[T, N].", "[B] float32", "[P] θ.", "config."):
        assert entry(text, section) == ["describe it in a whole phrase"], text
    for text in ("all of them.", "seconds to wait; so many.", "the one, or none."):
        assert any("main verb" in rule for rule in entry(text, section)), text
    for text in ("[T, N] float32 rewards.", "whether it ended.", "number of episodes."):
        assert not entry(text, section), text


def test_entries_are_found_at_their_lines():
    entries = "    a: parameters of the actor, a\n        pytree.\n    b, c: of it.\n"
    text = f"One line.\n\nArgs:\n{entries}\nMore text."
    assert {line for line, *_ in language._entries(text, 1)} == {6}


def test_raises_names_the_condition():
    text = '"""One line.\n\n    Raises:\n        ConfigError: what was given.\n    """\n'
    assert [line for line, *_ in language._python(text)] == [4]
    assert not [*language._python(text.replace("what was given", "the value is negative"))]


def test_help_texts_are_whole_phrases():
    source = 'x: int = option(1, "of everything")\nadd_argument("--n", help="how many")\n'
    assert len({line for line, *_ in language._python(source)}) == 2


def test_everything_is_read():
    names = {str(path.relative_to(language.ROOT)) for path in language.files()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "run.py",
        "pyproject.toml",
        "ppo_jax/train.py",
        "ppo_jax/cli/train.py",
        "benchmarks/throughput/contestants/ours.py",
        "docs/index.md",
        "docs/algorithms/ppo.md",
        "docs/conf.py",
        "notebooks/quickstart.ipynb",
        "examples/own_parts.py",
    } <= names


def test_the_prose_keeps_to_the_rules():
    found = [str(finding) for path in language.files() for finding in language.check(path)]
    assert not found, "\n".join(["", *found])
