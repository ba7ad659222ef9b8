"""Reasoning tasks: the reward under jit and in Python, and the parts of the problems."""

import dataclasses
import functools
import itertools
import json
import random
import re
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.cli import rlhf as command
from ppo_jax.config import options
from ppo_jax.config.options import ConfigError
from ppo_jax.rlhf import tasks
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.hf_io import save_model
from ppo_jax.rlhf.tasks import expressions, reasoning_gym, split, tokens
from ppo_jax.rlhf.tokenizer import CharTokenizer

STRINGS = 10_000
MODULAR = "modular digits=1 modulus=5 operations=+"
PROMPTS = 256
# Tasks with a parser of their own each, and in the slow tests all tasks with all options.
FIRST = ["addition", "countdown", "brackets"]
OTHERS = [
    "subtraction signed=true",
    "modular",
    "sorting",
    "equation both_sides=true",
    "addition digits=8 reverse=false",
    "addition digits=1",
    "subtraction digits=3 reverse=false",
    "subtraction digits=8 signed=true reverse=false",
    "modular digits=4 modulus=9999 operations=*",
    "modular digits=1 modulus=5 operations=-",
    "countdown count=4 largest=99 target=999",
    "countdown operations=+- largest=5 target=10",
    "sorting count=20 digits=2",
    "sorting count=3 digits=4",
    "brackets length=64 depth=32 kinds=3",
    "brackets length=8 depth=3 kinds=1",
    "equation",
    "equation unknown=999 coefficient=99 constant=999 both_sides=true",
    "equation unknown=3 coefficient=2 constant=1",
]
ALL = [*FIRST, *(pytest.param(text, marks=pytest.mark.slow) for text in OTHERS)]


@functools.cache
def drawn(text: str, held_out: bool):
    """(task, prompts, worked answers, texts of the prompts, texts of the answers)."""
    task = tasks.from_text(text)

    @jax.jit
    def draw(key, held_out):
        prompts = task.problems(key, PROMPTS, held_out)
        return prompts, jax.vmap(task.solve)(prompts)

    assert "callback" not in str(jax.make_jaxpr(draw)(jax.random.key(0), held_out))
    prompts, answers = map(np.asarray, draw(jax.random.key(1), held_out))
    texts = [[tokens.decode(task.vocabulary, row) for row in rows] for rows in (prompts, answers)]
    return task, prompts, answers, *texts


def strings(task, answers: list[str]) -> list[str]:
    """Right answers, answers with one to three edits, and strings of random characters."""
    source = random.Random(0)
    character = lambda: source.choice(task.vocabulary)

    def one(number: int) -> str:
        text = answers[number % PROMPTS]
        if number % 10 == 0:
            return text
        if number % 10 < 4:
            return "".join(character() for _ in range(source.randrange(task.response_length + 3)))
        for _ in range(source.randint(1, 3)):
            place = source.randrange(len(text) + 1)
            rest = text[place + source.randint(0, 1) :]
            text = text[:place] + (character() if source.random() < 0.7 else "") + rest
        return text

    return [one(number) for number in range(STRINGS)]


def shown(task, row) -> str:
    """A response with its special tokens as their names; one that does not end is too long."""
    names = [*tokens.SPECIAL, *task.vocabulary]
    text, ended, _ = "".join(names[i] for i in row).partition("<eos>")
    return text if ended else "0" * task.response_length


@pytest.mark.parametrize("text", ALL)
def test_the_reward_under_jit_is_that_of_python(text):
    task, prompts, _, written, answers = drawn(text, False)
    responses = strings(task, answers)
    rows = np.stack(
        [tokens.response_row(task.vocabulary, x, task.response_length) for x in responses]
    )
    # One row in ten has special tokens among the characters.
    source = np.random.default_rng(0)
    some = source.integers(0, tokens.size(task.vocabulary), rows.shape)
    mixed = np.arange(STRINGS) % 10 == 9
    rows[mixed] = np.where(source.random(rows.shape) < 0.3, some, rows)[mixed]
    for number in np.flatnonzero(mixed):
        responses[number] = shown(task, rows[number])
    which = np.arange(STRINGS) % PROMPTS
    compiled = jax.jit(jax.vmap(task.reward)).lower(prompts[which], rows).compile()
    assert "callback" not in compiled.as_text()
    found = np.asarray(compiled(prompts[which], rows))
    expected = [task.python_reward(written[i], x) for i, x in zip(which, responses, strict=True)]
    assert found.dtype == np.float32 and set(found) == {0.0, 1.0}
    wrong = np.flatnonzero(found != expected)
    assert not len(wrong), [(written[which[i]], responses[i], found[i]) for i in wrong[:5]]
    assert np.all(found[::10] == 1.0)  # worked answers
    assert 0.02 < found[~(np.arange(STRINGS) % 10 == 0)].mean() < 0.6


@pytest.mark.parametrize("text", ALL)
def test_worked_answers_end_and_prompts_have_their_length(text):
    task, prompts, answers, *_ = drawn(text, True)
    assert prompts.shape == (PROMPTS, task.prompt_length)
    assert answers.shape == (PROMPTS, task.response_length)
    assert prompts.dtype == answers.dtype == np.int32
    assert np.all(prompts[:, 0] == tokens.BOS) and np.all(prompts[:, 1:] > tokens.EOS)
    assert np.all(np.sum(answers == tokens.EOS, axis=1) == 1)
    assert np.all((np.cumsum(answers == tokens.EOS, axis=1) > 0) == (answers <= tokens.EOS))
    assert len(np.unique(prompts, axis=0)) > 1
    vocabulary = task.vocabulary
    assert [*vocabulary] == sorted(set(vocabulary)) and tokens.size(vocabulary) <= 64
    tokenizer = CharTokenizer(vocabulary)
    assert tokenizer.encode(vocabulary) == tokens.encode(vocabulary, vocabulary)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == tokens.size(vocabulary)


# The same problem in another form: what the two parts may not share, in plain Python.
KEYS = {
    "addition": lambda text: sorted(re.findall(r"\d+", text)),
    "subtraction": lambda text: sorted(re.findall(r"\d+", text)),
    "modular": lambda text: (re.findall(r"[*+-]|%\d+", text), re.findall(r"\d+", text)[:2]),
    "countdown": lambda text: (sorted(re.findall(r"\d+(?=[,:])", text)), text.split(":")[1]),
    "sorting": lambda text: sorted(text[:-1].split(",")),
    "brackets": str,
    "equation": lambda text: _reduced(*map(int, re.findall(r"[+-]\d+", text))),
}


def _reduced(a, b, *rest):
    c, d = rest if len(rest) == 2 else (0, *rest)
    return (a - c, d - b) if a > c else (c - a, b - d)


@pytest.mark.parametrize("text", ALL[: len(FIRST) + 4])
def test_no_problem_of_training_is_held_out(text):
    key = KEYS[text.split()[0]]
    parts = [{str(key(x)) for x in drawn(text, part)[3]} for part in (False, True)]
    assert not parts[0] & parts[1] and min(map(len, parts)) > 30
    task = drawn(text, False)[0]
    if text == "countdown":  # the target is none of the numbers
        for *numbers, target in (re.findall(r"\d+", x) for x in drawn(text, False)[3]):
            assert int(target) not in map(int, numbers)
    if text.startswith("modular"):  # a + b and b + a, a * b and b * a
        pairs = [("12+34%07=", "34+12%07="), ("12*34%07=", "34*12%07=")]
        rows = [[jnp.asarray(_prompt(task, x)) for x in pair] for pair in pairs]
        assert all(np.array_equal(task._identity(a), task._identity(b)) for a, b in rows)


def _prompt(task, text):
    return np.asarray([tokens.BOS, *tokens.encode(task.vocabulary, text)], np.int32)


def test_the_parts_are_all_problems_and_one_in_four_is_held_out():
    """All one-digit sums are drawn sooner or later, each in one part with every key."""
    task = tasks.make("addition", digits=1)
    draw = jax.jit(lambda key, part: task.problems(key, 1000, part))
    found = []
    for part in (False, True):
        rows = [np.asarray(draw(jax.random.key(seed), part)) for seed in (0, 1)]
        found.append([{tokens.decode(task.vocabulary, x) for x in some} for some in rows])
        assert found[-1][0] == found[-1][1]
    training, held_out = (some[0] for some in found)
    everything = {f"{a}+{b}=" for a, b in itertools.product(range(10), repeat=2)}
    assert training | held_out == everything and not training & held_out
    hashed = jax.vmap(split.is_held_out)(jnp.asarray(list(np.ndindex(200, 200))))
    assert abs(float(jnp.mean(hashed)) - 0.25) < 0.01
    again = np.asarray(draw(jax.random.key(1), True))
    assert np.array_equal(again, np.asarray(draw(jax.random.key(1), True)))


@pytest.mark.slow
def test_both_parts_have_problems_at_every_smallest_difficulty():
    """`problems` would not end for a part without problems."""
    for kind in tasks.TASKS.values():
        fields = dataclasses.fields(kind)
        values = [
            [True, False]
            if f.type is bool
            else [f.metadata["bounds"].low]
            if f.metadata["bounds"].low is not None
            else f.metadata["bounds"].choices or [*"+-*"]
            for f in fields
        ]
        for chosen in itertools.product(*values):
            task = kind(**dict(zip((f.name for f in fields), chosen, strict=True)))
            draw = jax.jit(lambda key, part, task=task: task.problems(key, 8, part))
            for part in (False, True):
                assert draw(jax.random.key(0), part).shape == (8, task.prompt_length)


@pytest.mark.slow
def test_the_programs_do_not_grow_with_the_length():
    """A longer problem is more iterations of a scan, not more operations."""

    def operations(text):
        task = tasks.from_text(text)

        def everything(key):
            prompt = task.problems(key, 2, False)[0]
            return task.reward(prompt, task.solve(prompt))

        return str(jax.make_jaxpr(everything)(jax.random.key(0))).count(" = ")

    for short, long in (
        ("brackets length=8", "brackets length=64"),
        ("brackets depth=3", "brackets depth=32"),
        ("sorting count=3", "sorting count=20 digits=4"),
        ("addition digits=2", "addition digits=8"),
        ("countdown largest=9", "countdown largest=99 target=9999"),
    ):
        assert abs(operations(long) - operations(short)) <= 4, (short, long)


REWARDS = {
    "addition": [("12+34=", "640", 1), ("12+34=", "64", 1), ("12+34=", "046", 0),
                 ("12+34=", "", 0), ("12+34=", "6400", 0), ("99+99=", "891", 1)],
    "addition reverse=false": [("12+34=", "046", 1), ("12+34=", "46", 1), ("12+34=", "4+6", 0),
                               ("12+34=", "٤٦", 0), ("12+34=", "46=", 0)],
    "subtraction": [("46-12=", "43", 1), ("46-12=", "34", 0), ("46-12=", "-3", 0)],
    "subtraction signed=true": [("12-46=", "-43", 1), ("12-46=", "43", 0), ("12-12=", "-00", 1),
                                ("12-46=", "-", 0), ("12-46=", "4-3", 0)],
    "modular": [("37*21%13=", "10", 1), ("12-34%07=", "06", 1), ("12-34%07=", "6", 1),
                ("12+34%07=", "4", 1), ("12+34%07=", "11", 0)],
    "countdown": [("2,5,7:49=", "(2+5)*7", 1), ("2,5,7:49=", "7*(5+2)", 1),
                  ("2,5,7:49=", "7*7", 0), ("2,5,7:14=", "7*2", 1), ("2,5,7:07=", "7", 1),
                  ("2,5,7:49=", "(2+5*7", 0), ("2,5,7:03=", "7/2", 0), ("2,4,8:02=", "8/4", 1),
                  ("2,4,8:04=", "8/2", 1), ("2,4,8:01=", "8/(4*2)", 1), ("2,4,8:10=", "2--8", 0),
                  ("2,4,8:06=", "-2+8", 0), ("2,4,8:06=", "8-2", 1), ("2,4,8:48=", "48", 0),
                  ("2,4,8:06=", "08-02", 1), ("2,4,8:02=", "4-8+2", 0), ("2,4,8:02=", "(4-2)", 1),
                  ("5,5,7:25=", "5*5", 1), ("5,6,7:25=", "5*5", 0), ("2,4,8:06=", "8/(4-4)", 0)],
    "sorting": [("3,1,2,1=", "1,1,2,3", 1), ("3,1,2,1=", "1,2,3", 0), ("3,1,2,1=", "3,1,2,1", 0)],
    "brackets": [("([][()(()[=", "])])", 1), ("([][()(()[=", "]))]", 0), ("([][()(()[=", "", 0),
                 ("((()(()(()=", "))))", 1), ("([]()()()(=", "[])()", 0),
                 ("([]()()()(=", "[]))", 1)],
    "equation": [("+3x-7=+17,x=", "8", 1), ("+3x-7=+17,x=", "-8", 0), ("-2x+3=+09,x=", "-3", 1),
                 ("-2x+3=+09,x=", "+3", 0)],
}  # fmt: skip


@pytest.mark.parametrize("text", REWARDS)
def test_rewards_by_hand(text):
    task = tasks.from_text(text)
    for prompt, response, expected in REWARDS[text]:
        assert task.python_reward(prompt, response) == expected, (prompt, response)
    with pytest.raises(ValueError, match="is not a prompt of"):
        task.python_reward("1+1", "2")


def test_expressions_are_evaluated_exactly():
    """Random sums, products and brackets, against fractions."""
    source = random.Random(1)

    def expression(depth):
        if depth == 0 or source.random() < 0.2:
            return str(source.randint(0, 12))
        left, right = expression(depth - 1), expression(depth - 1)
        text = left + source.choice("+-*/") + right
        return f"({text})" if source.random() < 0.5 else text

    def exact(text):
        """The value, by Python's parser of expressions, with every division checked."""

        class Exact(Fraction):
            def __truediv__(self, other):
                result = Fraction(self) / Fraction(other)
                if result.denominator != 1:
                    raise ZeroDivisionError
                return Exact(result)

            __add__ = lambda a, b: Exact(Fraction(a) + Fraction(b))
            __sub__ = lambda a, b: Exact(Fraction(a) - Fraction(b))
            __mul__ = lambda a, b: Exact(Fraction(a) * Fraction(b))

        code = re.sub(r"(\d+)", lambda m: f"Exact({int(m[1])})", text)
        try:
            return int(eval(code, {"Exact": Exact}))
        except ZeroDivisionError:
            return None

    texts = [text for text in (expression(3) for _ in range(600)) if len(text) < 32]
    expected = [exact(text) for text in texts]
    assert sum(value is not None for value in expected) > 150 and None in expected
    assert [expressions.evaluate_text(text)[0] for text in texts] == expected
    vocabulary = "".join(sorted(expressions.CHARACTERS))
    rows = np.stack([tokens.response_row(vocabulary, text, 32) for text in texts])
    found = jax.jit(jax.vmap(lambda row: expressions.evaluate(row, vocabulary)))(rows)
    values = [int(v) if ok else None for v, ok in zip(found.value, found.valid, strict=True)]
    assert values == expected


def test_tasks_are_refused_with_what_is_allowed():
    for text, message in {
        "additon": "addition",
        "addition digit=2": "digits",
        "addition digits=0": "must be >= 1 and <= 8",
        "addition digits": "write digits=VALUE",
        "addition digits=two": "could not convert|invalid",
        "modular operations=+/": "must be some of",
        "countdown largest=60": "at least 120",
        "countdown operations=*": "one of",
    }.items():
        with pytest.raises(
            ConfigError, match=re.escape(message) if "|" not in message else message
        ):
            tasks.from_text(text)
    with pytest.raises(ConfigError, match="digits"):
        tasks.make("addition", digits=2.5)
    for name in tasks.TASKS:
        task = tasks.make(name)
        assert tasks.from_text(tasks.to_text(task)) == task and hash(task) == hash(tasks.make(name))


def test_records_are_rewarded_by_the_function_of_all_tasks():
    rows = tasks.records("addition digits=1", 20) + tasks.records(
        "addition digits=1", 20, held_out=True
    )
    columns = {name: [row[name] for row in rows] for name in ("prompt", "completion", "task")}
    found = tasks.reward(columns["prompt"], columns["completion"], task=columns["task"])
    assert found == [1.0] * 40
    assert not {*columns["prompt"][:20]} & {*columns["prompt"][20:]}
    assert rows[0]["task"] == "addition digits=1 reverse=true"
    wrong = tasks.reward(columns["prompt"], ["x"] * 40, task=columns["task"])
    assert wrong == [0.0] * 40
    conversations = [[{"role": "user", "content": x}] for x in columns["prompt"]]
    answers = [[{"role": "assistant", "content": x}] for x in columns["completion"]]
    assert tasks.reward(conversations, answers, task=columns["task"]) == found
    mixed = tasks.reward(["1+2=", "1+2%3="], ["3", "0"], task=["addition digits=1", MODULAR])
    assert mixed == [1.0, 1.0]


def test_special_tokens_that_a_text_does_not_show_are_rejected():
    """The reward of token ids in the stages is that of the verifier under jit."""
    task = tasks.make("addition", digits=1)
    tokenizer = CharTokenizer(task.vocabulary)
    two, one = tokenizer.encode("21")
    pad, bos, eos = tokens.PAD, tokens.BOS, tokens.EOS
    assert task.response_length == 3
    rows = [(two, one, eos), (one, one, eos), (pad, two, eos), (two, eos, pad), (two, eos, one),
            (two, pad, eos), (bos, two, eos), (two, pad, pad), (two, one, one)]  # fmt: skip
    expected = []
    for prompt, answers in (("9+3=", {(two, one, eos)}), ("1+1=", {(two, eos, pad)})):
        ids = jnp.asarray([bos, *tokenizer.encode(prompt)])
        under_jit = jax.jit(jax.vmap(lambda row, ids=ids: task.reward(ids, row)))(jnp.array(rows))
        kept = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        found = tasks.reward(
            [prompt] * len(rows), [*map(tokenizer.decode, kept)],
            task=["addition digits=1"] * len(rows), completion_ids=[*map(list, kept)],
        )  # fmt: skip
        assert found == under_jit.tolist()
        expected.append(sum(found))
        assert all(found[rows.index(row)] == 1 for row in answers)
    assert expected == [1, 2]  # the second is also answered by a row with a token after its end
    other = tasks.reward(["9+3="], ["21"], task=["addition digits=1"], completion_ids=[[900, 7]])
    assert other == [1.0]  # of another tokenizer


def test_an_answer_of_thousands_of_digits_is_wrong():
    for name in tasks.TASKS:
        task = tasks.make(name)
        prompt = tokens.decode(task.vocabulary, task.problems(jax.random.key(0), 1, False)[0])
        assert task.python_reward(prompt, "1" * 5000) == 0.0


def test_the_text_of_a_task_of_a_user_is_its_repr():
    @dataclasses.dataclass(frozen=True)
    class Own:
        digits: int = 2

    assert tasks.to_text(Own()) == repr(Own())


def test_problems_are_written_as_a_file_of_prompts(tmp_path, capsys):
    out = tmp_path / "train.jsonl"
    words = ["problems", "addition", "--difficulty", "digits=1", "--out", str(out)]
    assert command._refusing([*words, "--number", "20"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == tasks.records("addition digits=1", 20)
    assert "20 problems" in capsys.readouterr().out
    for more, message in {
        (): "--overwrite",
        ("--overwrite", "--difficulty", "digits=9"): "digits",
        ("--overwrite", "--task", "additon"): "addition",
    }.items():
        with pytest.raises(ConfigError, match=message):
            command._refusing([*words, *more])
    with pytest.raises(ConfigError, match="no folder .*; create it first"):
        command._refusing(["problems", "addition", "--out", str(tmp_path / "none" / "train.jsonl")])
    with pytest.raises(ConfigError, match="--out is required"):
        command._refusing(["problems", "addition"])


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The current directory with a model of the characters of modular arithmetic."""
    monkeypatch.chdir(tmp_path)
    tokenizer = CharTokenizer(tasks.make("modular").vocabulary)
    ends = {"max_positions": 64, "eos_ids": (tokenizer.eos_id,)}
    decoder = Decoder(small(tokenizer.vocab_size, 16, 1, 2, num_kv_heads=1, **ends))
    save_model(tmp_path / "model", decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(tmp_path / "model")


@pytest.mark.slow
def test_the_python_reward_in_the_stages_of_language_models(model, tmp_path):
    """Fine-tuning on worked answers, GRPO with the Python reward, and pass@1."""
    run = lambda *words: command._refusing([str(word) for word in words])
    small_numbers = ("--difficulty", "digits=1", "modulus=5", "operations=+")
    for name, more in (("train", ()), ("test", ("--held-out",))):
        assert run("problems", "modular", *small_numbers, "--number", 200, "--out", f"{name}.jsonl",
                   *more) == 0  # fmt: skip
    assert run("sft", "--model", "model", "--data", "train.jsonl", "--run-dir", "sft", "--updates",
               150, "--batch-size", 32, "--learning-rate", 0.01) == 0  # fmt: skip
    assert run("ppo", "--model", "sft", "--data", "train.jsonl", "--eval-data", "test.jsonl",
               "--algorithm", "grpo", "--group-size", 4, "--reward", "ppo_jax.rlhf.tasks:reward",
               "--updates", 3, "--num-prompts", 8, "--max-new-tokens", 2, "--samples", 8,
               "--run-dir", "grpo") == 0  # fmt: skip
    last = json.loads((tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0.1 < last["score"] <= 1.0
    out = "responses.jsonl"
    assert run("evaluate", "grpo", "--prompts", "test.jsonl", "--reward",
               "ppo_jax.rlhf.tasks:reward", "--threshold", 1, "--out", out,
               "--max-new-tokens", 2) == 0  # fmt: skip
    task = tasks.from_text(MODULAR)
    rows = [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]
    for row in rows:
        assert row["score"] == task.python_reward(row["prompt"], row["response"])
    assert {row["score"] for row in rows} == {0.0, 1.0}


def test_without_reasoning_gym_the_message_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning_gym._data.cache_clear()
    with pytest.raises(ImportError, match=r"install.*reasoning"):
        tasks.records("reasoning_gym:chain_sum", 2)


def test_problems_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    reasoning_gym._data.cache_clear()
    parts = [tasks.records("reasoning_gym:chain_sum", 30, held_out=x, seed=3) for x in (0, 1)]
    assert not {r["prompt"] for r in parts[0]} & {r["prompt"] for r in parts[1]}
    for rows in parts:
        assert len({row["prompt"] for row in rows}) == 30
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        prompts, answers = columns.pop("prompt"), columns.pop("completion")
        assert tasks.reward(prompts, answers, **columns) == [1.0] * 30
        tagged = [f"thinking <answer>{x}</answer>" for x in answers]
        assert tasks.reward(prompts, tagged, **columns) == [1.0] * 30
        assert max(tasks.reward(prompts, ["nothing"] * 30, **columns)) < 0.1
    (row,) = tasks.records("reasoning_gym:rush_hour", 1)  # an answer is any list of moves
    assert "completion" not in row
    for text, message in {
        "reasoning_gym:chain_sun": "chain_sum",
        "reasoning_gym:chain_sum min_terms": "NAME=VALUE",
        "reasoning_gym:chain_sum min_terms=-1": "not a configuration",
        "reasoning_gym:chain_sum terms=3": "not a configuration",
    }.items():
        with pytest.raises(ConfigError, match=message):
            tasks.records(text, 2)
    with pytest.raises(ConfigError, match="index"):
        tasks.reward(["1 + 1"], ["2"], task=["reasoning_gym:chain_sum"])


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parent.parent / "docs/reasoning_tasks.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(block, "reasoning_tasks.md", "exec"), {})
    (printed,) = re.findall(r"print\(.*\)  # (.*)", block)
    assert capsys.readouterr().out == printed + "\n"
    for name in tasks.TASKS:  # the table has each task with its options
        (row,) = re.findall(rf"^\| `{name}` \| `(.*?)` \| `(.*?)` \|.*\| (.*) \|$", page, re.M)
        task = tasks.make(name)
        assert task.python_reward(row[0], row[1]) == 1, name
        for field in dataclasses.fields(task):
            value = options.show(getattr(task, field.name)).lower()
            assert f"`{field.name}={value}`" in row[2], (name, field.name)
