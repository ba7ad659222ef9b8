"""The text corpus of the default run, its reward rule, and the noise of its annotator."""

import sys
import types

import jax
import numpy as np
import pytest

from ppo_jax.rlhf import corpus, data
from ppo_jax.rlhf.formats import DataError, Preference


def test_every_python_has_enough_words():
    words = corpus.words()
    assert 2000 < len(words) < 6000
    assert words == sorted(set(words))
    assert {len(w) for w in words} == set(range(4, 14))
    assert set("".join(words)) == set("abcdefghijklmnopqrstuvwxyz")
    assert {"python", "expression", "exception", "object"} <= set(words)
    score = corpus.gold_score(words)
    # Scores vary, and the best words score far above the mean.
    assert 1.5 < score.mean() < 2.2
    assert 1.2 < score.std() < 1.6
    assert score.max() >= 4


def test_words_of_another_python(monkeypatch):
    topics = types.SimpleNamespace(topics={"a": "The SyntaxError isn't\n__iter__ of A-ÄB éclair"})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", topics)
    assert corpus.words() == ["clair", "error", "iter", "syntax"]
    assert corpus.words(shortest=1, longest=3) == ["isn", "of", "t", "the"]
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"--data names\.txt"):
        corpus.words()


def test_the_rule_by_hand():
    texts = ["evacuee", "aeiouaei", "cat", "", "hypothetically", "a"]
    np.testing.assert_array_equal(corpus.gold_score(texts), [4.5, 8.0, -1.5, -4.0, 1.0, -2.5])
    assert corpus.gold_score(texts).dtype == np.float32


def test_prompts_are_first_letters():
    words = corpus.words()
    prompts = corpus.first_letters(words)
    tokenizer = corpus.tokenizer_of(words)
    tokens, mask = data.prompt_arrays(prompts, tokenizer, 2)
    assert mask.all()
    assert (tokens[:, 0] == tokenizer.bos_id).all()
    assert [tokenizer.decode(row) for row in tokens] == [w[0] for w in words]
    assert tokenizer.vocab_size == 29


def test_the_judge_errs_as_bradley_and_terry_say():
    difference = np.repeat(np.float32([-30.0, -1.0, 0.0, 2.0, 30.0]), 20_000)
    wins = corpus.bradley_terry(jax.random.key(0), difference + 1.0, np.ones_like(difference))
    share = np.asarray(wins).reshape(5, -1).mean(axis=1)
    np.testing.assert_allclose(share, 1 / (1 + np.exp([30.0, 1.0, 0.0, -2.0, -30.0])), atol=0.02)


def test_preferences():
    """For a large difference, the annotator is right; for none, it is right every second time."""
    count = 400
    prompts = ["a"] * count
    good, bad, same = ["eiouaei"] * count, ["x" * 13] * count, ["eiouaie"] * count
    key = jax.random.key(1)
    expected = Preference("a", good[0], bad[0], 0.0, "pair 1")
    assert corpus.noisy_preferences(key, prompts, good, bad)[0] == expected
    assert corpus.noisy_preferences(key, prompts, bad, good)[0] == expected
    chosen = [p.chosen for p in corpus.noisy_preferences(key, prompts, good, same)]
    assert 0.4 < chosen.count(good[0]) / count < 0.6
