"""Families of models: agreement with transformers, and what config.json may contain."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from language_models import BASE, CONFIGS, ELSEWHERE, LONG, NEWER, golden, model, model_folder
from ppo_jax.rlhf import roles, supervised
from ppo_jax.rlhf.attention import KeyValue, attend
from ppo_jax.rlhf.decoder import Decoder, DecoderConfig, RopeScaling
from ppo_jax.rlhf.decoder_config import FAMILIES
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_config import read_config, write_config
from ppo_jax.rlhf.hf_families import OTHERS
from ppo_jax.rlhf.hf_io import load_model, save_model, to_tensors
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.norms import norm
from ppo_jax.rlhf.rope import rope_frequencies, rotations
from ppo_jax.rlhf.token_distribution import TokenDistribution


def available(name):
    if not model_folder(name).exists():
        pytest.skip("not in the repository; PPO_JAX_GOLDEN names a folder with it")
    return model(name), golden(name)


@pytest.mark.parametrize("name", NEWER + ELSEWHERE)
def test_logits_are_those_of_transformers(name):
    """Without padding, and with padding at either side: one batch of three kinds of rows."""
    (decoder, params), arrays = available(name)
    ids, left, right = (arrays[x + "input_ids"] for x in ("", "left_", "right_"))
    masks = np.ones_like(ids), arrays["left_attention_mask"], arrays["right_attention_mask"]
    tokens, mask = np.concatenate([ids, left, right]), np.concatenate(masks)
    logits = jax.jit(decoder.apply)(params, tokens, mask)
    expected = np.concatenate([arrays[x + "logits"] for x in ("", "left_", "right_")])
    np.testing.assert_allclose(np.where(mask[..., None] > 0, logits, 0), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWER + ELSEWHERE)
def test_losses_and_gradients_are_those_of_transformers(name):
    (decoder, params), arrays = available(name)
    tokens = arrays["input_ids"]

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        hidden = decoder.hidden(params, tokens)[:, :-1]
        log_prob = decoder.distribution(params, hidden, chunk=500).log_prob(tokens[:, 1:])
        return -log_prob.mean(), log_prob

    (value, log_prob), gradient = jax.jit(loss)(params)
    np.testing.assert_allclose(log_prob, arrays["token_logprobs"], atol=1e-5)
    np.testing.assert_allclose(value, arrays["ce_loss"], rtol=1e-6)
    tensors = to_tensors(decoder, gradient).values()
    total = np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in tensors))
    np.testing.assert_allclose(total, arrays["grad_global_norm"], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWER + ELSEWHERE)
def test_greedy_tokens_are_those_of_transformers(name):
    """16 tokens with the cache, which are more than the window; with padding, and with an end."""
    (decoder, params), arrays = available(name)
    run = jax.jit(
        lambda tokens, mask, stop: generate(
            jax.random.key(0), params, tokens, mask, decoder=decoder, max_new_tokens=16,
            temperature=0.0, eos_id=stop,
        ).tokens
    )  # fmt: skip
    ids, left, mask = (arrays[x] for x in ("input_ids", "left_input_ids", "left_attention_mask"))
    end = int(arrays["eos_id"])
    np.testing.assert_array_equal(run(ids, np.ones_like(ids), -1), arrays["greedy_tokens"])
    np.testing.assert_array_equal(run(left, mask, -1), arrays["left_greedy_tokens"])
    expected = arrays["left_greedy_tokens_eos"]
    got = np.asarray(run(left, mask, end))[:, : expected.shape[1]]
    np.testing.assert_array_equal(got, expected)


def drawn(name):
    """A new model of a family, and two rows of which one is padded on the left."""
    decoder = Decoder(dataclasses.replace(CONFIGS[name], init_std=0.3))
    mask = np.array([[1] * 12, [0] * 3 + [1] * 9])
    return decoder, decoder.init(jax.random.key(0)), np.arange(24).reshape(2, 12) % 29, mask


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_changes_nothing(name):
    """A prompt padded on the left, then token by token: the hidden states of one pass."""
    decoder, params, tokens, mask = drawn(name)
    whole = jax.jit(decoder.hidden)(params, tokens, mask)
    prefill = jax.jit(decoder.prefill, static_argnames="length")
    _, cache = prefill(params, tokens[:, :6], mask[:, :6], length=12)
    for t in range(6, 12):
        hidden, cache = jax.jit(decoder.step)(params, cache, tokens[:, t])
        np.testing.assert_allclose(hidden, whole[:, t], atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_columns_are_those_of_all_columns(name):
    decoder, params, tokens, mask = drawn(name)
    whole = jax.jit(decoder.hidden)(params, tokens, mask)
    few = jax.jit(decoder.hidden, static_argnums=3)(params, tokens, mask, 5)
    np.testing.assert_allclose(few, whole[:, -5:], atol=2e-5)


@pytest.mark.parametrize("name", NEWER)
def test_what_was_read_is_written_bit_by_bit(tmp_path, name):
    decoder, params = model(name)
    save_model(tmp_path, decoder, params)
    again, loaded = load_model(tmp_path)
    assert again == decoder
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    theirs, ours = (
        json.loads((folder / "config.json").read_text())
        for folder in (model_folder(name), tmp_path)
    )
    # These two have no effect without a window and without longrope.
    free = {"max_window_layers", "original_max_position_embeddings"}
    for key in theirs.keys() & ours.keys() - free:
        assert ours[key] == theirs[key], key
    assert ours["architectures"] == theirs["architectures"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive(name):
    config = CONFIGS[name]
    assert read_config(json.loads(json.dumps(write_config(config, False, "float32")))) == config


@pytest.mark.slow
def test_all_families_are_trained(tmp_path):
    """A gradient step changes every parameter of a family, and the folder is read again."""
    for name, config in CONFIGS.items():
        decoder = Decoder(config)
        params = decoder.init(jax.random.key(0))
        tokens = np.arange(20).reshape(2, 10)

        def loss(params, decoder=decoder, tokens=tokens):
            hidden = decoder.hidden(params, tokens)
            return -decoder.distribution(params, hidden).log_prob(tokens).mean()

        gradient = jax.jit(jax.grad(loss))(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            # A bias of the keys adds the same number to all scores of a query.
            assert np.abs(leaf).max() > 0 or "bias" in str(path), (name, path)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        save_model(tmp_path / name, decoder, moved)
        jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / name)[1], moved)


def test_the_soft_cap_bounds_scores_and_logits():
    """Against the formula in numpy: scores of which half are far beyond the bound."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 1, 4, 8)) * 6 for _ in range(3))
    scores = 2 * np.tanh(q[0, 0] @ k[0, 0].T / np.sqrt(5) / 2)
    seen = np.tril(np.ones((4, 4), bool))
    weights = np.where(seen, np.exp(scores), 0)
    want = weights / weights.sum(axis=1, keepdims=True) @ v[0, 0]
    kv = KeyValue(*(jnp.asarray(x, jnp.float32) for x in (k, v)))
    query = jnp.asarray(q.transpose(0, 2, 1, 3), jnp.float32)
    got = attend(query, kv, jnp.asarray(seen)[None], scalar=5.0, softcap=2.0)
    np.testing.assert_allclose(got[0], want, atol=1e-5)

    hidden, head = rng.normal(size=(3, 4)) * 4, rng.normal(size=(4, 7)) * 4
    dist = TokenDistribution(jnp.asarray(hidden), jnp.asarray(head), 0.5, softcap=3.0)
    z = 3 * np.tanh(hidden @ head / 3) / 0.5
    want = z[:, 2] - np.log(np.exp(z).sum(axis=1))
    np.testing.assert_allclose(dist.log_prob(jnp.full(3, 2)), want, atol=1e-4)


def test_norms_with_an_offset_start_at_one():
    for family, scale in (("gemma2", 0.0), ("llama", 1.0)):
        layer = norm(dataclasses.replace(BASE, family=family), "n")
        x = jnp.array([[3.0, -4.0]])
        params = layer.init(jax.random.key(0), x)
        np.testing.assert_array_equal(params["params"]["scale"], np.full(2, scale))
        np.testing.assert_allclose(layer.apply(params, x), x / math.sqrt(12.5), rtol=1e-5)


def test_yarn_keeps_fast_frequencies_and_divides_slow_ones():
    scaling = RopeScaling("yarn", 4.0, original_max_positions=1024)
    config = dataclasses.replace(BASE, head_dim=32, rope_scaling=scaling)
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    ratio, turns = rope_frequencies(config) / plain, 1024 * plain / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 64], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.5], 1 / 4, rtol=1e-6)
    assert (np.diff(ratio) <= 1e-7).all() and ((ratio > 0.26) & (ratio < 0.99)).any()
    cos, _ = rotations(config, jnp.zeros((1, 1)))
    np.testing.assert_allclose(cos, 0.1 * math.log(4) + 1, rtol=1e-6)


def test_layers_have_their_own_windows_and_rotations():
    gemma, smol = CONFIGS["gemma3_text"], CONFIGS["smollm3"]
    assert [gemma.window(i) for i in range(3)] == [4, 4, None]
    assert [gemma.rotation(i) for i in range(3)] == ["local", "local", "global"]
    assert [smol.rotation(i) for i in range(3)] == ["global", "none", "global"]
    assert [CONFIGS["qwen3"].window(i) for i in range(3)] == [None, 4, None]


def test_longrope_ends_at_the_original_context():
    """Longer texts have other frequencies, which no cache of shorter texts has."""
    decoder = Decoder(CONFIGS["phi3"])
    assert decoder.config.context == 64 and decoder.config.max_positions == 128
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    with pytest.raises(ValueError, match="65 tokens, but longrope is supported up to .* of 64"):
        jax.eval_shape(decoder.apply, params, jnp.zeros((1, 65), int))
    with pytest.raises(ValueError, match="exceed the model's context of 64"):
        generate(jax.random.key(0), params, jnp.zeros((1, 60), int), None, decoder=decoder,
                 max_new_tokens=5, eos_id=None)  # fmt: skip
    with pytest.raises(ValueError, match="short_factors of longrope has 2 numbers; it must have 3"):
        dataclasses.replace(
            CONFIGS["phi3"], rope_scaling=dataclasses.replace(LONG, short_factors=(1.0, 2.0))
        )


def raw_of(name, **changes):
    raw = json.loads((model_folder(name) / "config.json").read_text()) | changes
    return {k: v for k, v in raw.items() if v is not ...}


def test_configs_of_transformers_4_say_the_same():
    """Without layer_types, with rope_theta and rope_scaling, and without what equals defaults."""
    for name, changes in {
        "gemma2": {"rope_theta": 10000.0, "rope_parameters": ..., "layer_types": ...,
                   "attn_logit_softcapping": ..., "tie_word_embeddings": ...},
        "gemma3_text": {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_parameters": ...,
                        "layer_types": ..., "sliding_window_pattern": 2},
        "qwen3": {"rope_theta": 10000.0, "rope_parameters": ..., "layer_types": ...},
        "smollm3": {"rope_theta": 2e6, "rope_parameters": ..., "layer_types": ...,
                    "no_rope_layers": ..., "tie_word_embeddings": ...},
        "phi3": {"rope_theta": 10000.0, "rope_parameters": ..., "rope_scaling": None},
        "llama_yarn": {"rope_parameters": ..., "rope_theta": 10000.0, "rope_scaling":
                       {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    }.items():  # fmt: skip
        assert read_config(raw_of(name, **changes)) == model(name)[0].config, name


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("gemma2", {"use_bidirectional_attention": True}, "only models that read from left"),
        ("gemma2", {"layer_types": ["full_attention"]}, "it must be a list of 3 names"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "contains 'chunked_attention'"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0.0; it must be gre"),
        ("gemma2", {"sliding_window": None}, "but the model has no sliding_window"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
         "rope_type of sliding_attention is 'yarn', which is not supported"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is .* each of the 4 layers"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_type is 'dynamic', which"),
        ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "only 1 is supported"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, r"are quantised \(fp8\)"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
         "config.json has no long_factor"),
        ("llama_yarn", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0,
         "low_freq_factor": 1.0, "high_freq_factor": 4.0}}, "has no original_max_position"),
        ("llama_yarn", {"num_hidden_layers": 10**6}, "is 1000000; it must be .* from 1 to 1,000"),
        ("qwen3", {"model_type": "qwen3_moe"},
         "is 'qwen3_moe', which is not supported: it has layers of several experts; the nearest "
         "supported family is qwen3"),
        ("qwen3", {"model_type": "gemma3"}, "it also reads images; the nearest .* is gemma3_text"),
        ("qwen3", {"model_type": "qwen_3"}, "did you mean qwen3"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_computed_are_refused(name, changes, message):
    with pytest.raises((ModelError, ValueError), match=message) as error:
        read_config(raw_of(name, **changes))
    assert "\n" not in str(error.value)


def test_the_nearest_families_exist():
    assert {nearest for _, nearest in OTHERS.values()} <= FAMILIES.keys()
    assert not OTHERS.keys() & FAMILIES.keys()


def test_a_reference_may_have_other_special_tokens():
    """They are not part of the architecture; the number of layers is."""
    config = CONFIGS["qwen3"]
    other = dataclasses.replace(config, pad_id=None, eos_ids=(5,), dtype="bfloat16")
    assert isinstance(config, DecoderConfig) and config.architecture() == other.architecture()
    assert config.architecture() != dataclasses.replace(config, num_layers=2).architecture()


def test_the_dtype_of_a_file_is_kept(tmp_path):
    decoder, params = model("qwen3")
    save_model(tmp_path, decoder, jax.tree.map(lambda x: x.astype("float16"), params))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    for wanted, kept in ((None, "float16"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        _, loaded = load_model(tmp_path, param_dtype=wanted)
        assert {x.dtype.name for x in jax.tree.leaves(loaded)} == {kept}


def test_frozen_models_are_stored_in_bfloat16_on_accelerators(monkeypatch):
    assert roles.frozen_dtype("auto") == "float32" and roles.frozen_dtype("float16") == "float16"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert roles.frozen_dtype("auto") == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_of_16_bits_are_trained(dtype):
    decoder = Decoder(CONFIGS["qwen3"])
    params = jax.tree.map(lambda x: x.astype(dtype), decoder.init(jax.random.key(0)))
    tokens = np.arange(40).reshape(4, 10) % 29
    rows = supervised.text_rows(tokens, np.ones_like(tokens), np.ones_like(tokens))
    config = supervised.Config(batch_size=4, updates=20, learning_rate=3e-3)
    state = supervised.init(jax.random.key(0), params, config)
    step = jax.jit(supervised.make_step(supervised.make_text_loss(decoder), config))
    losses = []
    for _ in range(20):
        state, metrics, _ = step(state, {"rows": rows})
        losses.append(float(metrics["loss"]))
    assert {x.dtype.name for x in jax.tree.leaves(state.learner.params)} == {dtype}
    assert losses[-1] < losses[0] - 0.2
