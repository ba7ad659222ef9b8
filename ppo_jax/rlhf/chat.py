"""Rendering of conversations as text with the chat template of a model.

A template is a program in a downloaded folder. It runs in a process of its own
(`template_process`), whose time, memory and output are limited.
"""

import atexit
import contextlib
import functools
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ppo_jax.rlhf import template_process
from ppo_jax.rlhf.tokenizer import Tokenizer, TokenizerError, missing_package

NOTHING: Mapping[str, Any] = {}


class Chat(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: the conversation as text.
        generated: (start, end) of the parts of the text inside {% generation %} blocks; empty if
            the template has no such block.
    """

    text: str
    generated: tuple[tuple[int, int], ...] = ()


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    template: Mapping[str, Any] = NOTHING,
) -> str:
    """A conversation as text in the format that the model was trained on.

    The text contains BOS if the template writes it, so it is encoded without `prefix`.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation, [{"role": ..., "content": ...}, ...].
        add_generation_prompt: whether the text ends with the header of an assistant's turn.
        template: further arguments of the template, such as enable_thinking; tools and documents
            are None if they are absent.

    Raises:
        ImportError: jinja2 is not installed.
        TokenizerError: the tokenizer has no template, or the template fails, refuses these
            messages, or exceeds a limit of time, memory or output.

    Source: Hugging Face's documentation, Writing a chat template.
    """
    return _chat(tokenizer, messages, add_generation_prompt, template).text


def assistant_parts(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], template: Mapping[str, Any]
) -> Chat:
    """A conversation as text, with the parts that the assistant wrote.

    These are the {% generation %} blocks of the template. If it has none, the part of a turn begins
    after the header of the assistant's turn and ends with the end-of-text token, or where the text
    of the conversation up to this turn ends.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation, [{"role": ..., "content": ...}, ...].
        template: further arguments of the template.

    Raises:
        ImportError: jinja2 is not installed.
        TokenizerError: the template cannot be rendered, or it has no {% generation %} blocks and
            its text of earlier turns depends on later ones.
    """
    whole = _chat(tokenizer, messages, False, template)
    if whole.generated or "generation" in _tags(tokenizer.chat_template or ""):
        return whole
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    starts = [_start_of(tokenizer, messages[:i], whole.text, template) for i in turns]
    nexts = [*starts[1:], len(whole.text)]
    eos = tokenizer.special.get("eos_token")
    parts = []
    for i, start, following in zip(turns, starts, nexts, strict=True):
        end = whole.text.find(eos, start, following) if eos else -1
        if end >= 0:
            parts.append((start, end + len(str(eos))))
            continue
        until = _chat(tokenizer, messages[: i + 1], False, template).text
        if not whole.text.startswith(until):
            raise TokenizerError(_INSEPARABLE)
        parts.append((start, len(until)))
    return Chat(whole.text, tuple(parts))


_INSEPARABLE = (
    "the chat template renders earlier turns differently when later ones follow, so that the "
    "assistant's turns cannot be found; put them between {% generation %} and "
    "{% endgeneration %} in the template"
)


def _start_of(
    tokenizer: Tokenizer,
    before: Sequence[Mapping[str, Any]],
    whole: str,
    template: Mapping[str, Any],
) -> int:
    """The index of the first character that the assistant wrote after the messages `before`."""
    if not before:
        return 0
    prompt = _chat(tokenizer, before, True, template).text
    found = shared_start(prompt, whole)
    if found < len(prompt) and not whole.startswith(_chat(tokenizer, before, False, template).text):
        raise TokenizerError(_INSEPARABLE)
    return found


def shared_start(prompt: str, whole: str) -> int:
    """The number of characters at the beginning that two texts have in common."""
    same = (a == b for a, b in zip(prompt, whole, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))


def _tags(template: str) -> Iterator[str]:
    """The names of the block tags of a template."""
    pieces = template.split("{%")[1:]
    return (words[0] for words in (p.lstrip("-+").split("%}")[0].split() for p in pieces) if words)


def _chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    template: Mapping[str, Any],
) -> Chat:
    if tokenizer.chat_template is None:
        raise TokenizerError(
            "the data are conversations, and the tokenizer has no chat template: put one into "
            "chat_template.jinja beside tokenizer.json, or give the data as plain texts"
        )
    try:
        import jinja2  # noqa: F401 - it is used by the other process
    except ImportError as error:
        raise missing_package("jinja2", "a chat template") from error
    variables = {
        **tokenizer.special,
        "tools": None,
        "documents": None,
        **template,
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
    }
    answer = _process().ask({"template": tokenizer.chat_template, "variables": variables})
    if "error" in answer:
        raise TokenizerError(answer["error"])
    return Chat(answer["text"], tuple((start, end) for start, end in answer["generated"]))


class _Process:
    """A process that renders templates; it is started again after a template has ended it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of the process to one question."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = self._started()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(question, default=str) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            line = ""
        except BaseException:  # its answer would be taken for that to the next question
            child.kill()
            raise
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        timed_out = child.wait() == -signal.SIGALRM
        limit = template_process.SECONDS if timed_out else template_process.MEGABYTES
        unit = "seconds" if timed_out else "MB of memory"
        return {"error": f"the chat template cannot be rendered: it needs more than {limit} {unit}"}

    @staticmethod
    def _started() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *_program()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def close(self) -> None:
        """End the process, which leaves when its input ends."""
        if self._child is None:
            return
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        self._child.wait()
        self._child = None


def _program() -> list[str]:
    """The arguments of Python for the process."""
    # A file instead of a module, so that the process imports neither JAX nor ppo_jax. -P keeps the
    # folder of the file out of the search path of modules.
    return ["-P", template_process.__file__]


@functools.cache
def _process() -> _Process:
    return _Process()
