"""Held-out data, pass@k, and the commands that respond to prompts and score responses."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.cli import rlhf as command
from ppo_jax.rlhf import evaluation, held_out, respond, stages, supervised
from ppo_jax.rlhf import folder as stage_folder
from ppo_jax.rlhf.data import Tokens, sft_arrays
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.formats import Example, Preference, Prompt
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_io import save_model
from ppo_jax.rlhf.rollout import Responses
from ppo_jax.rlhf.tokenizer import CharTokenizer

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def model():
    """A decoder with parameters and a tokenizer."""
    tokenizer = CharTokenizer(LETTERS)
    sizes = {"num_kv_heads": 1, "max_positions": 32, "eos_ids": (tokenizer.eos_id,)}
    decoder = Decoder(small(tokenizer.vocab_size, 16, 1, 2, **sizes))
    return decoder, decoder.init(jax.random.key(0)), tokenizer


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A model folder with prompts and a reward function."""
    root = tmp_path_factory.mktemp("evaluation")
    decoder, params, tokenizer = model
    (root / "model").mkdir()
    save_model(root / "model", decoder, params)
    tokenizer.save(root / "model")
    prompts = [{"prompt": LETTERS[: 1 + k % 3] + LETTERS[k]} for k in range(5)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (root / "texts.txt").write_text("\n".join(a + b for a in LETTERS for b in LETTERS))
    (root / "letters.py").write_text(
        "def a_or_b(prompts, responses):\n"
        "    return [float(r[:1] in ('a', 'b', 'c')) for r in responses]\n"
    )
    return root


def run(*words):
    return command._refusing([str(word) for word in words])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("samples", "correct", "k", "value"),
    [
        (5, 2, 1, 0.4),  # the fraction of correct responses
        (5, 2, 2, 0.7),  # 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10
        (4, 1, 2, 0.5),  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
        (10, 3, 5, 1 - 21 / 252),  # 1 - C(7, 5) / C(10, 5)
        (4, 3, 2, 1.0),  # any two responses include a correct one
        (4, 0, 4, 0.0),
    ],
)
def test_pass_at_k_by_hand(samples, correct, k, value):
    assert evaluation.pass_at_k(samples, correct, k) == pytest.approx(value, abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Its mean over all draws of n responses is 1 - (1 - p)^k; 1 - (1 - c/n)^k would be biased."""
    p, n, k = 0.3, 6, 3
    counts = range(n + 1)
    binomial = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in counts]
    mean = sum(w * evaluation.pass_at_k(n, c, k) for w, c in zip(binomial, counts, strict=True))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_of_impossible_numbers_is_refused(samples, correct, k):
    with pytest.raises(ValueError, match="is not defined"):
        evaluation.pass_at_k(samples, correct, k)


def test_statistics_of_scores_by_hand():
    scores = [[1.0, 3.0], [5.0, 7.0]]
    # Means of prompts: 2 and 6; s = sqrt(8), SE = sqrt(8) / sqrt(2).
    assert evaluation.mean_over_prompts(scores) == pytest.approx((4.0, 2.0))
    found = evaluation.of_scores(scores, threshold=3.0)
    assert found["pass@1"] == pytest.approx(0.75) and found["pass@2"] == pytest.approx(1.0)
    assert "pass@1" not in evaluation.of_scores(scores)


def test_a_split_has_no_prompt_on_both_sides():
    pairs = [Preference(f"p{k // 4}", f"c{k}", f"r{k}") for k in range(200)]
    training, kept = held_out.split(pairs, 0.1)
    assert len(training) + len(kept.examples) == 200 and len(kept.examples) == 20
    assert not {x.prompt for x in training} & {x.prompt for x in kept.examples}
    assert kept.about == "20 of 200 examples, held out from training"
    assert held_out.split(pairs, 0.1)[1].examples == kept.examples


def test_a_split_of_few_prompts_has_no_example_on_both_sides():
    pairs = [Preference("same", f"c{k % 40}", "r") for k in range(80)]  # each of them twice
    training, kept = held_out.split(pairs, 0.05)
    assert len(kept.examples) == 4
    assert not {x.chosen for x in training} & {x.chosen for x in kept.examples}
    assert "their prompts may be those of training examples" in kept.about


@pytest.mark.parametrize(
    ("examples", "fraction", "count"),
    [
        ([Prompt("a"), Prompt("b"), Prompt("c")], 0.05, 1),
        ([Prompt("a"), Prompt("a")], 0.5, 0),
        ([Prompt("a"), Prompt("b")], 0.0, 0),
        ([Prompt([{"role": "user", "content": c}]) for c in "abcd"], 0.5, 2),
    ],
)
def test_the_smallest_splits(examples, fraction, count):
    training, kept = held_out.split(examples, fraction)
    assert (len(training), len(kept.examples)) == (len(examples) - count, count)


def test_a_file_of_held_out_data_is_compared_with_the_training_data(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("two\nfour\n")
    with pytest.warns(UserWarning, match="1 of the 2 examples of .*b.txt are also in .*a.txt"):
        examples, kept = held_out.read_both(
            tmp_path / "a.txt", "sft", eval_data=tmp_path / "b.txt", fraction=0.05
        )
    assert len(examples) == 3 and len(kept.examples) == 2
    assert kept.about == "2 examples of b.txt, 1 of which are in the training data"


def test_loss_and_accuracy_are_means_over_tokens(model):
    decoder, params, tokenizer = model
    examples = [Example("a", "bcdefg"), Example("abc", "d")]
    rows = supervised.text_rows(*sft_arrays(examples, tokenizer, 32))
    loss, found = evaluation.make_text_metrics(decoder)(params, rows)
    logits = np.asarray(decoder.apply(params, rows.obs["tokens"], rows.obs["mask"]), np.float64)
    total, right, count = 0.0, 0, 0
    for row, weights in enumerate(np.asarray(rows.weight)):
        for t in np.flatnonzero(weights):
            z, token = logits[row, t], int(rows.obs["tokens"][row, t + 1])
            total += np.log(np.exp(z).sum()) - z[token]
            right, count = right + (z.argmax() == token), count + 1
    assert count == 9  # "bcdefg" and "d", each with EOS
    assert float(found["loss"]) == float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(right / count)


def test_batches_keep_the_order_of_prompts_and_continue(model):
    decoder, params, tokenizer = model
    ids = np.array([[1, 3, 4], [0, 1, 5], [1, 6, 7]])
    prompts = Tokens(ids, ids > 0)
    sampling = respond.Sampling(max_new_tokens=3, repeat=3, batch_size=4, seed=1)
    options = {"eos_id": tokenizer.eos_id, "valid_vocab": tokenizer.vocab_size}
    found = list(respond.batches(decoder, params, prompts, sampling, **options))
    assert [b.new for b in found] == [4, 4, 1]
    rows = np.concatenate([b.rows[: b.new] for b in found])
    np.testing.assert_array_equal(rows, np.repeat([0, 1, 2], 3))
    key = jax.random.fold_in(jax.random.key(1), 1)
    chosen = np.array([1, 1, 2, 2])
    again = generate(
        key, params, ids[chosen], ids[chosen] > 0, decoder=decoder, max_new_tokens=3, **options
    )
    np.testing.assert_array_equal(found[1].written.tokens, again.tokens)
    (rest,) = respond.batches(decoder, params, prompts, sampling, **options, first=2)
    np.testing.assert_array_equal(rest.written.tokens, found[2].written.tokens)


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_held_out_prompts_are_answered_in_order_in_equal_batches(size):
    sizes = []

    def answer(key, prompts):
        tokens, mask = prompts
        sizes.append(len(tokens))
        fields = dict.fromkeys(Responses._fields, tokens)
        return Responses(**fields)._replace(gap=jnp.max(tokens), mask=mask)

    tokens = np.arange(5)[:, None]
    found = evaluation.responses_to(answer, jax.random.key(0), (tokens, tokens > 0), size)
    np.testing.assert_array_equal(found.tokens, tokens)
    np.testing.assert_array_equal(found.mask, tokens > 0)
    assert int(found.gap) == 4 and len({*sizes}) == 1 and max(sizes) <= size


def test_an_end_is_the_last_sampled_token():
    written = respond.Generation(
        np.array([[5, 2, 0], [5, 5, 5], [7, 0, 0]]),
        np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        None,
    )
    batch = respond.Batch(np.arange(3), None, written, 3)
    assert respond.ended(batch, (2, 7)).tolist() == [True, False, True]
    assert respond.ended(batch, None).all()


def test_responses_are_written_in_order_and_an_interrupted_command_continues(folder, tmp_path):
    words = ["generate", folder / "model", "--prompts", folder / "prompts.jsonl"]
    words += ["--max-new-tokens", 4, "--batch-size", 2, "--repeat", 2]
    out, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert run(*words, "--out", out) == 0
    found = lines(out)
    asked = [x["prompt"] for x in lines(folder / "prompts.jsonl")]
    assert [x["prompt"] for x in found] == [p for p in asked for _ in range(2)]
    assert {*found[0]} == {"prompt", "response", "tokens", "ended"}
    text = out.read_bytes()
    broken.write_bytes(b"".join(text.splitlines(keepends=True)[:3]) + b'{"prompt": "a')
    with pytest.raises(command.ConfigError, match="which exists; give another name, or"):
        run(*words, "--out", broken)
    assert run(*words, "--out", broken, "--resume") == 0
    assert broken.read_bytes() == text
    with pytest.raises(command.ConfigError, match="line 2 of .* does not respond to the prompt"):
        run(*words, "--repeat", 1, "--out", out, "--resume")
    assert out.read_bytes() == text


def test_any_model_is_evaluated_on_any_prompts(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    out = tmp_path / "scored.jsonl"
    assert run("evaluate", "model", "--prompts", "prompts.jsonl", "--reward", "letters:a_or_b",
               "--repeat", 3, "--threshold", 1, "--pass-at", 1, 2, "--max-new-tokens", 4,
               "--reference", "model", "--out", out) == 0  # fmt: skip
    rows = lines(out)
    scores = np.array([row["score"] for row in rows]).reshape(5, 3)
    assert [row["score"] for row in rows] == [float(r["response"][:1] in [*"abc"]) for r in rows]
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()
                 if len(line.split()) == 2)  # fmt: skip
    assert float(shown["score"]) == pytest.approx(scores.mean(), abs=1e-4)
    assert float(shown["pass@1"]) == pytest.approx(scores.mean(), abs=1e-4)
    by_hand = np.mean([{0: 0.0, 1: 2 / 3, 2: 1.0, 3: 1.0}[int(c)] for c in scores.sum(axis=1)])
    assert float(shown["pass@2"]) == pytest.approx(by_hand, abs=1e-4)
    assert 0 < scores.mean() < 1  # both kinds of responses occur
    assert abs(float(shown["kl"])) < 1e-4  # the model is its own reference
    assert shown["responses"] == "15" and shown["prompts"] == "5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "model", "--prompts", "prompts.jsonl", "--max-new-tokens", "4"],
         "--reward is required"),
        (["evaluate", "model", "--prompts", "prompts.jsonl", "--pass-at", "2"], "--threshold"),
        (["evaluate", "model", "--prompts", "prompts.jsonl", "--pass-at", "2", "--threshold", "1"],
         "--pass-at 2 needs 2 responses to each prompt, but --repeat is 1"),
        (["evaluate", "model", "--prompts", "prompts.jsonl", "--top-k", "2", "--reference", "x"],
         "leave out --top-k, or --reference"),
        (["evaluate", "model", "--prompts", "prompts.jsonl", "--responses", "8"],
         "--responses is for a run without --prompts"),
        (["evaluate", "run", "--max-new-tokens", "4", "--top-k=2", "--out", "x", "--truncate"],
         "--max-new-tokens, --top-k, --truncate, --out: only with --prompts FILE"),
        (["evaluate", "run", "--threshold", "1", "--pass-at", "1", "--reference", "x",
          "--matmul-precision", "highest", "--reward-weights", "1"],
         "--reward-weights, --reference, --threshold, --pass-at, --matmul-precision: only with"),
        (["generate", "model", "--prompts", "prompts.jsonl", "--out", "."], "is a directory"),
        (["generate", "model", "--resume"], "also give --out FILE"),
        (["generate", "model", "--prompts", "prompts.jsonl", "--prompt", "a"], "give one of them"),
        (["generate", "model", "--data", "prompts.jsonl"], "--prompts"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_one_line(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    with pytest.raises(command.ConfigError, match=message):
        run(*words)


def test_the_next_command_writes_responses_of_the_length_of_the_run(tmp_path):
    config = {"updates": 3, "max_new_tokens": 7}
    assert "--max-new-tokens 7" in stage_folder._next_steps("ppo", config, tmp_path)["generate"]
    assert (
        "--max-new-tokens" in stage_folder._next_steps("sft", {"updates": 3}, tmp_path)["generate"]
    )


def test_the_learning_rate_decays_over_the_first_number_of_updates(folder, model, monkeypatch):
    values, _ = command._values("sft", ["--updates", "40"], command.KINDS["sft"])
    assert values["anneal_updates"] == 40
    seen = []
    monkeypatch.setattr(supervised, "make_step", lambda loss, config, *others: seen.append(config))
    decoder, params, tokenizer = model
    rows = supervised.text_rows(*sft_arrays([Example("a", "b")], tokenizer, 32))
    config = supervised.Config(updates=80, anneal_updates=40)
    language = stages.Language(tokenizer)
    job = stages.fine_tuning(decoder, params, rows, config, seed=0, language=language)
    assert (job.updates, seen[0].updates) == (80, 40)


@pytest.mark.slow
def test_a_longer_run_keeps_the_horizon_of_its_learning_rate(folder, tmp_path):
    path = tmp_path / "sft"
    words = ["--model", folder / "model", "--data", folder / "texts.txt", "--batch-size", 4]
    assert run("sft", *words, "--learning-rate", 0.1, "--updates", 4, "--eval-every", 2,
               "--run-dir", path) == 0  # fmt: skip
    with pytest.warns(UserWarning, match="the learning rate is 0 from update 5 on"):
        assert run("sft", "--resume", path, "--updates", 6) == 0
    rates = [row["learning_rate"] for row in lines(path / "metrics.jsonl")]
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025, 0, 0], atol=1e-8)
    assert run("sft", "--resume", path, "--updates", 8, "--anneal-updates", 8) == 0
    rates = [row["learning_rate"] for row in lines(path / "metrics.jsonl")]
    np.testing.assert_allclose(rates[6:], [0.025, 0.0125], rtol=1e-5)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["eval_examples"] == 3 and summary["eval_data"].startswith("3 of 64 examples")
    assert run("evaluate", path) == 0


def test_older_runs_have_the_values_that_they_used():
    kinds = command.KINDS["ppo"]
    assert command.restored({"updates": 40}, kinds)["anneal_updates"] == 40
    assert command.restored({"updates": 40}, kinds)["eval_fraction"] == 0.0
    saved = {"updates": 40, "validation_fraction": 0.2}
    assert command.restored(saved, command.KINDS["sft"])["eval_fraction"] == 0.2


@pytest.mark.slow
def test_the_best_policy_on_held_out_prompts_is_the_model(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    path = tmp_path / "ppo"
    words = ["--model", "model", "--data", "prompts.jsonl", "--reward", "letters:a_or_b"]
    words += [
        "--eval-data",
        "held.jsonl",
        "--eval-responses",
        16,
        "--num-prompts",
        8,
        "--samples",
        0,
    ]
    (folder / "held.jsonl").write_text('{"prompt": "ef"}\n{"prompt": "gh"}\n{"prompt": "hg"}\n')
    words += ["--max-new-tokens", 4, "--minibatches", 1, "--run-dir", path]
    assert run("ppo", *words, "--updates", 4, "--eval-every", 2, "--learning-rate", 0.01) == 0
    rows, summary = lines(path / "metrics.jsonl"), json.loads((path / "summary.json").read_text())
    found = {r["update"]: r["eval_objective"] for r in rows if "eval_objective" in r}
    assert [*found] == [2, 4]
    assert summary["model_update"] == max(found, key=lambda u: (found[u], u))
    assert summary["eval_objective"] == pytest.approx(max(found.values()))
    assert summary["eval_data"] == "3 examples of held.jsonl" and summary["eval_responses"] == 16
    assert run("evaluate", path, "--responses", 16) == 0
    shown = capsys.readouterr().out
    assert f"objective {max(found.values()):.4f}" in shown
    with pytest.warns(UserWarning, match="the learning rate is 0 from update 5 on"):
        assert run("ppo", "--resume", path, "--updates", 5) == 0
    assert lines(path / "metrics.jsonl")[-1]["learning_rate"] == 0.0


@pytest.mark.slow
def test_passes_over_the_data_set_the_horizon_and_the_run_continues(folder, tmp_path):
    """64 texts of which 3 are held out, in batches of 10: 2 passes are 13 updates."""
    path = tmp_path / "epochs"
    words = ["--model", folder / "model", "--data", folder / "texts.txt", "--batch-size", 10]
    assert run("sft", *words, "--learning-rate", 0.13, "--epochs", 2, "--run-dir", path) == 0
    saved = json.loads((path / "config.json").read_text())["config"]
    assert (saved["updates"], saved["anneal_updates"], saved["epochs"]) == (13, 13, 2.0)
    rates = [row["learning_rate"] for row in lines(path / "metrics.jsonl")]
    np.testing.assert_allclose(rates[-1], 0.01, rtol=1e-5)
    assert run("sft", "--resume", path, "--updates", 15, "--anneal-updates", 26) == 0
    rates = [row["learning_rate"] for row in lines(path / "metrics.jsonl")]
    np.testing.assert_allclose(rates[-2:], [0.065, 0.06], rtol=1e-5)


def test_prompts_of_which_none_are_held_out_keep_their_order(folder):
    """The checkpoints of older runs, which held out no prompts, belong to this order."""
    path = folder / "prompts.jsonl"
    examples, others = held_out.read_both(path, "prompt", eval_data=None, fraction=0.0)
    assert not others.examples
    assert [x.prompt for x in examples] == [json.loads(x)["prompt"] for x in path.open()]


def test_the_standard_error_of_the_objective_is_over_prompts():
    """Two prompts with scores 0 and 1, four responses each: s / sqrt(2) = 0.5."""
    ones = jnp.ones((8, 1))
    said = Responses(
        inputs=(), tokens=ones, mask=ones, ended=ones[:, 0], gap=0.0, log_prob=ones * 0,
        ref_log_prob=ones * 0, value=ones, raw_score=ones[:, 0], entropy=ones, log_weight=ones * 0,
        score_parts={"a": np.array([1.0, np.nan] * 4), "none": np.full(8, np.nan)},
    )  # fmt: skip
    rows = np.array([7, 9] * 4)
    found = evaluation.of_policy(said, (rows == 9).astype(float), 0.1, rows)
    assert found["objective"] == pytest.approx(0.5)
    assert found["objective_standard_error"] == pytest.approx(0.5)
    assert found["prompts"] == 2 and found["score_a"] == 1.0 and "score_none" not in found
    alone = evaluation.of_policy(said, np.ones(8), 0.1, np.zeros(8, int))
    assert "objective_standard_error" not in alone  # one prompt has no spread
