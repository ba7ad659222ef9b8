"""Rollouts in parts: the same responses as at once, in less memory."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.language.role_bytes import examples, role_bytes
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.rlhf import algorithms, demo, rollout, sharding, train
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.formats import DataError
from ppo_jax.rlhf.scoring import from_function
from ppo_jax.rlhf.tokenizer import CharTokenizer

DECODER = Decoder(small(12, 16, 1, 2, max_positions=2048, init_std=0.3))
PARAMS = jax.jit(DECODER.init)(jax.random.key(0))
CALLS: list[list[str]] = []


def lengths(prompts, responses):
    CALLS.append(responses)
    return [len(response) for response in responses]


def build(**values):
    """A program whose reward is a Python function, without a critic."""
    reward = from_function(lengths, CharTokenizer("abcdefghi"))
    models = train.Models(DECODER, PARAMS, "none", {}, PARAMS, reward)
    prompts = jnp.asarray([[0, 4], [1, 5], [1, 6]])
    values = {"num_prompts": 24, "max_new_tokens": 30} | values
    config = train.Config(algorithm="reinforce", **values)
    hyper = algorithms.Config()
    return train.build(models, prompts, jnp.ones_like(prompts), config, hyper=hyper, eos_id=2)


def collected(**values):
    """(compiled program of a rollout, trajectory, metrics)."""
    program = build(**values)
    state = program.init(jax.random.key(1))
    arguments = state.key, state.learner.params, state.rollout, program.frozen
    compiled = jax.jit(program.collect).lower(*arguments).compile()
    rollout, trajectory = compiled(*arguments)
    return compiled, trajectory, rollout.metrics


def test_parts_have_the_same_responses_in_less_memory():
    whole, ours, metrics = collected(rollout_batch=24)
    CALLS.clear()
    parts, theirs, same_metrics = collected(rollout_batch=4)
    assert [len(call) for call in CALLS] == 6 * [4]
    np.testing.assert_array_equal(ours.action, theirs.action)
    np.testing.assert_array_equal(ours.weight, theirs.weight)
    np.testing.assert_allclose(ours.log_prob, theirs.log_prob, atol=1e-5)
    np.testing.assert_allclose(ours.reward, theirs.reward, atol=1e-4)
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(same_metrics[name]), rel=1e-4, abs=1e-5), name
    temporary = [x.memory_analysis().temp_size_in_bytes for x in (whole, parts)]
    assert temporary[1] < temporary[0] / 3, temporary


def test_a_group_reads_its_prompt_once_with_the_same_responses(monkeypatch):
    """Parts of whole groups read each prompt once; parts that separate a group, for each row."""
    groups, samples, generate = {"num_prompts": 6, "group_size": 4}, [], rollout.generate

    def seen(*arguments, **options):
        samples.append(options["samples"])
        return generate(*arguments, **options)

    monkeypatch.setattr(rollout, "generate", seen)
    _, whole, _ = collected(rollout_batch=24, **groups)
    _, aligned, _ = collected(rollout_batch=8, **groups)
    _, separated, _ = collected(rollout_batch=6, **groups)
    assert samples == [4, 4, 1]
    for other in (aligned, separated):
        np.testing.assert_array_equal(whole.obs.tokens, other.obs.tokens)
        np.testing.assert_allclose(whole.log_prob, other.log_prob, atol=1e-5)
    first = np.asarray(whole.obs.tokens)[0, :, :2].reshape(6, 4, 2)
    assert (first == first[:, :1]).all() and len(np.unique(first[:, 0], axis=0)) == 3


def test_rows_of_unequal_parts_keep_their_order():
    sizes = []

    def double(rows):
        sizes.append(len(rows["x"]))
        return {"y": 2 * rows["x"], "k": rows["k"]}

    rows = {"x": jnp.arange(10.0), "k": jnp.arange(20).reshape(10, 2)}
    found = sharding.in_parts(double, rows, 4)
    np.testing.assert_array_equal(found["y"], 2 * rows["x"])
    np.testing.assert_array_equal(found["k"], rows["k"])
    assert max(sizes) == 4
    assert sharding.in_parts(len, jnp.arange(10), 10) == 10


@pytest.mark.parametrize("size", [5, 48])
def test_unequal_parts_are_refused(size):
    with pytest.raises(
        ValueError, match=f"rollout_batch is {size}; it must divide .* 24 responses"
    ):
        build(rollout_batch=size)


def test_the_default_part_is_bounded_by_its_cache(monkeypatch):
    assert build().settings.rollout_batch == 24
    # Keys and values of one response: 2 arrays x 1 layer x 2 heads x 32 columns x 8 numbers.
    monkeypatch.setattr(train, "CACHE_BYTES", 9 * 4 * 2 * 1 * 2 * 32 * 8)
    monkeypatch.setattr(train.memory, "bytes_of", _without_parameters(train.memory.bytes_of))
    assert build().settings.rollout_batch == 8  # the largest divisor of 24 up to 9


def _without_parameters(bytes_of):
    return lambda tree: 0 if isinstance(tree, dict) else bytes_of(tree)


def test_the_largest_preset_generates_within_the_size_of_its_model():
    """With GPT-2 and prompts of 512 tokens, the cache of a part takes at most 1 GiB."""
    gpt2 = examples()["125 M"]
    kinds = train.Config.__dataclass_fields__
    config = train.Config(**{k: v for k, v in PRESETS["instructgpt"].items() if k in kinds})
    size = train.rollout_batch(config, Decoder(gpt2), 512)
    columns = 512 + config.max_new_tokens
    assert role_bytes(gpt2, config.num_prompts, columns)["cache"] > 50 * 2**30
    assert role_bytes(gpt2, size, columns)["cache"] <= 2**30
    assert config.num_prompts % size == 0


def test_devices_that_cannot_share_the_rows_are_not_used(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 6)
    monkeypatch.setattr(sharding, "make_mesh", lambda data, model: (data, model))
    with pytest.warns(UserWarning, match="4 of 6 devices are used: batches of 8 and 16 rows"):
        assert sharding.mesh_of(1, 16, 8) == (4, 1)
    assert sharding.mesh_of(1, 12) == (6, 1)
    assert sharding.mesh_of(3, 2) == (2, 3)
    with pytest.warns(UserWarning, match="1 of 6"):
        assert sharding.mesh_of(1, 7) is None
    with pytest.raises(ValueError, match="model_parallel is 4, which does not divide 6 devices"):
        sharding.mesh_of(4, 16)


def test_a_resumed_demo_reads_what_its_stages_share(tmp_path):
    """Sampled again on other cores, a text could differ, and with it the next stage's data."""
    story = types.SimpleNamespace(path=tmp_path)
    assert demo._kept(story, "texts", lambda: ["a"]) == ["a"]
    assert demo._kept(story, "normalisation", lambda: [0.1, 1 / 3]) == [0.1, 1 / 3]
    assert demo._kept(story, "texts", lambda: ["b"]) == ["a"]
    (tmp_path / demo.KEPT).write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        demo._kept(story, "texts", lambda: ["c"])
