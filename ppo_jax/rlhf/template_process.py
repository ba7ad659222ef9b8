"""The process that renders chat templates: a line of JSON with a template and its variables in, a
line of JSON with the text or an error out.

A template may loop for a long time, or double a string until the memory is full, even in a sandbox.
The operating system ends this process in both cases, and the caller reports it.
"""

import datetime
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

# Limits of rendering one conversation.
SECONDS = 10
MEGABYTES = 1024
CHARACTERS = 4_000_000
# Unicode noncharacters, which no text may contain, enclose the blocks {% generation %}.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


class Refused(Exception):
    """Raised by raise_exception of a template."""


def main() -> None:
    """Answer questions until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that asks ends this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    limit = MEGABYTES * 1024 * 1024
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        pass  # a lower limit is set already
    for line in sys.stdin:
        signal.alarm(SECONDS)
        answer = json.dumps(_answer(line))
        signal.alarm(0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answer(line: str) -> dict[str, Any]:
    if any(json.dumps(character)[1:-1] in line for character in (OPEN, CLOSE)):
        return {"error": "the texts contain the noncharacter U+FDD0 or U+FDD1; remove it"}
    question = json.loads(line)
    try:
        return _separated(_rendered(question["template"], question["variables"]))
    except Refused as error:
        return {"error": f"the chat template refuses these messages: {_one_line(error)}"}
    except Exception as error:
        return {"error": f"the chat template cannot be rendered: {_one_line(error)}"}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def _rendered(template: Any, variables: dict[str, Any]) -> str:
    if not isinstance(template, str):
        raise TypeError(f"it must be a text, not a {type(template).__name__}")
    pieces, length = [], 0
    for piece in _compiled(template).generate(variables):
        length += len(piece)
        if length > CHARACTERS:
            raise ValueError(f"its text is longer than {CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _separated(text: str) -> dict[str, Any]:
    """The text without these characters, and the (start, end) of each block."""
    plain, parts, start = [], [], 0
    length = 0
    for i, piece in enumerate(text.replace(CLOSE, OPEN).split(OPEN)):
        if i % 2:
            start = length
        length += len(piece)
        if i % 2:
            parts.append((start, length))
        plain.append(piece)
    return {"text": "".join(plain), "generated": parts}


@functools.cache
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@functools.cache
def _environment() -> Any:
    """A sandboxed jinja2 environment with the names and tags that chat templates use."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around the text of the assistant."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            """Return the nodes between both tags, enclosed by the two characters."""
            line = next(parser.stream).lineno
            output = lambda text: nodes.Output([nodes.TemplateData(text)], lineno=line)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return [output(OPEN), *body, output(CLOSE)]

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    *,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise Refused(message)


_now: Callable[[str], str] = lambda form: datetime.datetime.now().strftime(form)

if __name__ == "__main__":
    main()
