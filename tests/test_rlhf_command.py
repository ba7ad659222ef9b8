"""`python -m ppo_jax.rlhf`: stages with run folders, and resumed stages with equal results."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import documents
from damage import add_damaged_checkpoints
from ppo_jax.cli import rlhf as command
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.rlhf import demo, respond, stages
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.folder import StageDirectory, read_stage
from ppo_jax.rlhf.hf_io import load_model, save_model
from ppo_jax.rlhf.tokenizer import CharTokenizer
from ppo_jax.runs import checkpoint
from ppo_jax.runs import job as jobs
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.folder import RunDirectory
from ppo_jax.runs.job import Result

WORDS = ("able", "about", "area", "code", "data", "eval", "idea", "none", "object", "value")
# ppo at the smallest size that includes all parts.
SMALL = ["--num-prompts", "8", "--max-new-tokens", "4"]
SMALL += ["--epochs", "2", "--minibatches", "2", "--samples", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files for a run: a model, texts, preferences, prompts and a reward function."""
    root = tmp_path_factory.mktemp("rlhf")
    tokenizer = CharTokenizer("".join(WORDS))
    decoder = Decoder(
        small(
            tokenizer.vocab_size,
            16,
            1,
            2,
            num_kv_heads=1,
            max_positions=64,
            eos_ids=(tokenizer.eos_id,),
        )
    )
    (root / "model").mkdir()
    save_model(root / "model", decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(root / "model")
    (root / "texts.txt").write_text("\n".join(WORDS))
    pairs = [{"prompt": w[0], "chosen": w[1:], "rejected": w[1:][::-1]} for w in WORDS]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    prompts = [{"prompt": w[0]} for w in WORDS]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (root / "vowels.py").write_text(
        "def count(prompts, responses):\n"
        "    return [sum(c in 'aeiou' for c in r) for r in responses]\n"
    )
    return root


def run(*arguments):
    return command._refusing([str(a) for a in arguments])


def ppo(folder, *arguments):
    return run(
        "ppo", "--model", folder / "model", "--data", folder / "prompts.jsonl", *SMALL, *arguments
    )


def rows(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for row in found:
        for name in ("responses_per_second", "sequences_per_second", "tokens_per_second"):
            row.pop(name, None)
    return found


@pytest.fixture(scope="module")
def reward(folder):
    """A reward model trained by the command from another model."""
    sft = folder / "sft"
    assert run("sft", "--model", folder / "model", "--data", folder / "texts.txt", "--run-dir", sft,
               "--updates", 150, "--batch-size", 8, "--learning-rate", 0.02,
               "--eval-fraction", 0.2, "--eval-every", 50) == 0  # fmt: skip
    path = folder / "reward"
    assert run("reward", "--model", sft, "--data", folder / "pairs.jsonl", "--run-dir", path,
               "--updates", 80, "--batch-size", 8, "--learning-rate", 0.01) == 0  # fmt: skip
    return path


def test_fine_tuning_and_a_reward_model(folder, reward):
    losses = [row["loss"] for row in rows(folder / "sft")]
    assert losses[-1] < losses[0] - 0.3
    summary = json.loads((folder / "sft" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["eval_examples"] == 2
    assert summary["eval_data"].startswith("2 of 10 examples, held out from training")
    evaluated = {r["update"]: r["eval_loss"] for r in rows(folder / "sft") if "eval_loss" in r}
    assert [*evaluated] == [50, 100, 150]
    best = min(evaluated, key=evaluated.get)
    assert summary["model_update"] == best
    assert evaluated[best] == pytest.approx(summary["eval_loss"])
    assert 0 <= summary["eval_accuracy"] <= 1
    first = rows(folder / "sft")[0]
    assert first["sequences"] == 8 and not {"env_step", "steps_per_second"} & {*first}
    _, params = load_model(reward / "model")
    assert "score" in params
    assert rows(reward)[-1]["accuracy"] > 0.8
    for path in (folder / "sft", reward):
        assert (path / "model" / "tokenizer.json").exists()
        assert (path / "learning_curve.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_variant_with_stale_samples_resumes_with_equal_numbers(folder, monkeypatch):
    """DAPO with a Python reward function, in whose program groups are redrawn."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    options = ["--algorithm", "dapo", "--group-size", 2, "--reward", "vowels:count", "--stale",
               "--importance-cap", 2, "--top-k", 4, "--learning-rate", 0.01, "--kl-coef", 0,
               "--aggregation", "constant", "--length-penalty", 1, "--mask-truncated"]  # fmt: skip
    whole, parts = folder / "dapo", folder / "dapo-in-parts"
    assert ppo(folder, *options, "--updates", 4, "--run-dir", whole) == 0
    again = ["--updates", 2, "--anneal-updates", 4, "--run-dir", parts]
    assert ppo(folder, *options, *again) == 0
    assert run("ppo", "--resume", parts, "--updates", 4) == 0
    assert rows(parts) == rows(whole)
    last = rows(whole)[-1]
    assert 1 <= last["draws"] <= 4 and 0 <= last["groups_without_spread"] <= 1
    assert 0 < last["importance_min"] <= last["importance_mean"] <= last["importance_max"]
    saved = json.loads((whole / "config.json").read_text())["config"]
    assert saved["algorithm"] == "dapo" and saved["clip_eps_high"] is None


@pytest.mark.slow
def test_ppo_against_a_reward_model(folder, reward, capsys):
    path = folder / "ppo"
    assert ppo(folder, "--reward", reward, "--updates", 3, "--run-dir", path) == 0
    said = capsys.readouterr().out
    assert " -> " in said
    first = rows(path)[0]
    assert abs(first["kl"]) < 1e-5
    assert all(row["log_prob_gap"] < 1e-4 for row in rows(path))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["eval_responses"] == 256
    assert summary["eval_data"].startswith("1 of 10 examples, held out from training")
    assert [row["responses"] for row in rows(path)] == [8, 16, 24]
    page = (documents.ROOT / "docs/understanding_a_run.md").read_text()
    names = {*json.loads((path / "metrics.jsonl").read_text().splitlines()[0])}
    names |= {name for name in summary if name.startswith("eval_")} - {"eval_examples"}
    assert {"kl", "eval_objective"} <= names
    assert "eval_objective_standard_error" not in names  # one held-out prompt has no spread
    names |= {"eval_objective_standard_error"}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    samples = [json.loads(x) for x in (path / "samples.jsonl").read_text().splitlines()]
    assert {"update", "prompt", "response", "score", "kl"} == set(samples[0])
    decoder, params = load_model(path / "model")
    assert decoder.config.vocab_size == load_model(folder / "model")[0].config.vocab_size
    _, before = load_model(folder / "model")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, before)
    assert max(jax.tree.leaves(moved)) > 0
    assert run("evaluate", path, "--responses", 8) == 0
    assert "objective" in capsys.readouterr().out
    assert run("generate", "--model", path, "--prompt", "a", "b", "--repeat", 2,
               "--max-new-tokens", 4) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line[:1] for line in lines] == ["a", "a", "b", "b"]


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_numbers(folder, monkeypatch):
    """Both optimiser states, the KL coefficient, the key, the data cursor and reward statistics."""
    monkeypatch.chdir(folder)
    options = ["--reward", "vowels:count", "--updates", "40", "--samples", "0"]
    options += ["--kl-target", "0.5", "--kl-horizon", "50", "--scale-scores"]
    options += ["--critic-rate", "0.5", "--checkpoint-seconds", "0"]
    whole, killed = folder / "whole", folder / "killed"
    assert ppo(folder, *options, "--run-dir", whole) == 0
    arguments = ["ppo", "--model", folder / "model", "--data", folder / "prompts.jsonl", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppo_jax.rlhf", *map(str, arguments), *options, "--run-dir", killed],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 300
    while not list((killed / "checkpoints").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((killed / "summary.json").read_text())["status"] == "running"
    assert run("ppo", "--resume", killed) == 0
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 40
    coefficients = [row["kl_coef"] for row in rows(whole)]
    assert len(set(coefficients)) > 10
    a, b = load_model(whole / "model")[1], load_model(killed / "model")[1]
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_damaged_checkpoints_do_not_outlive_the_resume(folder, monkeypatch):
    """These checkpoints are later than those of the resumed run: if they counted among the most
    recent, they would be kept instead of the new ones."""
    path = folder / "damaged"
    assert run("sft", "--model", folder / "model", "--data", folder / "texts.txt", "--run-dir",
               path, "--updates", 4, "--batch-size", 8) == 0  # fmt: skip
    checkpoints = add_damaged_checkpoints(path, [8, 9, 10])
    save = Checkpoints.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.warns(UserWarning, match="checkpoint 8: .* damaged"):
        assert run("sft", "--resume", path, "--updates", 20, "--checkpoint-seconds", 0) == 143
    assert checkpoints.steps() == [4, 5]


@pytest.mark.slow
def test_adapters_leave_as_a_whole_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "lora"
    assert ppo(folder, "--reward", "vowels:count", "--lora-rank", 2, "--updates", 2,
               "--critic", "shared", "--run-dir", path) == 0  # fmt: skip
    _, params = load_model(path / "model")
    _, before = load_model(folder / "model")
    assert jax.tree.structure(params) == jax.tree.structure(before)


@pytest.mark.slow
def test_adapters_of_every_stage_are_folders_that_the_commands_read(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    adapters = ["--lora-rank", 2, "--lora-targets", "q", "down", "--updates", 2]
    assert run("sft", "--model", "model", "--data", "texts.txt", "--run-dir", "sft-lora",
               "--batch-size", 8, *adapters) == 0  # fmt: skip
    assert "its adapters alone are in" in capsys.readouterr().out
    assert run("generate", "--model", "sft-lora/adapter", "--max-new-tokens", 3) == 0
    assert run("reward", "--model", "model", "--data", "pairs.jsonl", "--run-dir", "reward-lora",
               "--batch-size", 8, *adapters) == 0  # fmt: skip
    assert ppo(folder, "--reward", "reward-lora/adapter", *adapters, "--lora-critic",
               "--run-dir", "ppo-lora") == 0  # fmt: skip
    whole, alone = (load_model(folder / "ppo-lora" / name)[1] for name in ("model", "adapter"))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert run("sft", "--model", "sft-lora/adapter", "--data", "texts.txt", "--run-dir", "again",
               "--batch-size", 8, *adapters) == 0  # fmt: skip
    assert not (folder / "again" / "adapter").exists()  # its base is in no folder


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_made_of_options(name):
    known = {f.name for kind in command.KINDS["ppo"] for f in command.dataclasses.fields(kind)}
    assert {*PRESETS[name]} <= known
    values, _ = command._values("ppo", ["--preset", name], command.KINDS["ppo"])
    assert {k: values[k] for k in PRESETS[name]} == PRESETS[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pppo"], "unknown command 'pppo'; did you mean ppo"),
        (["grpo"], "grpo is an algorithm of ppo; write ppo-jax rlhf ppo --algorithm grpo"),
        (["ppo"], "--model is required"),
        (["ppo", "--model", "nowhere"], "nowhere"),
        (["ppo", "--model", "model"], "--data is required"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl"], "--reward is required"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl", "--reward", "x"], "neither"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl", "--reward", "vowels:cont"], "cont"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl", "--reward", "model"],
         "not a reward model"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl", "--reward", "vowels:count",
          "--max-new-tokens", "64"], "context of the model is 64"),
        (["ppo", "--model", "model", "--data", "long.jsonl", "--reward", "vowels:count",
          "--max-new-tokens", "8"], "long.jsonl, line 1"),
        (["ppo", "--temperature", "-1"], "temperature"),
        (["sft", "--model", "model", "--data", "empty.txt"], "empty"),
        (["sft", "--model", "model", "--data", "broken.jsonl"], "broken.jsonl, line 2"),
        (["reward", "--model", "model", "--data", "prompts.jsonl"], "chosen"),
        (["evaluate", "model"], "model is not the run of a language model; .* give --prompts FILE"),
        (["sft", "--model", "model", "--data", "texts.txt", "--lora-rank", "2", "--lora-targets",
           "q_proj"], "no matrix is called 'q_proj'; did you mean q?"),
        (["sft", "--model", "model", "--data", "texts.txt", "--lora-rank", "-1"], "lora_rank"),
        (["sft", "--model", "model", "--data", "texts.txt", "--attention", "cudnn", "--dtype",
           "bfloat16"], "--attention cudnn needs an NVIDIA GPU, and JAX runs on cpu"),
        (["ppo", "--model", "model", "--data", "prompts.jsonl", "--reward", "vowels:count",
           "--lora-rank", "2", "--critic", "shared", "--lora-critic"], "lora_critic needs"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_text("")
    (folder / "broken.jsonl").write_text('{"text": "able"}\n{"text": \n')
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "a" * 60}))
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(command.ConfigError, match=message):
        run(*arguments)
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_run_is_not_overwritten_nor_changed(folder, reward):
    with pytest.raises(command.ConfigError, match="already holds a run"):
        run("reward", "--model", folder / "model", "--data", folder / "pairs.jsonl", "--run-dir",
            reward)  # fmt: skip
    with pytest.raises(command.ConfigError, match="learning_rate"):
        run("reward", "--resume", reward, "--learning-rate", 1)
    with pytest.raises(command.ConfigError, match="is a run of reward"):
        run("ppo", "--resume", reward)


def stage_programs(monkeypatch):
    """The program text of one update, for each stage that is trained afterwards."""
    texts, compile_chunk = [], jobs.compile_chunk

    def compile_and_keep(step, state, floats, frozen, **options):
        texts.append(jax.jit(step).lower(state, frozen, floats).as_text())
        return compile_chunk(step, state, floats, frozen, **options)

    monkeypatch.setattr(jobs, "compile_chunk", compile_and_keep)
    return texts


def products(text):
    return [line for line in text.splitlines() if "stablehlo.dot_general" in line]


def sft(folder, path, *arguments):
    return run("sft", "--model", folder / "model", "--data", folder / "texts.txt", "--run-dir",
               path, "--updates", 1, "--batch-size", 8, *arguments)  # fmt: skip


@pytest.mark.slow
def test_every_product_of_a_stage_has_the_precision(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    texts = stage_programs(monkeypatch)
    precise = ("--matmul-precision", "highest")
    assert sft(folder, tmp_path / "default") == 0
    assert sft(folder, tmp_path / "sft", *precise) == 0
    options = ("--reward", "vowels:count", "--updates", 1, "--run-dir", tmp_path / "ppo")
    assert ppo(folder, *options, *precise) == 0
    plain, *others = map(products, texts)
    assert plain and not any("HIGH" in line for line in plain)
    assert len(others) == 2
    assert all(lines and all("HIGHEST, HIGHEST" in x for x in lines) for lines in others)
    for name, said in (("default", "default"), ("sft", "highest"), ("ppo", "highest")):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        config = json.loads((tmp_path / name / "config.json").read_text())["config"]
        assert summary["matmul_precision"] == config["matmul_precision"] == said
    with pytest.raises(command.ConfigError, match="these differ: matmul_precision"):
        run("sft", "--resume", tmp_path / "sft", "--matmul-precision", "high")
    assert run("sft", "--resume", tmp_path / "sft", "--updates", 2) == 0
    assert json.loads((tmp_path / "sft/summary.json").read_text())["matmul_precision"] == "highest"
    assert all("HIGHEST, HIGHEST" in line for line in products(texts[-1]))
    in_effect = []
    kept = lambda *_, **__: in_effect.append(traced_with()) or {}
    monkeypatch.setattr(stages.evaluation, "of_policy", kept)
    assert run("evaluate", tmp_path / "ppo", "--responses", 8) == 0
    write = respond.batches
    monkeypatch.setattr(
        respond, "batches", lambda *a, **k: in_effect.append(traced_with()) or write(*a, **k)
    )
    assert run("generate", "--model", tmp_path / "ppo", *precise, "--max-new-tokens", 2) == 0
    assert in_effect == ["highest", "highest"]
    with pytest.raises(command.ConfigError, match="hihgest"):
        sft(folder, tmp_path / "typo", "--matmul-precision", "hihgest")
    assert not (tmp_path / "typo").exists()


def traced_with():
    return jax.config.jax_default_matmul_precision


def test_the_demo_computes_with_its_precision(tmp_path, monkeypatch):
    seen = []

    def stopped(job, kind, config, *_, **__):
        seen.extend([traced_with(), config["matmul_precision"]])
        return Result(None, {}, None, 3)

    monkeypatch.setattr(demo, "run", stopped)
    path = tmp_path / "demo"
    assert run("demo", "--matmul-precision", "highest", "--run-dir", path) == 3
    assert seen == ["highest", "highest"]
    assert json.loads((path / "config.json").read_text())["config"]["matmul_precision"] == "highest"


def test_stages_older_than_the_precision_go_on(folder, tmp_path):
    path = tmp_path / "sft"
    assert sft(folder, path) == 0
    kept = json.loads((path / "config.json").read_text())
    del kept["config"]["matmul_precision"]
    (path / "config.json").write_text(json.dumps(kept))
    (path / "manifest.json").unlink()  # older runs have none
    for file in (path / "checkpoints").glob("*.json"):
        manifest = json.loads(file.read_text())
        del manifest["identity"]["matmul_precision"], manifest["sha256"]
        file.write_text(json.dumps(manifest | {"sha256": checkpoint._digest_of(manifest)}))
    assert run("sft", "--resume", path, "--updates", 2) == 0
    assert len(rows(path)) == 2


def test_options_of_a_stage_are_kept_and_a_strangers_folder_imports_nothing(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (folder / "seen.py").write_text(
        "calls = []\ndef f(progress, state): calls.append(progress.update)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    path = tmp_path / "sft"
    assert sft(folder, path, "--callback", "seen:f", "--log-every", 2) == 0
    assert run("sft", "--resume", path, "--updates", 4) == 0
    import seen

    assert seen.calls and seen.calls[-1] == 4
    assert [row["update"] for row in rows(path)] == [2, 4]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    with pytest.raises(command.ConfigError, match="names code to import, seen:f"):
        run("sft", "--resume", path, "--updates", 5)
    assert run("sft", "--resume", path, "--updates", 5, "--trust") == 0


REWARDS = [["evilmod:f"], "evilmod:f", ["evilmod:"], ["evilmod :f"], ["evilmod:f.g"]]


@pytest.mark.parametrize("reward", REWARDS)
def test_a_reward_function_of_somebody_elses_run_is_not_imported(tmp_path, monkeypatch, reward):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "evilmod.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "run").mkdir()
    content = {"stage": "ppo", "config": {"reward": reward, "model": "none"}, "run": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    for words in (("evaluate", "run"), ("ppo", "--resume", "run")):
        with pytest.raises(
            command.ConfigError, match=r"import, evilmod.*--reward evilmod.*--trust"
        ):
            run(*words)
        for more in (["--trust"], ["--reward", reward if isinstance(reward, str) else reward[0]]):
            with pytest.raises(command.ConfigError) as error:  # without a model
                run(*words, *more)
            assert "names code" not in str(error.value)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("algorithm", ["rloo", "gspo"])
def test_the_algorithm_of_somebody_elses_run_is_no_code(tmp_path, monkeypatch, algorithm):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    content = {"stage": "ppo", "config": {"algorithm": algorithm, "model": "none"}, "run": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_stage(tmp_path)[1]["algorithm"] == algorithm


def test_only_what_a_stage_wrote_is_deleted(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text('{"stage": "demo", "config": {}}')
    for name in ("model.safetensors", "tokenizer.json", "README.md", "lora.py"):
        (tmp_path / "model" / name).write_text("1")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "data.txt").write_text("1")
    (tmp_path / "reward").symlink_to(tmp_path / "sft")
    with StageDirectory(tmp_path) as directory:
        directory.clear()
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {".lock", "model/README.md", "model/lora.py", "sft/data.txt"}


def test_a_control_run_and_a_stage_are_not_each_others(tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "sft", "config": {}, "run": {}}')
    with pytest.raises(command.ConfigError, match="is not a run and not empty"):
        RunDirectory(tmp_path)
    config = {"env": "CartPole-v1", "algorithm": "ppo"}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "run": {}}))
    with pytest.raises(command.ConfigError, match="is not a run of ppo_jax.rlhf and not empty"):
        StageDirectory(tmp_path)


def test_a_missing_tracker_deletes_no_earlier_stage(folder, tmp_path, monkeypatch):
    path = tmp_path / "sft"
    assert sft(folder, path) == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(command.ConfigError, match="pip install"):
        sft(folder, path, "--overwrite", "--trackio")
    assert (path / "model" / "model.safetensors").exists()


def test_what_fails_while_a_stage_runs_is_no_refusal(folder, tmp_path, monkeypatch):
    """An exception of a callback is raised unchanged, not as an error of the command line."""
    (folder / "broken.py").write_text("def f(progress, state): raise ValueError('mine')\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ValueError, match="^mine$") as raised:
        sft(folder, tmp_path / "sft", "--callback", "broken:f")
    assert not isinstance(raised.value, command.ConfigError)
    assert list((tmp_path / "sft" / "checkpoints").glob("*.json"))


@pytest.mark.parametrize(
    "words",
    [("--callback", "seen:f"), ("--stop-at", "1"), ("--eval-every=2",), ("--final-model", "last")],
)
def test_the_demo_refuses_what_it_does_not_do(tmp_path, words):
    name = words[0].partition("=")[0]
    with pytest.raises(command.ConfigError, match=f"the demo has no {name}; .* ppo-jax rlhf sft"):
        run("demo", "--run-dir", tmp_path / "demo", *words)
    assert not (tmp_path / "demo").exists()


def test_help_of_the_demo_has_its_options_alone(capsys):
    with pytest.raises(SystemExit):
        run("demo", "--help")
    text = capsys.readouterr().out
    assert "--sft-updates" in text and "--checkpoint-seconds" in text
    assert not {"--eval-every", "--stop-at", "--callback", "--final-model"} & {*text.split()}


CHAT = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def chatting(folder):
    """The small model with a chat template, and data of conversations."""
    root = folder / "chat"
    (root / "model").mkdir(parents=True)
    decoder, params = load_model(folder / "model")
    save_model(root / "model", decoder, params)
    CharTokenizer("".join(WORDS), CHAT).save(root / "model")
    pairs = [
        {"prompt": w[0], "chosen": [_said("user", w[0]), _said("assistant", w[1:])],
         "rejected": [_said("user", w[0]), _said("assistant", w[:0:-1])], "answer": w}
        for w in WORDS
    ]  # fmt: skip
    (root / "pairs.json").write_text(json.dumps(pairs))
    shared = [{"conversations": [{"from": "human", "value": w[0]}, {"from": "gpt", "value": w[1:]}],
               "answer": w} for w in WORDS]  # fmt: skip
    (root / "shared.jsonl").write_text("\n".join(map(json.dumps, shared)))
    (root / "rules.py").write_text(
        "SEEN = []\n"
        "def first(prompts, completions, answer, **columns):\n"
        "    SEEN.append((prompts, completions, answer, columns))\n"
        "    return [float(c[0]['content'] == a[1:]) for c, a in zip(completions, answer)]\n"
        "def second(prompts, responses):\n"
        "    return [len(r) for r in responses]\n"
        "def wrong(completions, solution):\n"
        "    return [0.0 for _ in completions]\n"
    )
    return root


def _said(role, content):
    return {"role": role, "content": content}


@pytest.mark.slow
def test_the_stages_learn_from_conversations(chatting, tmp_path, capsys):
    """ShareGPT for fine-tuning and UltraFeedback's shape for a reward model."""
    small = ["--batch-size", 4, "--learning-rate", 0.01, "--eval-fraction", 0.2]
    assert run("sft", "--model", chatting / "model", "--data", chatting / "shared.jsonl",
               "--assistant-only-loss", "--epochs", 1.5, "--weight-decay", 0.1, *small,
               "--run-dir", tmp_path / "sft") == 0  # fmt: skip
    assert "8 rows in one length bucket" in capsys.readouterr().out
    assert [row["update"] for row in rows(tmp_path / "sft")] == [1, 2, 3]  # 1.5 passes over 8 rows
    saved = json.loads((tmp_path / "sft" / "config.json").read_text())["config"]
    assert (saved["updates"], saved["epochs"]) == (3, 1.5)
    assert run("sft", "--resume", tmp_path / "sft", "--updates", 4) == 0
    assert len(rows(tmp_path / "sft")) == 4
    assert run("reward", "--model", chatting / "model", "--data", chatting / "pairs.json",
               "--updates", 2, *small, "--run-dir", tmp_path / "reward") == 0  # fmt: skip
    assert len(rows(tmp_path / "reward")) == 2


@pytest.mark.slow
def test_reward_functions_of_the_command(chatting, tmp_path, monkeypatch):
    """Columns, messages and the mean score of each function."""
    monkeypatch.chdir(chatting)
    monkeypatch.syspath_prepend(str(chatting))
    words = ["ppo", "--model", "model", "--data", "shared.jsonl", *SMALL, "--updates", 1,
             "--run-dir", tmp_path / "ppo"]  # fmt: skip
    with pytest.raises(
        command.ConfigError, match=r"rules:wrong requires solution, .* are conversa"
    ):
        run(*words, "--reward", "rules:wrong")
    assert not (tmp_path / "ppo").exists()
    assert run(*words, "--reward", "rules:first", "rules:second", "--reward-weights", 2, 0.5) == 0
    (row,) = rows(tmp_path / "ppo")
    assert row["score"] == pytest.approx(
        2 * row["score_first"] + 0.5 * row["score_second"], abs=1e-5
    )
    summary = json.loads((tmp_path / "ppo" / "summary.json").read_text())
    assert {"eval_score_first", "eval_score_second"} <= {*summary}
    prompts, completions, answers, columns = sys.modules["rules"].SEEN[0]
    assert [prompt[0]["content"] for prompt in prompts] == [answer[0] for answer in answers]
    assert {prompt[0]["role"] for prompt in prompts} == {"user"}
    assert [*completions[0][0]] == ["role", "content"]
    assert {*columns} == {"conversations", "completion_ids"}
