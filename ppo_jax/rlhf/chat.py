"""Rendering of conversations as text with the chat template of a model."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppo_jax.rlhf.tokenizer import Tokenizer, TokenizerError, missing_package


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> str:
    """A conversation as text in the format that the model was trained on.

    The text contains BOS if the template writes it, so it is encoded without `prefix`.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the conversation, [{"role": ..., "content": ...}, ...].
        add_generation_prompt: whether the text ends with the header of an assistant's turn.

    Raises:
        ImportError: jinja2 is not installed.
        TokenizerError: the tokenizer has no template, or the template refuses these messages.

    Source: Hugging Face's documentation, Writing a chat template.
    """
    if tokenizer.chat_template is None:
        raise TokenizerError(
            "the data are conversations, and the tokenizer has no chat template: put one into "
            "chat_template.jinja beside tokenizer.json, or give the data as plain texts"
        )
    try:
        import jinja2
    except ImportError as error:
        raise missing_package("jinja2", "a chat template") from error
    try:
        return (
            _environment()
            .from_string(tokenizer.chat_template)
            .render(
                messages=messages, add_generation_prompt=add_generation_prompt, **tokenizer.special
            )
        )
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template cannot be rendered: {error}") from error


def _environment() -> Any:
    """A sandboxed jinja2 environment with the names and tags that chat templates use.

    A template is part of a downloaded model, so it must not be able to run Python code.
    """
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around the assistant's text, which is rendered like any other text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            """Return the nodes between the opening and the closing tag."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


def _to_json(x: Any, indent: int | None = None) -> str:
    return json.dumps(x, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TokenizerError(f"the chat template refuses these messages: {message}")
