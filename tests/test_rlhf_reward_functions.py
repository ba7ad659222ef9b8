"""Python reward functions: arguments by name, columns, messages, and several rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf import rollout, scoring
from ppo_jax.rlhf.formats import Prompt
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rlhf.reward_functions import Call, PromptTable
from ppo_jax.rlhf.roles import _metric_names
from ppo_jax.rlhf.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abcd")
USER = [{"role": "user", "content": "a"}]
TABLE = PromptTable(
    [Prompt("a", columns={"answer": "b", "n": 1}), Prompt(USER, columns={"answer": "c"})]
)
GIVEN = (["a", USER], ["b", "cd"], [[4], [5, 6]], TABLE.values([0, 1]))
MESSAGES = ["b", [{"role": "assistant", "content": "cd"}]]


def seen_by(function, columns=("answer", "n")):
    """The arguments that a function receives."""
    return Call(function, "f", columns)(*GIVEN)


def test_arguments_by_name():
    ours = {"prompts": ["a", USER], "completions": MESSAGES, "completion_ids": [[4], [5, 6]]}
    columns = {"answer": ["b", "c"], "n": [1, None]}
    assert seen_by(lambda **given: given) == ours | columns
    assert seen_by(lambda completions, **given: (completions, given)) == (
        MESSAGES, {k: v for k, v in (ours | columns).items() if k != "completions"}
    )  # fmt: skip
    assert seen_by(lambda answer, completions: (answer, completions)) == (["b", "c"], MESSAGES)
    assert seen_by(lambda prompts, completions, n=None, other=3: (prompts, n, other)) == (
        ["a", USER], [1, None], 3
    )  # fmt: skip


def test_arguments_by_place():
    """Functions of prompts and responses work as before, and may take columns as well."""
    assert seen_by(lambda prompts, responses: (prompts, responses)) == (["a", USER], ["b", "cd"])
    assert seen_by(lambda p, r, answer, **more: (r, answer, more)) == (
        ["b", "cd"], ["b", "c"], {"n": [1, None]}
    )  # fmt: skip
    assert seen_by(lambda p, r, *, n: n) == [1, None]
    assert seen_by(lambda *both: both) == (["a", USER], ["b", "cd"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completions, solution: 0, "f requires solution, but .* columns are answer, n"),
        (lambda p, r, solution: 0, "f requires solution"),
        (lambda completions: 0, None),
        (lambda texts: 0, "f must take prompts and completions"),
        (lambda: 0, "f must take prompts and completions"),
    ],
)
def test_missing_columns_are_refused_before_training(function, message):
    if message is None:
        Call(function, "f", ["answer", "n"])
        return
    with pytest.raises(ValueError, match=message):
        Call(function, "f", ["answer", "n"])


def inputs(row):
    tokens = jnp.array([TOKENIZER.encode("ab"), TOKENIZER.encode("ac")])[:, None]
    return TokenInputs(tokens, jnp.ones_like(tokens), row)


def test_columns_follow_their_prompts():
    """Rows with the same prompt have columns of their own."""
    table = PromptTable(
        [Prompt("a", columns={"answer": "b"}), Prompt("a", columns={"answer": "c"})]
    )
    assert table.add([Prompt("d", columns={"answer": "b", "level": 2})]) == 2
    assert table.columns == ["answer", "level"]
    seen = {}

    def right(prompts, completions, answer):
        seen["prompts"] = prompts
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    reward = scoring.from_function(right, TOKENIZER, table)
    for row, scores in (([0, 1], [1, 1]), ([1, 0], [0, 0]), ([2, 2], [1, 0])):
        found = jax.jit(reward.score, static_argnums=2)((), inputs(jnp.array(row)), 1)
        np.testing.assert_array_equal(found, scores)
    assert seen["prompts"] == ["d", "d"]


def test_several_rewards_are_logged_apart():
    first = scoring.from_function(
        lambda prompts, completions: [3.0, None], TOKENIZER, name="first", optional=True
    )
    second = scoring.from_function(lambda prompts, completions: [1.0, 2.0], TOKENIZER)
    both = scoring.weighted([first, second], [2.0, -1.0], ["first", "second"])
    assert both.names == ("first", "second")
    scores = jax.jit(both.score, static_argnums=2)(both.frozen, inputs(None), 1)
    np.testing.assert_allclose(scores.total, [5.0, -2.0])
    zeros = jnp.zeros((2, 1))
    said = rollout.Responses(None, *([zeros] * 10), score_parts=scores.parts)
    means = rollout.part_means(said)
    assert {k: float(x) for k, x in means.items()} == {"score_first": 3.0, "score_second": 1.5}
    state = rollout.init(jax.random.key(0), rollout.Settings(2, reward_names=both.names))
    assert {"score_first", "score_second"} <= {*state.metrics}


def test_none_alone_is_not_a_score():
    reward = scoring.from_function(lambda prompts, completions: [None, 1.0], TOKENIZER, name="f")
    with pytest.raises(Exception, match="f failed: TypeError"):
        jax.block_until_ready(jax.jit(reward.score, static_argnums=2)((), inputs(None), 1))


def test_names_of_metrics(tmp_path):
    (tmp_path / "my-model").mkdir()
    names = ["a:f", "b:f", "c:g", str(tmp_path / "my-model")]
    assert _metric_names(names) == ["f_1", "f_2", "g", "my_model"]


def test_a_column_may_have_the_name_of_an_argument_given_by_place():
    def two(prompt, response, **columns):
        return [len(columns) for _ in response]

    call = Call(two, "two", ["response", "answer"])
    given = {"response": ["x"], "answer": ["y"]}
    assert call(["p"], ["r"], [[1]], given) == [1]


def test_a_required_column_must_be_in_all_data():
    table = PromptTable([Prompt("a", "x.jsonl, line 1", columns={"answer": "1", "more": "2"})])
    table.add([Prompt("b", "y.jsonl, line 1", columns={"more": "3"})])
    assert table.common == ["more"] and table.columns == ["answer", "more"]
    with pytest.raises(ValueError, match="requires answer"):
        scoring.from_function(lambda prompts, responses, answer: [0.0], None, table)
    scoring.from_function(lambda prompts, responses, answer=None: [0.0], None, table)
