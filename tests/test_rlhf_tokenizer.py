"""Tokenizers: files that transformers can read, and refusal of unsupported ones."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_jax.rlhf import tokenizer as module
from ppo_jax.rlhf.chat import render_chat
from ppo_jax.rlhf.tokenizer import (
    CharTokenizer,
    FolderTokenizer,
    TokenizerError,
    check_vocabulary,
    load_tokenizer,
)

tokenizers = pytest.importorskip("tokenizers")

ALPHABET = "abcdefghijklmnopqrstuvwxyz -'\nßλ€😀"
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def byte_level(folder, special=("<|endoftext|>",)):
    """A small tokenizer of GPT-2's type, trained here."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the theme of the thesis"] * 5, trainer)
    made.save(str(folder / "tokenizer.json"))
    return made


def test_characters():
    t = CharTokenizer("hello")
    assert (t.pad_id, t.bos_id, t.eos_id) == (0, 1, 2)
    assert t.tokens[3:] == ["e", "h", "l", "o"]
    assert t.encode("hello") == [4, 3, 5, 5, 6]
    assert t.decode([1, 4, 3, 5, 5, 6, 2, 0]) == "hello"
    assert t.vocab_size == 7
    with pytest.raises(TokenizerError, match=r"'x' in 'hex' is not one of .* 'ehlo'"):
        t.encode("hex")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=ALPHABET, max_size=20))
def test_characters_come_back(text):
    t = CharTokenizer(ALPHABET)
    assert t.decode([*t.prefix, *t.encode(text), t.eos_id]) == text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    CharTokenizer(ALPHABET, CHAT).save(folder)
    return folder


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet=ALPHABET, max_size=12))
def test_the_saved_file_means_the_same_to_the_library(saved, text):
    ours = load_tokenizer(saved)
    theirs = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    wrapped = FolderTokenizer(saved, module._settings(saved))
    for t in (text, f"{text}<eos>{text}"):
        assert theirs.encode(t).ids == ours.prefix + ours.encode(t)
        assert wrapped.encode(t) == ours.encode(t)
        assert theirs.decode(theirs.encode(t).ids) == ours.decode(ours.encode(t))


def test_a_saved_one_needs_no_library(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    t = load_tokenizer(saved)
    assert isinstance(t, CharTokenizer)
    assert t.ids == CharTokenizer(ALPHABET).ids
    assert t.chat_template == CHAT


def test_the_wrapper_finds_the_same_ids(saved):
    t = FolderTokenizer(saved, module._settings(saved))
    ours = CharTokenizer(ALPHABET)
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "prefix", "special"):
        assert getattr(t, name) == getattr(ours, name), name


def test_unknown_characters_are_no_silent_matter_in_the_library_either(saved):
    with pytest.raises(Exception, match="UNK"):
        tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json")).encode("a#")


def test_gpt2_has_one_special_token_and_no_prefix(tmp_path):
    theirs = byte_level(tmp_path)
    token = {"content": "<|endoftext|>", "lstrip": False}
    write(tmp_path, tokenizer_config={"bos_token": token, "eos_token": token})
    t = load_tokenizer(tmp_path)
    assert t.bos_id == t.eos_id == t.pad_id == theirs.token_to_id("<|endoftext|>") == 0
    assert t.prefix == []
    assert t.vocab_size == theirs.get_vocab_size()
    text = "the thesis, naïve €"
    assert t.encode(text) == theirs.encode(text).ids
    assert t.decode([*t.encode(text), t.eos_id]) == text


def test_a_post_processor_or_the_config_decides_on_the_prefix(tmp_path):
    made = byte_level(tmp_path, ("<s>", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_config=names)
    assert load_tokenizer(tmp_path).prefix == []
    write(tmp_path, tokenizer_config=names | {"add_bos_token": True})
    assert load_tokenizer(tmp_path).prefix == [0]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config=names)
    t = load_tokenizer(tmp_path)
    assert (t.prefix, t.bos_id, t.eos_id, t.pad_id) == ([0], 0, 1, 1)
    write(tmp_path, tokenizer_config=names | {"add_bos_token": False})
    assert load_tokenizer(tmp_path).prefix == []


def test_where_special_ids_come_from(tmp_path):
    """The order is tokenizer_config, special_tokens_map, generation_config, config."""
    byte_level(tmp_path, ("<a>", "<b>", "<c>"))
    write(tmp_path, config={"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None})
    assert load_tokenizer(tmp_path).eos_id == 0
    write(tmp_path, generation_config={"eos_token_id": [1, 2]})
    t = load_tokenizer(tmp_path)
    assert (t.bos_id, t.eos_id, t.pad_id) == (0, 1, 1)
    write(tmp_path, special_tokens_map={"eos_token": "<c>", "pad_token": "<a>"})
    assert load_tokenizer(tmp_path).eos_id == 2
    write(tmp_path, tokenizer_config={"eos_token": "<b>", "bos_token": None})
    t = load_tokenizer(tmp_path)
    assert (t.bos_id, t.eos_id, t.pad_id) == (0, 1, 0)
    write(tmp_path, tokenizer_config={"eos_token": "<z>"})
    with pytest.raises(TokenizerError, match="eos_token is '<z>', which tokenizer.json lacks"):
        load_tokenizer(tmp_path)


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def test_chat():
    t = CharTokenizer(ALPHABET, CHAT)
    assert render_chat(t, MESSAGES) == "<user>hi<eos><assistant>yo<eos>"
    assert render_chat(t, MESSAGES[:1], True) == "<user>hi<eos><assistant>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # As rendered by transformers 5.24.
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n;{% endfor %}",
         "hi;yo;"),
        ("{%- for m in messages %}\n  {%- if loop.index0 > 0 %}{%- break %}{%- endif %}\n"
         "  {{- m.content }}\n  {{- {'é': '<'} | tojson }}\n{%- endfor %}", 'hi{"é": "<"}'),
        ("{{ strftime_now('%d')[2:] }}{{ bos_token }}", "<bos>"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
         "{{ ns.n }}", "2"),
    ],
)  # fmt: skip
def test_what_chat_templates_may_use(template, text):
    assert render_chat(CharTokenizer(ALPHABET, template), MESSAGES) == text


def test_where_chat_templates_come_from(tmp_path):
    CharTokenizer(ALPHABET).save(tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]
    write(tmp_path, tokenizer_config={"chat_template": named})
    assert load_tokenizer(tmp_path).chat_template == "y"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert load_tokenizer(tmp_path).chat_template == "z"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[", "cannot be rendered"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "cannot be rendered"),
    ],
)
def test_chats_that_cannot_be_rendered(template, message):
    with pytest.raises(TokenizerError, match=message):
        render_chat(CharTokenizer(ALPHABET, template), MESSAGES)


def test_missing_packages_say_how_to_install(tmp_path, monkeypatch):
    byte_level(tmp_path)
    for name in ("tokenizers", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    install = r"pip install -e .*\[rlhf\]"
    with pytest.raises(ImportError, match=install):
        load_tokenizer(tmp_path)
    with pytest.raises(ImportError, match=install):
        render_chat(CharTokenizer(ALPHABET, CHAT), MESSAGES)


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"model": {}}', "not a tokenizer of the tokenizers library"),
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path)


def test_vocabularies():
    class Sized:
        pad_id = None

        def __init__(self, vocab_size):
            self.vocab_size = vocab_size

    for fits in ((32, 32), (30, 64), (50257, 50257), (151665, 151936), (100015, 102400)):
        check_vocabulary(Sized(fits[0]), fits[1])
    for tokenizer, model in ((33, 32), (50257, 32000), (32000, 50257), (30, 32000)):
        with pytest.raises(TokenizerError, match=f"{tokenizer} ids and the model {model}"):
            check_vocabulary(Sized(tokenizer), model)


def test_lengths_of_an_earlier_call_are_ignored(tmp_path):
    """transformers saves the truncation and padding of the last call in the file."""
    made = byte_level(tmp_path)
    text = "the thesis of the theme, " * 3
    whole = made.encode(text).ids
    made.enable_truncation(8)
    made.enable_padding(length=200)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(made.encode(text).ids) == 200 and len(whole) > 8
    assert load_tokenizer(tmp_path).encode(text) == whole


def test_tokens_of_the_config_alone_are_tokens(tmp_path):
    made = byte_level(tmp_path)
    count = made.get_vocab_size()
    added = {
        "0": {"content": "<|endoftext|>", "special": True},
        str(count): {"content": "<|im_end|>", "special": True, "lstrip": False},
        str(count + 1): {"content": "<think>", "special": False},
    }
    write(tmp_path, tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": added})
    t = load_tokenizer(tmp_path)
    assert (t.eos_id, t.vocab_size) == (count, count + 2)
    assert t.encode("the<|im_end|>")[-1:] == [count]
    assert t.encode("<think>the") == [count + 1, *t.encode("the")]
    # Special tokens are left out of texts, others are not.
    assert t.decode([count + 1, *t.encode("the"), count]) == "<think>the"


@pytest.mark.parametrize(
    "added, message",
    [
        ([1], "added_tokens_decoder must be an object with a token for each id"),
        ({"x": {}}, "must be an object"),
        ({"5": 3}, "must be an object"),
        ({"5": {"special": True}}, "has no content for the id 5"),
        ({"999": {"content": "<z>"}}, "gives '<z>' the id 999, but in tokenizer.json the next"),
    ],
)
def test_damaged_added_tokens_are_refused(tmp_path, added, message):
    byte_level(tmp_path)
    write(tmp_path, tokenizer_config={"added_tokens_decoder": added})
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_a_padding_token_that_the_model_lacks_is_named(tmp_path):
    count = byte_level(tmp_path).get_vocab_size()
    added = {str(count): {"content": "<pad>", "special": True}}
    write(tmp_path, tokenizer_config={"pad_token": "<pad>", "added_tokens_decoder": added})
    tokenizer = load_tokenizer(tmp_path)
    check_vocabulary(tokenizer, count + 1)
    message = f"the padding token '<pad>' has the id {count}, and the model has {count} ids"
    with pytest.raises(TokenizerError, match=message):
        check_vocabulary(tokenizer, count)
