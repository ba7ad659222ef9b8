"""Tokenizers: one of single characters, and the tokenizer of a Hugging Face folder."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ppo_jax.config import installation
from ppo_jax.runs import files, manifest

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
# The regular expression for any character in a file of the tokenizers library.
ANY_CHARACTER = r"[\s\S]"
# A model may have this many ids more than its tokenizer, or this share of its ids: they pad the
# embedding to a round size.
MOST_UNUSED, MOST_UNUSED_SHARE = 1024, 0.1


class TokenizerError(ValueError):
    """A folder whose tokenizer cannot be used; the message names the reason and a remedy."""


class Tokenizer(Protocol):
    """The interface of tokenizers that ppo_jax.rlhf uses.

    Attributes:
        vocab_size: largest id plus one.
        bos_id: id of the token that begins a text; None if the tokenizer has none.
        eos_id: id of the token that ends a text; None if the tokenizer has none.
        pad_id: id of the token that pads rows; that of EOS if the tokenizer has no padding token,
            because masks distinguish text from padding.
        prefix: ids that every text begins with, [bos_id] or [].
        chat_template: jinja template that renders a conversation as text, or None.
        special: texts of bos_token, eos_token and pad_token, which a chat template may use.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    prefix: list[int]
    chat_template: str | None
    special: Mapping[str, str]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing put before or behind."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""


class CharTokenizer:
    """A tokenizer with the ids <pad> 0, <bos> 1 and <eos> 2, and one id for each character.

    The name of a special token in a text is encoded as that token, as in the tokenizers library.
    """

    bos_id: int | None = 1
    eos_id: int | None = 2
    pad_id: int | None = 0

    def __init__(self, chars: Iterable[str], chat_template: str | None = None) -> None:
        """Make a tokenizer of an alphabet.

        Args:
            chars: characters of the alphabet, in any order and with repetitions.
            chat_template: jinja template that renders a conversation as text, or None.
        """
        self.tokens = [PAD, BOS, EOS, *sorted(set(chars))]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.vocab_size = len(self.tokens)
        self.prefix = [self.ids[BOS]]
        self.special: Mapping[str, str] = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
        self.chat_template = chat_template

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            TokenizerError: a character of the text is not in the alphabet.
        """
        pieces = re.findall(f"{PAD}|{BOS}|{EOS}|{ANY_CHARACTER}", text)
        try:
            return [self.ids[piece] for piece in pieces]
        except KeyError as error:
            raise TokenizerError(
                f"the character {error.args[0]!r} in {_shortened(text)!r} is not one of this "
                f"tokenizer's: {''.join(self.tokens[3:])!r}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return "".join(self.tokens[i] for i in ids if i > self.ids[EOS])

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json in the format of transformers."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        for name, content in (
            ("tokenizer.json", _character_file(self.ids)),
            ("tokenizer_config.json", config),
        ):
            text = json.dumps(content, ensure_ascii=False, indent=1)
            write = manifest.write if manifest.has_one(Path(folder)) else _write
            write(Path(folder), name, text.encode())


def _write(folder: Path, name: str, content: bytes) -> None:
    files.write_bytes(folder / name, content)


class FolderTokenizer:
    """The tokenizer of a Hugging Face folder, read with the tokenizers library."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Read tokenizer.json.

        Args:
            folder: folder with a tokenizer.json.
            config: special tokens and chat template, as from `_settings`.

        Raises:
            ImportError: tokenizers is not installed.
            TokenizerError: the file cannot be read, or lacks a special token of `config`.
        """
        self._tokenizer = _read(folder / "tokenizer.json")
        _add_tokens(self._tokenizer, config.get("added_tokens_decoder") or {}, folder)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        self.special: Mapping[str, str] = {
            name: config[name] for name in _SPECIAL if config.get(name)
        }
        self.bos_id, self.eos_id, pad_id = (self._id(name, config, folder) for name in _SPECIAL)
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.prefix = self._prefix(config.get("add_bos_token"))
        self.chat_template = config.get("chat_template")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing put before or behind.

        Raises:
            TokenizerError: the library fails, because the file is inconsistent.
        """
        return self._encoded(text, False)

    def _encoded(self, text: str, special: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            # A panic of the Rust library is a BaseException, not an Exception.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise TokenizerError(f"tokenizer.json cannot be used: {error}") from error
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def _id(self, name: str, config: Mapping[str, Any], folder: Path) -> int | None:
        token = config.get(name)
        found = config.get(f"{name}_id") if token is None else self._tokenizer.token_to_id(token)
        if token is not None and found is None:
            raise TokenizerError(f"{folder}: {name} is {token!r}, which tokenizer.json lacks")
        return found

    def _prefix(self, wanted: bool | None) -> list[int]:
        """[bos_id] or []; by default whatever the library puts before an empty text."""
        if wanted is None:
            wanted = self._encoded("", True)[:1] == [self.bos_id]
        return [self.bos_id] if wanted and self.bos_id is not None else []


_SPECIAL = ("bos_token", "eos_token", "pad_token")


def _add_tokens(library: Any, listed: Any, folder: Path) -> None:
    """Add the tokens that stand in tokenizer_config.json alone, under their ids.

    Args:
        library: tokenizer of the tokenizers library, which is changed.
        listed: `added_tokens_decoder` of tokenizer_config.json, texts and flags by id.
        folder: folder of the tokenizer, for messages.

    Raises:
        TokenizerError: the entry is damaged, or a token would have another id.
    """
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized")
    where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    try:
        tokens = sorted((int(i), dict(token)) for i, token in listed.items())
    except (AttributeError, TypeError, ValueError):
        raise TokenizerError(f"{where} must be an object with a token for each id") from None
    for i, token in tokens:
        text, special = token.get("content"), token.get("special", False)
        if not isinstance(text, str) or not text:
            raise TokenizerError(f"{where} has no content for the id {i}")
        if text in known:
            continue
        given = {name: token[name] for name in flags if isinstance(token.get(name), bool)}
        add = library.add_special_tokens if special else library.add_tokens
        add([AddedToken(text, special=bool(special), **given)])
        if library.token_to_id(text) != i:
            raise TokenizerError(
                f"{where} gives {text!r} the id {i}, but in tokenizer.json the next id is "
                f"{library.token_to_id(text)}"
            )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model's folder.

    Args:
        folder: folder with tokenizer.json, and optionally tokenizer_config.json,
            special_tokens_map.json, config.json, generation_config.json and chat_template.jinja.

    Returns:
        The tokenizer; a saved `CharTokenizer` is read without the tokenizers library.

    Raises:
        ImportError: tokenizers is required and not installed.
        TokenizerError: tokenizer.json is missing or cannot be read.
    """
    folder = Path(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        hint = (
            "write one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
        raise TokenizerError(f"{folder} has no tokenizer.json; {hint}")
    content, settings = _json(file), _settings(folder)
    characters = _characters(content)
    if characters is not None:
        return CharTokenizer(characters, settings.get("chat_template"))
    return FolderTokenizer(folder, settings)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer that belongs to another model.

    A model may have slightly more ids than its tokenizer, which pad its embedding.

    Args:
        tokenizer: tokenizer of the data.
        vocab_size: vocabulary size of the model.

    Raises:
        TokenizerError: the tokenizer has more ids than the model, or far fewer.
    """
    unused = vocab_size - tokenizer.vocab_size
    if 0 <= unused <= max(MOST_UNUSED, MOST_UNUSED_SHARE * vocab_size):
        return
    if unused == -1 and tokenizer.pad_id == vocab_size:
        raise TokenizerError(
            f"the padding token {tokenizer.special.get('pad_token')!r} has the id "
            f"{tokenizer.pad_id}, and the model has {vocab_size} ids: the token was added to the "
            "tokenizer alone; resize the embedding of the model, or name another pad_token in "
            "tokenizer_config.json"
        )
    raise TokenizerError(
        f"the tokenizer has {tokenizer.vocab_size} ids and the model {vocab_size}: they do not "
        f"belong together; give the folder that holds both"
    )


def missing_package(package: str, what: str) -> ImportError:
    """The error for a missing package, with the command that installs it.

    Args:
        package: name of the package.
        what: the thing that requires the package, the subject of the message.
    """
    return ImportError(
        f"{what} requires the package {package}, which is not installed; install it with: "
        f"{installation.command('[rlhf]')}"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Special tokens and chat template from the other files, where earlier files have priority."""
    found: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = _json(folder / name)
        if "added_tokens_decoder" in content:
            found.setdefault("added_tokens_decoder", content["added_tokens_decoder"])
        for key, value in content.items():
            special = isinstance(value, dict) and key != "chat_template"
            text = value.get("content") if special else value
            if key in (*_SPECIAL, "add_bos_token", "chat_template") and text is not None:
                found.setdefault(key, text)
    for name in ("generation_config.json", "config.json"):
        content = _json(folder / name)
        for key in (f"{name}_id" for name in _SPECIAL):
            value = content.get(key)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int):
                found.setdefault(key, value)
    template = folder / "chat_template.jinja"
    if template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    elif "chat_template" in found:
        found["chat_template"] = _template(found["chat_template"], folder)
    return found


def _template(value: Any, folder: Path) -> str | None:
    """The chat template of tokenizer_config.json, which may have several with names."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    entries = value if isinstance(value, list) else [value]
    named = {
        x.get("name"): x.get("template")
        for x in entries
        if isinstance(x, dict) and isinstance(x.get("name"), str)
    }
    if len(named) < len(entries) or not all(isinstance(x, str) for x in named.values()):
        raise TokenizerError(
            f"{folder}: chat_template must be a text or a list of "
            f'{{"name": ..., "template": ...}}, not {_shortened(str(value))}'
        )
    return named.get("default")


def _json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if the file does not exist."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file} must hold a JSON object, not {_shortened(str(content))!r}")
    return content


def _character_file(ids: Mapping[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json for a `CharTokenizer`, whose words are single characters."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": ids[token], "content": token, "special": True, **flags} for token in (PAD, BOS, EOS)
    ]
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": ANY_CHARACTER},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, second],
            "special_tokens": {BOS: {"id": BOS, "ids": [ids[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "Fuse"},
        # "<unk>" is not in the vocabulary, so that an unknown character is an error there, too.
        "model": {"type": "WordLevel", "vocab": dict(ids), "unk_token": "<unk>"},
    }


def _characters(content: Mapping[str, Any]) -> list[str] | None:
    """The alphabet of a file written by `_character_file`; None for any other file."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordLevel":
        return None
    vocabulary = model.get("vocab", {})
    characters = [token for token in vocabulary if token not in (PAD, BOS, EOS)]
    tokenizer = CharTokenizer(characters)
    same = tokenizer.ids == vocabulary and _character_file(tokenizer.ids) == content
    return characters if same else None


def _read(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise missing_package("tokenizers", str(file)) from error
    try:
        library = Library.from_file(str(file))
        # A call with padding leaves its lengths in the file, which would cut and pad every text.
        library.no_truncation()
        library.no_padding()
        return library
    except BaseException as error:  # the library raises plain Exceptions and Rust panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{file} is not a tokenizer of the tokenizers library: {error}"
        ) from error


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
