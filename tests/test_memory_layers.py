"""MinGRU and the gated transformer: formulas, all steps at once, resets and options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import memory_cells
from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.networks import gtrxl
from ppo_jax.networks.memory import MemoryLayers, Stack

KEY = jax.random.key(0)
SEQUENCES, STEPS, INPUTS = 3, 7, 2
# Episodes start before the first step of a sequence, and twice in the middle of another one.
START = np.zeros((SEQUENCES, STEPS), bool)
START[[0, 1, 1], [0, 4, 5]] = True
# Sequences are shorter than the memory, longer, and a multiple of it plus a rest.
KINDS = {
    "mingru": MemoryLayers("mingru", 4),
    "two lstm": MemoryLayers("lstm", 4, layers=2),
    "gtrxl 3": MemoryLayers("gtrxl", 4, layers=2, heads=2, length=3),
    "gtrxl 9": MemoryLayers("gtrxl", 4, layers=2, heads=2, length=9),
}


def randomly(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(module, core, x):
    """Parameters of which none is 0; the initial ones would have to be compiled."""
    shapes = jax.eval_shape(module.init, KEY, core, x, START)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([0.6 * randomly(leaf.shape, i) for i, leaf in enumerate(leaves)])


def random_core(kind):
    """A state in the middle of an episode; that of a transformer has one step that is not valid."""

    def draw(x):
        return randomly(x.shape, 1) if x.dtype != bool else jnp.ones_like(x).at[:, 0].set(False)

    return jax.tree.map(draw, kind.module().zeros(SEQUENCES))


@functools.cache
def case(name):
    """(module, parameters, core, inputs) of a memory."""
    kind = KINDS[name]
    module, core = kind.module(), random_core(kind)
    x = randomly((SEQUENCES, STEPS, INPUTS))
    return module, random_params(module, core, x), core, x


LARGE = pytest.param("gtrxl 9", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["mingru", "two lstm", "gtrxl 3", LARGE])
def test_all_steps_at_once_are_the_steps_one_by_one(name):
    """Outputs, the state and all gradients, with episodes that start in the middle."""
    module, params, core, x = case(name)
    weight = randomly((SEQUENCES, STEPS, 4), 5)

    def at_once(params, x):
        after, y = module.apply({"params": params}, core, x, START)
        return jnp.mean(weight * y), (after, y)

    def one_by_one(params, x):
        def step(core, now):
            x, start = now
            core, y = module.apply({"params": params}, core, x[:, None], start[:, None])
            return core, y[:, 0]

        after, y = jax.lax.scan(step, core, (jnp.swapaxes(x, 0, 1), START.T))
        y = jnp.swapaxes(y, 0, 1)
        return jnp.mean(weight * y), (after, y)

    found, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x)
        for f in (at_once, one_by_one)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(found[1]))


@pytest.mark.parametrize("name", ["mingru", "gtrxl 3"])
def test_a_step_depends_on_its_own_episode_alone(name):
    """The dependence of each output on each input, and on the state before the sequence."""
    kind = KINDS[name]._replace(layers=1, size=16)  # some units of a rectifier pass the input on
    module, core = kind.module(), random_core(kind)
    x = randomly((SEQUENCES, STEPS, INPUTS))
    params = random_params(module, core, x)

    def outputs(x, floats):
        state = floats if name == "mingru" else core._replace(inputs=floats)
        return jnp.sum(module.apply({"params": params}, state, x, START)[1], axis=(0, 2))

    floats = core if name == "mingru" else core.inputs
    of_x, of_core = jax.jit(jax.jacobian(outputs, argnums=(0, 1)))(x, floats)
    depends = jnp.any(of_x != 0, axis=-1)  # [T, M, T]
    length = STEPS if name == "mingru" else 3
    episode = np.cumsum(START, axis=1)
    for t in range(STEPS):
        for m in range(SEQUENCES):
            reached = [
                t - length <= s <= t and episode[m, s] == episode[m, t] for s in range(STEPS)
            ]
            np.testing.assert_array_equal(depends[t, m], reached)
    before = jnp.any(of_core != 0, axis=-1).reshape(STEPS, SEQUENCES, -1)  # [T, M, L]
    for t in range(STEPS):
        for m in range(SEQUENCES):
            if name == "mingru":
                reached = [not START[m, : t + 1].any()]
            else:  # the first of its three steps is not valid
                near = [s >= t and s > 0 for s in range(3)]
                reached = [n and not START[m, : t + 1].any() for n in near]
            np.testing.assert_array_equal(before[t, m], reached)


def test_mingru_is_its_formula():
    module, params, core, x = case("mingru")
    after, y = jax.jit(module.apply)({"params": params}, core, x, np.zeros_like(START))
    kernel, bias = (np.asarray(params["input"][n], np.float64) for n in ("kernel", "bias"))
    h = np.asarray(core, np.float64)
    for t in range(STEPS):
        gate, candidate = np.split(np.asarray(x[:, t]) @ kernel + bias, 2, axis=-1)
        z = 1 / (1 + np.exp(-gate))
        h = (1 - z) * h + z * candidate
        np.testing.assert_allclose(y[:, t], h, atol=1e-6)
    np.testing.assert_allclose(after, h, atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(p, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gate(p, x, y):
    """Equations of section 3.2 of the paper, with one matrix per gate."""
    w_r, w_z, w_g = np.split(p["of_y"]["kernel"], 3, axis=1)
    u_r, u_z = np.split(p["of_x"]["kernel"], 2, axis=1)
    r = sigmoid(y @ w_r + x @ u_r)
    z = sigmoid(y @ w_z + x @ u_z - p["bias"])
    h = np.tanh(y @ w_g + (r * x) @ p["of_reset"]["kernel"])
    return (1 - z) * x + z * h


def attention(p, seen, heads):
    """The output of the last of the given steps, [D], with one score at a time."""
    size = seen.shape[-1] // heads
    kernel = {n: p[n]["kernel"] for n in ("query", "key", "value", "distance", "mix")}
    out = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        query, scores = (seen[-1] @ kernel["query"])[part], []
        for j, one in enumerate(seen):
            distance = len(seen) - 1 - j
            rates = [10_000.0 ** (-i / seen.shape[-1]) for i in range(0, seen.shape[-1], 2)]
            r = np.array(
                [np.sin(distance * w) for w in rates] + [np.cos(distance * w) for w in rates]
            )
            content = (query + p["content"][head]) @ (one @ kernel["key"])[part]
            position = (query + p["position"][head]) @ (r @ kernel["distance"])[part]
            scores.append((content + position) / np.sqrt(size))
        weights = np.exp(scores) / np.exp(scores).sum()
        out.append(weights @ (seen @ kernel["value"])[:, part])
    return np.concatenate(out) @ kernel["mix"]


def test_a_gated_transformer_is_its_formula():
    """One sequence, in float64 with one query, key and head at a time."""
    module, params, core, x = case("gtrxl 3")
    _, y = jax.jit(module.apply)({"params": params}, core, x, START)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    m, length = 1, 3  # the sequence with two starts
    first = np.asarray(x[m], np.float64) @ p["embedding"]["kernel"] + p["embedding"]["bias"]
    inputs = first
    for i in range(2):
        block, out = p[f"block_{i}"], []
        before = [*np.asarray(core.inputs[m, i], np.float64)]
        known = before[1:]  # the first one is not valid
        for t in range(STEPS):
            known = [inputs[t]] if START[m, t] else [*known, inputs[t]][-length - 1 :]
            seen = layer_norm(block["norm_attention"], np.array(known))
            attended = attention(block["attention"], seen, heads=2)
            e = gate(block["gate_attention"], inputs[t], np.maximum(attended, 0))
            hidden = layer_norm(block["norm_mlp"], e) @ block["hidden"]["kernel"]
            hidden = np.maximum(hidden + block["hidden"]["bias"], 0)
            mlp = hidden @ block["out"]["kernel"] + block["out"]["bias"]
            out.append(gate(block["gate_mlp"], e, np.maximum(mlp, 0)))
        inputs = np.array(out)
    np.testing.assert_allclose(y[m], inputs, atol=1e-5)


@pytest.mark.slow
def test_a_block_is_nearly_the_identity_at_first():
    """The gates open by a share of σ(−2) at first, so that a policy begins without a memory."""
    kind = KINDS["gtrxl 3"]
    core, start = kind.module().zeros(SEQUENCES), jnp.ones((SEQUENCES, 1), bool)
    x = randomly((SEQUENCES, 1, INPUTS))
    params = jax.jit(kind.module().init)(KEY, core, x, start)["params"]
    assert (params["block_1"]["gate_mlp"]["bias"] == gtrxl.GATE_BIAS).all()


def test_the_state_is_explicit_and_has_its_own_arrays():
    shapes = {n: jax.tree.map(jnp.shape, k.module().zeros(5)) for n, k in KINDS.items()}
    assert shapes["mingru"] == (5, 4)
    assert shapes["two lstm"] == (((5, 4), (5, 4)),) * 2
    assert shapes["gtrxl 9"] == ((5, 2, 9, 4), (5, 9))
    assert isinstance(KINDS["two lstm"].module(), Stack)
    for kind in KINDS.values():
        leaves = jax.tree.leaves(kind.module().zeros(5))
        assert len({id(x) for x in leaves}) == len(leaves)
        assert not any(x.any() for x in leaves)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memory_layers": 2}, "memory none does not use it; use memory=gru or lstm or"),
        ({"memory": "gru", "memory_length": 8}, "memory_length is 8, but memory gru .*=gtrxl"),
        ({"memory": "mingru", "memory_heads": 2}, "leave memory_heads at 4"),
        (
            {"memory": "gtrxl", "memory_size": 30},
            r"memory_size is 30, which does not divide into 4 memory_heads; .*: \[2, 3, 5\]",
        ),
        ({"memory": "gtrxl", "memory_length": 0}, "memory_length is 0"),
    ],
)
def test_options_without_effect_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        configs.make(preset="none", **values)


def test_a_policy_of_the_users_own_may_use_the_options():
    configs.make(preset="none", policy="ppo_jax.networks:make_policy", memory_length=8)


@pytest.mark.slow
def test_the_benchmark_measures_what_it_states(tmp_path):
    options = memory_cells.Options(("gru", "mingru"), (4,), 2, 4, rounds=1, out=tmp_path / "x.csv")
    memory_cells.main(options)
    rows = memory_cells.read(tmp_path / "x.csv")
    assert [(r["memory"], r["steps"], r["clock"]) for r in rows] == [
        ("gru", "4", "cpu"), ("mingru", "4", "cpu"),
    ]  # fmt: skip
    assert all(float(r["update_ms"]) > 0 and float(r["act_ms"]) > 0 for r in rows)
