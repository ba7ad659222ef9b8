"""Checks the prose of the repository for words and phrases that hinder understanding.

`python tests/language_rules.py [PATHS]` prints each finding as `file:line: rule: text` and exits
with status 1 if there is one. Without arguments it reads the files that tests/test_language.py
reads.

Prose is: docstrings, comments and string literals of three or more words in Python files; the text
of Markdown files and of the Markdown cells of notebooks; comments of TOML, YAML and Slurm files.
Text in backticks, code blocks, formulas, placeholders of f-strings and link targets is code and is
not checked.

There are three kinds of rules:

* WORDS: words and phrases that are never written. Where a word is right in one sense, the pattern
  excludes that sense ("standard deviation", "second moments", "question mark").
* Entries of `Args:`, `Attributes:`, `Returns:` and `Yields:` and help texts of options do not begin
  with a bare preposition or relative pronoun (OPENERS). A shape or dtype before it does not count.
* An entry has at least two words, or a shape and a noun, and none of its sentences consists of
  FUNCTION_WORDS only: "as many", "of it" and "how" have neither a noun nor a main verb.

No rule decides whether a sentence is understood. The rules only keep known faults away.
"""

import ast
import bisect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# The files with prose, as patterns below the root; generated and vendored files are left out.
FILES = (
    "*.md",
    "run.py",
    "pyproject.toml",
    "ppo_jax/**/*.py",
    "benchmarks/**/*.py",
    "docs/**/*.md",
    "docs/**/*.py",
    "notebooks/*.ipynb",
    "examples/**/*.*",
)
LEFT_OUT = {"generated", "_build", "_static", "node_modules", ".venv"}
SUFFIXES = {".md", ".ipynb", ".py", ".toml", ".yaml", ".slurm", ".sh"}

# Rule -> pattern; a space in a pattern stands for any white space.
WORDS = {
    "write 'standard deviation' or 'absolute deviation'": (
        r"(?<!standard )(?<!absolute )\bdeviations?\b"
    ),
    "write 'running statistics'": (
        r"(?<!first )(?<!second )(?<!adam's )(?<!adam’s )\bmoments\b(?! of adam)"
    ),
    "write 'threshold'": (
        r"(?<!question )(?<!quotation )(?<!exclamation )(?<!punctuation )\bmarks?\b"
    ),
    "write 'validated against' or 'compared with'": (
        r"\b(?:hold|holds|held|holding)(?: \w+){0,4} against\b"
    ),
    "write 'termination and truncation'": r"\btwo endings\b",
    "write 'partially observable'": r"\bone look is not enough\b",
    "write 'architecture'": r"\bthe house\b",
    "write 'score', 'annotate' or 'compare'": (
        r"(?<!llm-as-a-)(?<!llm as a )\bjudg(?:e|es|ed|ing)\b"
    ),
    "name who passes or prints it, without 'told'": r"\btold\b",
    "name who prints or states it, without 'said'": r"\bsaid\b",
    "write 'uses' or 'reads'": r"\bheed(?:s|ed|ing)?\b",
    "name the network or the algorithm": r"\bwhat learns\b",
    "name what the seed determines": r"\bof everything random\b",
    "write 'overrides'": r"\b(?:go|goes|going) before\b",
}
PREPOSITIONS = "of for in from with to by at on as over under into"
OPENERS = frozenset(f"{PREPOSITIONS} that which whose how where when".split())
PRONOUNS = "it its itself them themselves they their this these those what who one ones"
QUANTIFIERS = (
    "no none any all each every either both other others many much more most few less least same "
    "such own a an the"
)
VERBS = "is are was were be been being has have had do does did can may must will would"
CONNECTIVES = (
    "and or nor but so too not there here then if than whether about after before between per only "
    "also again"
)
FUNCTION_WORDS = OPENERS | {*f"{PRONOUNS} {QUANTIFIERS} {VERBS} {CONNECTIVES}".split()}
DTYPE = r"(?:bool|u?int\d*|b?float\d*|complex\d*)"
SHAPE = re.compile(rf"^(?:\[[^\[\]]*\]|{DTYPE}\b|[,:;]|\s)+")
SECTION = re.compile(r"^(\s*)(Args|Attributes|Returns|Yields):\s*(.*)$")
ENTRY = re.compile(r"^(\**\w+(?:,\s+(?:and\s+)?\**\w+)*):(?:\s+(.*)|)$")
CONTENT = re.compile(r"\s+[A-Z]\w+(?:Error|Failed|Exit): what\b")
# Strings and comments of Python, each from where it begins.
LEXER = re.compile(
    r'(?P<docstring>(?:(?<=:)|\A)\s*r?"""(?:\\.|[^\\])*?""")'
    r'|[rbufRBUF]{0,2}(?:"""(?:\\.|[^\\])*?"""|'
    r"'''(?:\\.|[^\\])*?'''|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'(?:\\.|[^'\\\n])*')"
    r"|(?P<comment>#[^\n]*)",
    re.S,
)
CODE = "CODE"  # stands for everything that is not checked

Fault = tuple[int, str, str]


class Finding(NamedTuple):
    """One fault.

    Attributes:
        file: path of the file below the root.
        line: number of the line in the file; in a notebook the number of the cell.
        rule: the broken rule, or what to write instead.
        text: the words around the fault.
    """

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.text}"


def files(root: Path = ROOT) -> list[Path]:
    """All files that are checked, in the order of their paths."""
    found = {path for pattern in FILES for path in root.glob(pattern)}
    return sorted(
        p for p in found if p.suffix in SUFFIXES and not LEFT_OUT & {*p.relative_to(root).parts}
    )


def check(path: Path, root: Path = ROOT) -> list[Finding]:
    """All findings in one file."""
    source = path.read_text()
    kinds = {".py": _python, ".ipynb": _notebook, ".md": _markdown}
    found = kinds.get(path.suffix, _comments)(source)
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return [Finding(name, *fault) for fault in sorted(found)]


def _words(text: str, line: int) -> Iterator[Fault]:
    """Faults against WORDS in a text that begins at a line."""
    if not ANY_WORD.search(text):
        return
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
    for rule, pattern in COMPILED.items():
        for match in pattern.finditer(text):
            around = text[max(0, match.start() - 30) : match.end() + 20]
            yield line + text.count("\n", 0, match.start()), rule, " ".join(around.split())


COMPILED = {rule: re.compile(p.replace(" ", r"\s"), re.I) for rule, p in WORDS.items()}
ANY_WORD = re.compile(
    r"deviation|moments|mark|against|endings|not\s+enough|the\s+house|judg|told|said|heed"
    r"|learns|random|before",
    re.I,
)


def _without(pattern: str, text: str) -> str:
    """The text with CODE and as many line breaks in place of what matches."""
    return re.sub(pattern, lambda m: CODE + "\n" * m[0].count("\n"), text, flags=re.S | re.M)


def _python(source: str) -> Iterator[Fault]:
    """Faults in docstrings, comments, strings and help texts of Python source."""
    starts = [m.start() for m in re.finditer(r"\n", source)]
    line_of = lambda position: 1 + bisect.bisect_left(starts, position)
    text, line, end, last = "", 1, 0, ""
    for token in LEXER.finditer(source):
        kind = token.lastgroup or "string"
        begin = token.end() - len(token[0].lstrip())
        gap = source[end:begin]
        body = _body(token[0].strip(), kind)
        if kind == last and kind != "docstring" and not gap.strip() and gap.count("\n") <= 1:
            text += "\n" * gap.count("\n") + body
        else:
            yield from _prose(text, line, last)
            text, line = body, line_of(begin)
        end, last = token.end(), kind
    yield from _prose(text, line, last)
    if "option(" in source or "help=" in source:
        yield from _help(ast.parse(source))


def _body(token: str, kind: str) -> str:
    """The text of a string or comment, without its code."""
    if kind == "comment":
        text = token.lstrip("#! ")
    else:
        prefix = token[: len(token) - len(token.lstrip("rbufRBUF"))]
        quotes = 3 if token[len(prefix) :][:3] in ('"""', "'''") else 1
        text = token[len(prefix) + quotes : -quotes]
        if "f" in prefix.lower():
            text = _without(r"\{[^{}]*\}", text)
    return _without(r"``.*?``|`[^`]*`", text) if "`" in text else text


def _prose(text: str, line: int, kind: str) -> Iterator[Fault]:
    """Faults of one docstring, comment or string; shorter strings are names and keys."""
    if kind == "docstring":
        yield from _entries(text, line)
        text = re.sub(r"^(\s+)\**\w+(?:, \**\w+)*:(?=\s)", rf"\1{CODE}:", text, flags=re.M)
    if kind != "string" or len(text.split()) >= 3:
        yield from _words(text, line)


def _entries(docstring: str, first: int) -> Iterator[Fault]:
    """Faults in the entries of a docstring's sections."""
    section, indent = "", 0
    entry, entry_line = "", 0
    for number, line in enumerate(docstring.split("\n")):
        if CONTENT.match(line):  # of the message, in place of the condition
            yield first + number, "state when it is raised, not with 'what'", line.strip()[:60]
        start = SECTION.match(line)
        here = len(line) - len(line.lstrip())
        named = ENTRY.match(line.strip()) if section in ("Args", "Attributes") else None
        if start or (section and line.strip() and here <= indent):
            yield from _entry(entry, entry_line)
            section, indent = (start[2], here) if start else ("", 0)
            entry, entry_line = (start[3] if start else ""), first + number
        elif section and named and here == indent + 4:
            yield from _entry(entry, entry_line)
            entry, entry_line = named[2] or CODE, first + number
        elif section and line.strip():
            entry_line = entry_line if entry else first + number
            entry += " " + line.strip()
    yield from _entry(entry, entry_line)


def _entry(text: str, line: int) -> Iterator[Fault]:
    """Faults of one entry or help text."""
    if not text.strip():
        return
    plain = SHAPE.sub("", text.strip())
    words = re.findall(r"[^\s.,:;()]+", plain)
    start = " ".join(text.split())[:60]
    noun_alone = plain != text.strip() and re.fullmatch(r"[a-z][a-z-]{2,}", "".join(words))
    if len(words) < 2 and (not noun_alone or words[0] in FUNCTION_WORDS):
        yield line, "describe it in a whole phrase", start
    elif words[0].lower() in OPENERS and plain[:1] not in "(":
        yield line, f"begin with a noun phrase, not with '{words[0]}'", start
    for sentence in re.split(r"(?<=[.!?;])\s+", plain) if len(words) >= 2 else []:
        parts = re.findall(r"[^\s.,:;()]+", sentence.lower())
        if parts and FUNCTION_WORDS.issuperset(parts):
            yield line, "a sentence without a noun and a main verb", sentence


def _help(tree: ast.Module) -> Iterator[Fault]:
    """Faults in the help texts that are given to option() and add_argument()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts = [k.value for k in node.keywords if k.arg in ("help", "doc")]
            if name == "option":
                texts += node.args[1:2]
            for text in texts:
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield from _entry(_without(r"`[^`]*`", text.value), text.lineno)


def _comments(source: str) -> Iterator[Fault]:
    """Faults in the comments of a file whose comments begin with #."""
    lines = (re.search(r"(?:^|\s)#+\s(.*)$", line) for line in source.splitlines())
    text = "\n".join(m[1] if m else "" for m in lines)
    yield from _words(_without(r"`[^`]*`", text), 1)


# Blocks and spans of Markdown that are code, formulas, tags or addresses.
NOT_TEXT = (
    r"^ *(?:```|~~~).*?^ *(?:```|~~~)[^\n]*$|<!--.*?-->|\$\$.*?\$\$"
    r"|(?<=\n\n)(?: {4}[^\n]*\n+)+|``.*?``|`[^`]*`|\$[^$\n]*\$|\]\([^)]*\)|<[^>\n]*>|https?://\S+"
)


def _markdown(source: str, line: int = 1) -> Iterator[Fault]:
    """Faults in the text of a Markdown page."""
    yield from _words(_without(NOT_TEXT, source), line)


def _notebook(source: str) -> Iterator[Fault]:
    """Faults in the Markdown cells of a notebook."""
    for number, cell in enumerate(json.loads(source)["cells"], 1):
        if cell["cell_type"] == "markdown":
            for _, rule, text in _markdown("".join(cell["source"])):
                yield number, rule, text


def main(arguments: list[str]) -> int:
    """Print the findings in files and folders, or in all files.

    Args:
        arguments: paths of files or folders; every file is checked if there are none.

    Returns:
        Exit status: 1 if there is a finding, 0 otherwise.
    """
    wanted = [Path(a).resolve() for a in arguments]
    chosen = [p for p in files() if not wanted or any(w == p or w in p.parents for w in wanted)]
    found = [finding for path in chosen for finding in check(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
