"""Language models on several devices: shares of the work and of the memory, equal results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.hf_io import save_model
from ppo_jax.rlhf.tokenizer import CharTokenizer

WORDS = ("able", "about", "area", "code", "data", "eval", "idea", "none")
PROGRAM = """
import jax, jax.numpy as jnp, json
from ppo_jax.rlhf import algorithms, sharding, train
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.scoring import from_model

assert jax.device_count() == 4
decoder = Decoder(small(12, 32, 1, 2, num_kv_heads=2))
params = decoder.init(jax.random.key(0))
judge = decoder.with_score(params, jax.random.key(1))
roles = train.Models(decoder, params, decoder, decoder.with_score(params), params,
                     from_model(decoder, judge))
prompts = jnp.asarray([[1, 2], [1, 3], [1, 4], [1, 5]])
config = train.Config(num_prompts=8, max_new_tokens=5, updates=2, kl_coef=0.1)
found = []
for mesh in (None, sharding.make_mesh(2, 2)):
    program = train.build(roles, prompts, jnp.ones_like(prompts), config,
                          hyper=algorithms.Config(learning_rate=1e-3), eos_id=0, mesh=mesh)
    state = jax.jit(program.init)(jax.random.key(0))
    state = state if mesh is None else sharding.shard(state, mesh)
    step = jax.jit(program.step)
    rows = []
    for _ in range(2):
        state, metrics = step(state, program.frozen)
        rows.append({k: float(v) for k, v in metrics.items()})
    found.append(rows)
    if mesh is not None:
        kernel = state.learner.params["actor"]["layer_0"]["attention"]["q"]["kernel"]
        assert len(kernel.sharding.device_set) == 4, kernel.sharding
print(json.dumps(found))
"""


def output_of(*command, devices=None, **variables):
    """What a Python program prints as JSON in its last line."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    if devices is not None:
        env["JAX_NUM_CPU_DEVICES"] = str(devices)
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def on_eight_devices(*arguments):
    """The results of a program in several_language_devices.py."""
    program = Path(__file__).parent / "several_language_devices.py"
    return json.loads(output_of(program, *arguments).stdout.splitlines()[-1])


def test_two_devices_share_an_update_with_micro_batches():
    """By the compiler's cost analysis: equal results would not show that the work is shared."""
    whole, each = on_eight_devices("quick")
    assert each / whole == pytest.approx(1 / 2, rel=0.1)


@pytest.mark.slow
def test_every_device_computes_its_share_of_rollout_and_update():
    found = on_eight_devices("flops")
    for micro_batches in (1, 2):
        one = found[f"1 devices, {micro_batches} micro-batches"]
        for number in (2, 4, 8):
            several = found[f"{number} devices, {micro_batches} micro-batches"]
            for whole, each in zip(one, several, strict=True):
                assert each / whole == pytest.approx(1 / number, rel=0.1), found


@pytest.mark.slow
def test_every_device_reads_the_prompts_of_its_own_groups():
    found = on_eight_devices("groups")
    assert found["4"][0] / found["1"][0] == pytest.approx(1 / 4, rel=0.1)
    assert found["4"][1] == 0  # no rows move to other devices


@pytest.mark.slow
def test_every_device_computes_its_share_of_supervised_training():
    found = on_eight_devices("supervised")
    assert found["4"] / found["1"] == pytest.approx(1 / 4, rel=0.1)


@pytest.mark.slow
def test_every_device_holds_its_share_of_the_parameters(tmp_path):
    """Read from a folder, initialised with the moments of Adam, restored, and trained."""
    found = on_eight_devices("memory", tmp_path)
    share = found["bytes"] / 4
    assert found["same"] and not any(found["nothing"])
    # Parameters; then also their trained copy and both moments.
    for name, copies in {"read": 1, "initialised": 4, "restored": 4, "trained": 4}.items():
        assert max(found[name]) <= 1.15 * copies * share, (name, found)
        assert not any(found[name][4:])


@pytest.mark.slow
def test_a_python_function_scores_the_responses_of_a_mesh():
    found = on_eight_devices("function")
    assert found["1"] == found["4"]
    # Three rollouts of two parts with 8 responses, on one device and on four.
    assert found["calls"] == 12 * [8]


@pytest.mark.slow
def test_the_same_numbers_on_a_mesh():
    found = output_of("-c", PROGRAM, devices=4)
    one, four = json.loads(found.stdout.splitlines()[-1])
    for a, b in zip(one, four, strict=True):
        assert a["tokens"] == b["tokens"]
        for name in ("score", "kl", "loss", "value_loss", "grad_norm", "approx_kl"):
            assert abs(a[name] - b[name]) < 1e-4 * max(1.0, abs(a[name])), (name, a, b)


@pytest.fixture
def files(tmp_path):
    """A model, prompts, a reward function, and a callback that ends a run early."""
    tokenizer = CharTokenizer("".join(WORDS))
    sizes = {"num_kv_heads": 1, "max_positions": 64, "eos_ids": (tokenizer.eos_id,)}
    decoder = Decoder(small(tokenizer.vocab_size, 16, 1, 2, **sizes))
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(tmp_path / "model")
    prompts = [json.dumps({"prompt": word[0]}) for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    (tmp_path / "rules.py").write_text(
        "import os\n"
        "def vowels(prompts, responses):\n"
        "    return [sum(c in 'aeiou' for c in r) for r in responses]\n"
        "def stop(progress, state):\n"
        "    return str(progress.update) == os.environ.get('STOP_AT')\n"
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1)])
def test_a_run_continues_on_another_number_of_devices(files, first, then):
    """With a Python function as the reward; the numbers are those of an uninterrupted run."""
    here = {"PYTHONPATH": os.pathsep.join([str(files), *sys.path])}

    def train(devices, *arguments, **variables):
        return output_of("-m", "ppo_jax.rlhf", "ppo", *arguments, devices=devices, **variables)

    start = ["--model", files / "model", "--data", files / "prompts.jsonl", "--updates", 3]
    start += ["--reward", "rules:vowels", "--callback", "rules:stop", "--num-prompts", 16]
    start += ["--max-new-tokens", 4, "--epochs", 1, "--samples", 0, "--rollout-batch", 8]
    train(first, *start, "--run-dir", files / "run", STOP_AT="1", **here)
    train(then, "--resume", files / "run", **here)
    train(first, *start, "--run-dir", files / "whole", **here)
    logs = [(files / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "whole")]
    for ours, theirs in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        for name in ("update", "tokens", "score", "kl", "grad_norm", "value_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["device"] == ("cpu" if then == 1 else f"cpu x {then}")
