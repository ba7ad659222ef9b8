"""Datasets: equal records from all formats, tokenised rows, and refusal of invalid data."""

import gzip
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_jax.rlhf import chat, data, formats, scoring
from ppo_jax.rlhf.formats import DataError, Example, Preference, Prompt, common_prompt
from ppo_jax.rlhf.tokenizer import CharTokenizer, TokenizerError, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz <>\n", TEMPLATE)
PAD, BOS, EOS = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def file_of(folder, *lines, name="x.jsonl"):
    path = folder / name
    path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    return path


def without_place(records):
    """Examples without their places, and prompts without their other columns."""
    plain = [r._replace(where="") for r in records]
    return [r._replace(columns={}) if isinstance(r, Prompt) else r for r in plain]


def ids(text):
    return TOKENIZER.encode(text)


def rows(tokens, mask):
    return [list(t[m]) for t, m in zip(tokens, mask, strict=True)]


FORMATS = [
    ("sft", {"text": "ab"}, Example("", "ab")),
    ("sft", {"prompt": "a", "completion": "b"}, Example("a", "b")),
    ("sft", {"prompt": "", "completion": "b"}, Example("", "b")),
    (
        "sft",
        {"prompt": [user("a")], "completion": [assistant("b")]},
        Example([user("a")], [assistant("b")]),
    ),
    ("sft", {"messages": [user("a"), assistant("b")]}, Example([], [user("a"), assistant("b")])),
    ("sft", {"prompt": "a", "chosen": "b", "rejected": "c"}, Example("a", "b")),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, Preference("a", "b", "c")),
    (
        "preference",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2, "id": 7},
        Preference("a", "b", "c", 2.0),
    ),
    ("preference", {"chosen": "say b", "rejected": "say c"}, Preference("say", " b", " c")),
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    (
        "preference",
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    ("prompt", {"prompt": "a"}, Prompt("a")),
    ("prompt", {"prompt": "a", "completion": "b"}, Prompt("a")),
    ("prompt", {"prompt": [user("a")]}, Prompt([user("a")])),
    ("prompt", {"messages": [user("a"), assistant("b")]}, Prompt([user("a")])),
    ("prompt", {"chosen": "say b", "rejected": "say c"}, Prompt("say")),
    # UltraFeedback: a prompt that both conversations repeat.
    (
        "preference",
        {
            "prompt": "a",
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("c")],
        },
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    (
        "prompt",
        {
            "prompt": "a",
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("c")],
        },
        Prompt([user("a")]),
    ),
    (
        "sft",
        {
            "prompt": "a",
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("c")],
        },
        Example([user("a")], [assistant("b")]),
    ),
    # The same two answers: the last message stays an answer.
    (
        "preference",
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        Preference([user("a")], [assistant("b")], [assistant("b")]),
    ),
    (
        "preference",
        {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]},
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    (
        "preference",
        {"prompt": [user("a")], "chosen": "b", "rejected": "c"},
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    (
        "preference",
        {
            "prompt": [user("a")],
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("c")],
        },
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    # ShareGPT
    (
        "sft",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        Example([], [user("a"), assistant("b")]),
    ),
    (
        "prompt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        Prompt([user("a")]),
    ),
    (
        "sft",
        {
            "system": "c",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        Example([], [{"role": "system", "content": "c"}, user("a"), assistant("b")]),
    ),
    (
        "preference",
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        Preference([user("a")], [assistant("b")], [assistant("c")]),
    ),
    (
        "sft",
        {
            "prompt": [{"from": "human", "value": "a"}],
            "completion": [{"from": "gpt", "value": "b"}],
        },
        Example([user("a")], [assistant("b")]),
    ),
    (
        "sft",
        {"prompt": "a", "completion": [assistant("b")]},
        Example([user("a")], [assistant("b")]),
    ),
    ("sft", {"prompt": [user("a")], "completion": "b"}, Example([user("a")], [assistant("b")])),
    (
        "sft",
        {
            "messages": [user([{"type": "text", "text": "a"}]), assistant("b")],
            "tools": '[{"x": 1}]',
        },
        Example([], [user("a"), assistant("b")], template={"tools": [{"x": 1}]}),
    ),
    (
        "sft",
        {
            "messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [1]}],
            "tools": None,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        Example(
            [],
            [user("a"), {"role": "assistant", "content": "", "tool_calls": [1]}],
            template={"enable_thinking": False},
        ),
    ),
]


@pytest.mark.parametrize(("kind", "line", "record"), FORMATS)
def test_formats(tmp_path, kind, line, record):
    assert without_place(formats.read(file_of(tmp_path, line), kind)) == [record]


def test_lines_are_counted_with_the_blank_ones(tmp_path):
    path = file_of(tmp_path, {"text": "a"}, "\n", {"text": "b"})
    assert [r.where for r in formats.read(path, "sft")] == [f"{path}, line 1", f"{path}, line 3"]


def test_text_files(tmp_path):
    path = file_of(tmp_path, "emma\r\n", "\n", "olivia", name="names.txt")
    assert without_place(formats.read(path, "sft")) == [Example("", "emma"), Example("", "olivia")]
    assert without_place(formats.read(path, "prompt")) == [Prompt("emma"), Prompt("olivia")]
    assert without_place(formats.from_lines(["emma", "olivia"])) == without_place(
        formats.read(path, "sft")
    )


def test_packed_files(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"text": "ab"}\n')
    assert without_place(formats.read(path, "sft")) == [Example("", "ab")]
    path.write_bytes(b'{"text": "ab"}')
    with pytest.raises(DataError, match=r"x\.jsonl\.gz cannot be read"):
        formats.read(path, "sft")


BAD = [
    ("sft", '{"text": "a"', "not JSON"),
    ("sft", "[1]\n", "a list; expected an object per line"),
    ("sft", {"txt": "a"}, "the keys are txt; expected"),
    ("sft", {}, "the keys are none"),
    ("sft", {"text": 3}, "text must be a string or a list"),
    ("sft", {"text": [user("a")]}, "use messages for a conversation"),
    ("sft", {"messages": []}, "messages must be a string or a list"),
    ("sft", {"messages": [{"role": "user"}]}, "messages must be"),
    ("sft", {"messages": [user([{"type": "image"}])]}, "messages must be"),
    ("sft", {"prompt": "a", "completion": 3}, "completion must be a string or a list"),
    ("sft", {"messages": [user("a")], "tools": 3}, "tools must be a list, not 3"),
    ("sft", {"messages": [user("a")], "chat_template_kwargs": [1]}, "must be an object"),
    ("prompt", {"messages": [assistant("b")]}, "all messages are the assistant's"),
    ("preference", {"prompt": "a", "completion": "b"}, "keys are prompt, completion; expected"),
    ("preference", {"chosen": "a", "rejected": "b", "margin": "1"}, "margin must be a finite"),
    ("preference", '{"chosen": "a", "rejected": "b", "margin": NaN}\n', "margin must be a finite"),
    ("preference", {"chosen": "a", "rejected": "b", "margin": 10**400}, "margin must be a finite"),
    ("preference", {"chosen": "a", "rejected": "b", "margin": 1e39}, "margin must be a finite"),
    ("preference", {"chosen": "a", "rejected": "b", "margin": [1]}, "margin must be a finite"),
    ("preference", {"chosen": "a", "rejected": None}, "rejected must be a string or a list"),
    ("prompt", {"text": "a"}, 'the keys are text; expected an object per line, {"prompt"'),
]


@pytest.mark.parametrize(("kind", "line", "message"), BAD)
def test_bad_lines_are_named(tmp_path, kind, line, message):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = file_of(tmp_path, good, line)
    with pytest.raises(DataError, match=message) as error:
        formats.read(path, kind)
    assert f"{path}, line 2: " in str(error.value)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        formats.read(tmp_path / "none.jsonl", "sft")
    with pytest.raises(DataError, match="has no examples; expected an object per line"):
        formats.read(file_of(tmp_path, "\n"), "prompt")
    with pytest.raises(DataError, match="holds no preferences"):
        formats.read(file_of(tmp_path, "a", name="x.txt"), "preference")
    with pytest.raises(DataError, match="did you mean preference"):
        formats.read(file_of(tmp_path, {"text": "a"}), "preferences")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        formats.read(path, "sft")


@settings(max_examples=100, deadline=None)
@given(st.text("ab ", max_size=6), st.text("ab ", max_size=6))
def test_common_prompts(chosen, rejected):
    prompt, left, right = common_prompt(chosen, rejected)
    assert (prompt + left, prompt + right) == (chosen, rejected)
    assert left[:1] != right[:1] or left[:1] in ("", " ")


def test_prompts_are_left_padded():
    tokens, mask = data.prompt_arrays([Prompt("ab"), Prompt("a"), Prompt("")], TOKENIZER, 8)
    a, b = ids("ab")
    np.testing.assert_array_equal(tokens, [[BOS, a, b], [PAD, BOS, a], [PAD, PAD, BOS]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)


def test_completions_are_right_padded_and_alone_count():
    examples = [Example("a", "bc"), Example("", "b"), Example("ab", "")]
    tokens, mask, weight = data.sft_arrays(examples, TOKENIZER, 8)
    a, b, c = ids("abc")
    np.testing.assert_array_equal(
        tokens, [[BOS, a, b, c, EOS], [BOS, b, EOS, PAD, PAD], [BOS, a, b, EOS, PAD]]
    )
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(weight, [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])


def test_preferences_share_a_width():
    pairs = data.preference_arrays(
        [Preference("a", "b", "ccc", 0.5), Preference("", "", "a")], TOKENIZER, 8
    )
    assert pairs.chosen.tokens.shape == pairs.rejected.tokens.shape == (2, 6)
    assert rows(*pairs.chosen) == [[BOS, *ids("ab"), EOS], [BOS, EOS]]
    assert rows(*pairs.rejected) == [[BOS, *ids("accc"), EOS], [BOS, *ids("a"), EOS]]
    np.testing.assert_array_equal(pairs.margin, [0.5, 0.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text("abc", max_size=5), st.text("abc", max_size=5)), min_size=1))
def test_rows_hold_their_texts(texts):
    """The weights cover exactly the completion and its EOS; prompt and completion are recovered."""
    examples = [Example(p, c) for p, c in texts]
    tokens, mask, weight = data.sft_arrays(examples, TOKENIZER, 20)
    prompts = data.prompt_arrays([Prompt(p) for p, _ in texts], TOKENIZER, 20)
    for i, (prompt, completion) in enumerate(texts):
        assert list(tokens[i][weight[i] > 0]) == [*ids(completion), EOS]
        assert list(tokens[i][mask[i]]) == [BOS, *ids(prompt + completion), EOS]
        assert rows(*prompts)[i] == [BOS, *ids(prompt)]


class NoPad(CharTokenizer):
    """A tokenizer like GPT-2's: one special token for all purposes, and no prefix."""

    def __init__(self, eos_id=EOS):
        super().__init__("abc")
        self.bos_id = self.eos_id = self.pad_id = eos_id
        self.prefix = []


def test_padding_with_eos():
    tokens, mask, weight = data.sft_arrays([Example("", "ab"), Example("a", "")], NoPad(), 8)
    assert (tokens[1] == EOS).sum() == 2
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 0]])
    # Without a prefix, no position predicts the first token.
    np.testing.assert_array_equal(weight, [[0, 1, 1], [0, 1, 0]])
    with pytest.raises(DataError, match="line 3: the prompt has no tokens"):
        data.prompt_arrays([Prompt("", "line 3")], NoPad(), 8)


def test_an_eos_that_is_written_out_is_not_doubled():
    _, mask, _ = data.sft_arrays([Example("a", "b<eos>"), Example("a", "b<eos>c")], TOKENIZER, 8)
    np.testing.assert_array_equal(mask.sum(1), [4, 6])


def test_conversations():
    """Text after the last EOS of a turn belongs to the template, not to the policy."""
    prompt, answer = [user("a")], [assistant("b")]
    example, whole = Example(prompt, answer), Example([], prompt + answer)
    tokens, mask, weight = data.sft_arrays([example, whole], TOKENIZER, 40)
    start = ids("<user>a\n<assistant>")
    assert rows(tokens, mask) == [[*start, *ids("b"), EOS]] * 2
    assert list(tokens[0][weight[0] > 0]) == [*ids("b"), EOS]
    assert weight[1].sum() == mask[1].sum() - 1
    assert rows(*data.prompt_arrays([Prompt(prompt)], TOKENIZER, 40)) == [start]
    pairs = data.preference_arrays([Preference(prompt, answer, [assistant("cc")])], TOKENIZER, 40)
    assert rows(*pairs.rejected) == [[*start, *ids("cc"), EOS]]


def test_conversations_that_cannot_be_encoded():
    prompt = Prompt([user("a")], "line 5")
    with pytest.raises(DataError, match="line 5: .* no chat template"):
        data.prompt_arrays([prompt], CharTokenizer("a"), 40)
    with pytest.raises(DataError, match="must not end with the assistant's turn"):
        data.prompt_arrays([Prompt([user("a"), assistant("b")])], TOKENIZER, 40)
    forgetful = CharTokenizer("ab<>\n", "{{ messages[-1]['content'] }}")
    with pytest.raises(DataError, match="renders the prompt differently"):
        data.sft_arrays([Example([user("a")], [assistant("b")])], forgetful, 40)


def test_texts_that_are_too_long():
    prompt, example = Prompt("abcdef", "line 2"), Example("abc", "def", "line 4")
    with pytest.raises(DataError, match="line 2: the prompt has 7 tokens, at most 4 fit"):
        data.prompt_arrays([prompt], TOKENIZER, 4)
    tokens, _ = data.prompt_arrays([prompt], TOKENIZER, 4, truncate=True)
    np.testing.assert_array_equal(tokens, [[BOS, *ids("def")]])
    with pytest.raises(DataError, match="line 4: the text has 8 tokens, at most 6 fit"):
        data.sft_arrays([example], TOKENIZER, 6)
    # BOS a b c | d e f EOS: the prompt is shortened to at least half of the row, then the
    # completion.
    for most, kept, weight_sum in (
        (8, "abcdef", 4),
        (7, "bcdef", 4),
        (6, "bcdef", 3),
        (4, "cde", 2),
    ):
        tokens, _, weight = data.sft_arrays([example], TOKENIZER, most, truncate=True)
        np.testing.assert_array_equal(tokens[0], [BOS, *ids(kept), EOS][:most], err_msg=str(most))
        assert weight.sum() == weight_sum
    pair = Preference("abc", "d", "efa")
    chosen, rejected, _ = data.preference_arrays([pair], TOKENIZER, 6, truncate=True)
    assert rows(*chosen) == [[BOS, *ids("bcd"), EOS]]
    assert rows(*rejected) == [[BOS, *ids("bcefa")]]


def test_nothing_to_do():
    for arrays in (data.prompt_arrays, data.sft_arrays, data.preference_arrays):
        with pytest.raises(DataError, match="no examples"):
            arrays([], TOKENIZER, 8)
    with pytest.raises(DataError, match="no examples"):
        formats.from_lines([])
    with pytest.raises(DataError, match="no EOS"):
        data.sft_arrays([Example("", "a")], NoPad(None), 8)
    with pytest.raises(DataError, match="line 9: the character 'é'"):
        data.prompt_arrays([Prompt("é", "line 9")], TOKENIZER, 8)


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['[{"text": "ab"}, {"text": "c"}]', '[\n {"text": "ab"},\n {"text": "c"}\n]\n']
)
def test_json_arrays(tmp_path, text):
    for name in ("x.json", "x.jsonl"):
        found = formats.read(file_of(tmp_path, text, name=name), "sft")
        assert without_place(found) == [Example("", "ab"), Example("", "c")]
        assert found[1].where == f"{tmp_path / name}, record 2"


def test_parquet_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pyarrow, which is not installed.*ppo_jax\[parquet\]"):
        formats.read(tmp_path / "x.parquet", "sft")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    turns = [user("a"), assistant("b")]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns, "n": 1}]), path)
    found = formats.read(path, "sft")
    assert without_place(found) == [Example([], turns)]
    assert found[0].where == f"{path}, row 1"
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        formats.read(path, "sft")


def test_prompts_keep_their_columns(tmp_path):
    path = file_of(tmp_path, {"prompt": "a", "answer": 3, "tools": [{"x": 1}]})
    (found,) = formats.read(path, "prompt", {"enable_thinking": False})
    assert found.columns == {"answer": 3, "tools": [{"x": 1}]}
    assert found.template == {"enable_thinking": False, "tools": [{"x": 1}]}


def test_arguments_of_the_template():
    words = ["enable_thinking=false", "date=today", "n=3"]
    assert formats.arguments(words) == {"enable_thinking": False, "date": "today", "n": 3}
    for word in ("enable_thinking", "a b=1", "=1"):
        with pytest.raises(DataError, match="must be NAME=VALUE"):
            formats.arguments([word])


# --- together, and cut where the prompt ends ----------------------------------------------------


class Joining(CharTokenizer):
    """A tokenizer that puts a space before each text, as Llama 2's, and has a token "bc"."""

    def __init__(self):
        super().__init__(" abcd")
        self.ids["bc"] = self.vocab_size
        self.tokens.append("bc")
        self.vocab_size += 1

    def encode(self, text):
        text = f" {text}" if text else text
        return [self.ids[piece] for piece in re.findall("bc|.", text)]

    def decode(self, ids):
        text = "".join(self.tokens[i] for i in ids if i > EOS)
        return text[1:] if text.startswith(" ") else text


def test_prompt_and_completion_are_encoded_together():
    tokenizer = Joining()
    pieces = lambda row: [tokenizer.tokens[i] for i in row]
    tokens, mask, weight = data.sft_arrays(
        [Example("a", " d"), Example("ab", "cd"), Example("", "a"), Example("a", "")], tokenizer, 9
    )
    whole = [pieces(row) for row in rows(tokens, mask)]
    assert whole[0] == ["<bos>", " ", "a", " ", "d", "<eos>"]
    assert whole[1] == ["<bos>", " ", "a", "bc", "d", "<eos>"]
    said = [pieces(t[w > 0]) for t, w in zip(tokens, weight, strict=True)]
    # A token with characters of both belongs to the completion.
    assert said == [[" ", "d", "<eos>"], ["bc", "d", "<eos>"], [" ", "a", "<eos>"], ["<eos>"]]
    pairs = data.preference_arrays([Preference("ab", "cd", " d")], tokenizer, 9)
    assert pieces(rows(*pairs.chosen)[0]) == ["<bos>", " ", "a", "bc", "d", "<eos>"]
    assert pieces(rows(*pairs.rejected)[0]) == ["<bos>", " ", "a", "b", " ", "d", "<eos>"]


def test_a_response_keeps_the_space_before_it():
    tokenizer = Joining()
    prompt, response = tokenizer.encode("a"), [tokenizer.ids[" "], tokenizer.ids["d"]]
    assert tokenizer.decode(response) == "d"
    assert scoring.continuation(tokenizer, prompt, response) == " d"
    tokens = np.array([[*prompt, *response]])
    assert scoring.texts_of(tokens, np.ones_like(tokens), 2, tokenizer) == (["a"], [" d"])


# --- the assistant's turns ----------------------------------------------------------------------

MARKED = TEMPLATE.replace(
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}",
)


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by turns", "by blocks"])
def test_only_the_assistant_is_predicted(template):
    tokenizer = CharTokenizer(TOKENIZER.tokens[3:], template)
    turns = [user("a"), assistant("bc"), user("d"), assistant("e")]
    for example in (Example([], turns), Example(turns[:2], turns[2:])):
        tokens, mask, weight = data.sft_arrays([example], tokenizer, 60, assistant_only=True)
        whole = ids("<user>a\n<assistant>bc<eos>\n<user>d\n<assistant>e<eos>")
        assert rows(tokens, mask) == [whole]
        said = ids("e<eos>") if example.prompt else ids("bc<eos>e<eos>")
        assert list(tokens[0][weight[0] > 0]) == said
    with pytest.raises(DataError, match="line 3: assistant_only_loss requires conversations"):
        data.sft_arrays([Example("", "a", "line 3")], tokenizer, 60, assistant_only=True)


def test_turns_of_a_template_without_end_tokens():
    plain = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    tokenizer = CharTokenizer(TOKENIZER.tokens[3:], plain)
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    tokens, _, weight = data.sft_arrays([Example([], turns)], tokenizer, 60, assistant_only=True)
    said = tokenizer.decode(tokens[0][weight[0] > 0])
    # Without a header that the template writes for a prompt, the turn begins with its own.
    assert said == "<assistant>b\n<assistant>d\n"
    assert tokens[0][weight[0] > 0][-1] == EOS


def test_thinking_templates():
    """The header of a turn may open a tag that the whole conversation does not repeat."""
    thinking = TEMPLATE.replace(
        "%}<assistant>{", "%}<assistant>{% if think is not false %}<t>{% endif %}{"
    )
    tokenizer = CharTokenizer(TOKENIZER.tokens[3:], thinking)
    example = Example([user("a")], [assistant("b")])
    tokens, _, weight = data.sft_arrays([example], tokenizer, 60)
    assert list(tokens[0][weight[0] > 0]) == ids("b<eos>")
    prompt = Prompt([user("a")])
    for template, header in (({}, "<assistant><t>"), ({"think": False}, "<assistant>")):
        found = data.prompt_arrays([prompt._replace(template=template)], tokenizer, 60)
        assert rows(*found) == [ids(f"<user>a\n{header}")]


# --- templates ----------------------------------------------------------------------------------


def rendered(template, **given):
    return chat.render_chat(CharTokenizer("a", template), [user("<é>")], template=given)


def test_names_in_templates():
    assert rendered("{%- if tools is not none %}X{%- endif %}{{ documents is none }}") == "True"
    assert rendered("{{ tools[0].x }}", tools=[{"x": 3}]) == "3"
    assert rendered("{{ messages[0]|tojson(ensure_ascii=true) }}") == (
        '{"role": "user", "content": "<\\u00e9>"}'
    )
    assert rendered("{{ messages[0].content|tojson }}") == '"<é>"'
    assert (
        rendered("{{ {'b': 1, 'a': 2}|tojson(indent=1, sort_keys=true) }}")
        == '{\n "a": 2,\n "b": 1\n}'
    )
    assert rendered("{{ [1, 2]|tojson(separators=(',', ':')) }}") == "[1,2]"
    assert rendered("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}") == "a1"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\n system') }}", "refuses these messages: no system"),
        ("{% for %}", "cannot be rendered: "),
        ("{{ 1 / 0 }}", "cannot be rendered: division by zero"),
        ("{{ messages + 1 }}", "cannot be rendered: can only concatenate list"),
        ("{{ 1 }}{{ messages.x.y }}", "cannot be rendered: .* has no attribute 'x'"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered: .*unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "rendered: maximum recursion"),
        ("{{ 'a' * 10**11 }}", "cannot be rendered: MemoryError"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}",
            "longer than 4,000,000 characters",
        ),
        ("\ufdd0", "noncharacter"),
    ],
)  # fmt: skip
def test_errors_of_templates_are_one_line(template, message):
    with pytest.raises(TokenizerError, match=message) as error:
        rendered(template)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 7 ** (10 ** 9) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
    ids=["power", "loops"],
)
def test_templates_that_do_not_end(monkeypatch, template):
    """Such a template ends its process after the limit, and the next one is rendered in another."""
    path = chat.template_process.__file__
    short = f"exec(open({path!r}).read().replace('SECONDS = 10', 'SECONDS = 1'))"
    chat._process().close()
    monkeypatch.setattr(chat, "_program", lambda: ["-c", short])
    with pytest.raises(TokenizerError, match="needs more than 10 seconds"):
        rendered(template)
    monkeypatch.undo()
    assert rendered("{{ 1 }}") == "1"


def test_templates_of_another_type(tmp_path):
    TOKENIZER.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    for wrong in ([1], 3, {"default": 1}, [{"name": "default"}], [{"name": "a", "template": 1}]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": wrong}))
        with pytest.raises(TokenizerError, match="chat_template must be a text or a list of"):
            load_tokenizer(tmp_path)
    named = [{"name": "default", "template": "a"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    assert load_tokenizer(tmp_path).chat_template == "a"


def test_a_tokenizer_like_that_of_llama_2(tmp_path):
    """Its normaliser puts a space before each text, and its decoder removes it again."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<s>", "</s>", "▁", "▁hello", "▁world", ",", "▁how", "h", "o", "w"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>")
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex("▁[a-z]*|[a-z]+|,"), "isolated"
    )
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(),
         tokenizers.decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    )
    tokenizer = load_tokenizer(tmp_path)
    example = Example("hello world,", " how")
    tokens, _, weight = data.sft_arrays([example], tokenizer, 20)
    assert [words[i] for i in tokens[0]] == ["<s>", "▁hello", "▁world", ",", "▁how", "</s>"]
    assert [words[i] for i in tokens[0][weight[0] > 0]] == ["▁how", "</s>"]
    prompt = tokenizer.encode("hello world,")
    assert tokenizer.decode([words.index("▁how")]) == "how"
    assert scoring.continuation(tokenizer, prompt, [words.index("▁how")]) == " how"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        MARKED,
        "{%- if tools is not none %}{{ tools|tojson(indent=2) }}{% endif %}{{ documents }}"
        "{% for m in messages %}{{ m|tojson(ensure_ascii=True, separators=(',', ':')) }}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ think }}",
    ],
)
def test_templates_as_in_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    ours = CharTokenizer(TOKENIZER.tokens[3:], template)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [user("a"), assistant("bc"), user("d"), assistant("e")]
    for extra in ({}, {"tools": [{"type": "function"}], "think": False}):
        for count, prompt in ((4, False), (3, True)):
            wanted = theirs.apply_chat_template(
                turns[:count], tokenize=False, add_generation_prompt=prompt, **extra
            )
            assert chat.render_chat(ours, turns[:count], prompt, extra) == wanted
    if template == MARKED:
        wanted = theirs.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens, mask, weight = data.sft_arrays([Example([], turns)], ours, 60, assistant_only=True)
        count = mask.sum()
        assert list(tokens[0][:count]) == wanted["input_ids"][:count]
        assert list(weight[0][:count]) == wanted["assistant_masks"][:count]
