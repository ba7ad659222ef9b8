"""Distributions: agreement with torch, SB3, distrax and rlax; sampling frequencies; edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    JointCategorical,
    MultiCategorical,
    TanhGaussian,
    log_prob_and_entropy,
)
from ppo_jax.losses import clipped_surrogate
from reference import Golden

GOLDEN = Golden("03_distributions")
KEY = jax.random.key(0)


def close(actual, expected, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def test_log_prob_and_entropy_are_the_two_methods_unless_a_type_has_its_own_function():
    """A user-defined distribution needs only two methods."""

    class Plain:
        log_prob = staticmethod(lambda action: 2.0 * action)
        entropy = staticmethod(lambda: 5.0)

    assert log_prob_and_entropy(Plain(), 3.0) == (6.0, 5.0)
    dist = Categorical(jnp.arange(3.0))
    assert log_prob_and_entropy(dist, 1) == (dist.log_prob(1), dist.entropy())


@pytest.mark.parametrize("peer", ["torch", "sb3", "distrax"])
def test_categorical(peer):
    x, y = GOLDEN("categorical/inputs"), GOLDEN(f"categorical/{peer}")
    p, q = Categorical(jnp.asarray(x["logits"])), Categorical(jnp.asarray(x["logits2"]))
    big, action = Categorical(jnp.asarray(x["big_logits"])), jnp.asarray(x["actions"])
    answers = {
        "log_prob": p.log_prob(action),
        "entropy": p.entropy(),
        "kl_pq": p.kl(q),
        "kl_qp": q.kl(p),
        "mode": p.mode(),
        "big_log_prob": big.log_prob(action),
        "big_entropy": big.entropy(),
        "big_kl": big.kl(p),
        "grad_log_prob": jax.grad(lambda z: Categorical(z).log_prob(action).sum())(p.logits),
        "grad_entropy": jax.grad(lambda z: Categorical(z).entropy().sum())(p.logits),
        "grad_kl": jax.grad(lambda z: p.kl(Categorical(z)).sum())(q.logits),
    }
    compared = answers.keys() & y.keys()
    assert len(compared) >= 4 and y.keys() - compared <= {"log_softmax", "probs"}
    for name in compared:
        close(answers[name], y[name], atol=5e-6)


@pytest.mark.parametrize("peer", ["torch", "sb3", "distrax", "rlax"])
def test_diag_gaussian(peer):
    x, y = GOLDEN("diag_gaussian/inputs"), GOLDEN(f"diag_gaussian/{peer}")
    x = {k: jnp.asarray(v) for k, v in x.items()}
    p, q = DiagGaussian(x["mean"], x["log_std"]), DiagGaussian(x["mean2"], x["log_std2"])
    b, action = DiagGaussian(x["mean"], x["log_std_b"]), x["gauss_actions"]
    answers = {
        "log_prob": p.log_prob(action),
        "entropy": p.entropy(),
        "kl_pq": p.kl(q),
        "kl_qp": q.kl(p),
        "kl": p.kl(q),
        "mode": p.mode(),
        "log_prob_b": b.log_prob(action),
        "entropy_b": b.entropy(),
        "grad_log_prob_mean": jax.grad(lambda m: p.replace(mean=m).log_prob(action).sum())(p.mean),
        "grad_log_prob_log_std": jax.grad(lambda s: p.replace(log_std=s).log_prob(action).sum())(
            p.log_std
        ),
        "grad_kl_mean2": jax.grad(lambda m: p.kl(q.replace(mean=m)).sum())(q.mean),
        "grad_kl_log_std2": jax.grad(lambda s: p.kl(q.replace(log_std=s)).sum())(q.log_std),
    }
    if peer == "sb3":  # its KL is not summed over dimensions
        y["kl_pq"] = y["kl_pq"].sum(-1)
    compared = answers.keys() & y.keys()
    assert y.keys() == compared
    for name in compared:
        close(answers[name], y[name], atol=5e-6 if "kl" in name or "entropy" in name else 2e-6)


def squashed() -> tuple[TanhGaussian, jax.Array, jax.Array]:
    x = GOLDEN("diag_gaussian/inputs")
    u = GOLDEN("squashed/inputs")
    one = jnp.ones(x["mean"].shape[-1])
    dist = TanhGaussian(jnp.asarray(x["mean"]), jnp.asarray(x["log_std"]), -one, one)
    return dist, jnp.asarray(u["pre_tanh"]), jnp.asarray(u["pre_tanh_big"])


@pytest.mark.parametrize("peer", ["torch", "distrax"])
def test_tanh_gaussian_log_prob(peer):
    dist, u, big = squashed()
    y = GOLDEN(f"squashed/{peer}")
    close(dist.log_prob(u), y["log_prob"])
    np.testing.assert_allclose(dist.log_prob(big), y["big_log_prob"], rtol=1e-5)


def test_tanh_gaussian_against_sb3_where_its_formula_holds():
    """SB3 adds 1e-6 inside the logarithm, which is visible for |u| > 3."""
    dist, u, _ = squashed()
    y = GOLDEN("squashed/sb3")
    inside = np.abs(u).max(-1) < 3
    assert inside.mean() >= 0.25
    np.testing.assert_allclose(dist.log_prob(u)[inside], y["log_prob"][inside], atol=1e-4)
    close(dist.to_env(u), y["action"])
    close(dist.to_env(dist.mode()), y["mode"])


@pytest.mark.parametrize("log_std", [-2.0, -0.5, 0.5])
def test_tanh_gaussian_entropy_against_sampling(log_std):
    low, high = jnp.array([-2.0, 0.0]), jnp.array([2.0, 10.0])
    dist = TanhGaussian(jnp.array([0.3, -1.0]), jnp.full(2, log_std), low, high)
    u = jax.vmap(dist.sample)(jax.random.split(KEY, 200_000))
    sampled = -jax.vmap(dist.log_prob)(u)
    error = 4 * float(sampled.std()) / np.sqrt(200_000)
    np.testing.assert_allclose(dist.entropy(), sampled.mean(), atol=error)
    action = dist.to_env(u)
    assert (action >= low).all() and (action <= high).all()


def test_tanh_gaussian_density_integrates_to_one():
    dist = TanhGaussian(jnp.array([0.4]), jnp.array([-0.3]), jnp.array([-1.0]), jnp.array([3.0]))
    u = jnp.linspace(-9, 9, 20_001)[:, None]
    density, action = jnp.exp(dist.log_prob(u)), dist.to_env(u)[:, 0]
    np.testing.assert_allclose(jnp.trapezoid(density, action), 1.0, atol=1e-3)


def test_multicategorical():
    x, y = GOLDEN("multicategorical/inputs"), GOLDEN("multicategorical/sb3")
    sizes = tuple(x["nvec"].tolist())
    p = MultiCategorical(jnp.asarray(x["logits"]), sizes)
    q = MultiCategorical(jnp.asarray(x["logits2"]), sizes)
    close(p.log_prob(jnp.asarray(x["actions"])), y["log_prob"])
    close(p.entropy(), y["entropy"], atol=5e-6)
    close(p.kl(q), y["kl_pq"], atol=5e-6)
    np.testing.assert_array_equal(p.mode(), y["mode"])


@pytest.mark.parametrize("peer", ["torch", "sb3", "distrax"])
def test_bernoulli(peer):
    x, y = GOLDEN("bernoulli/inputs"), GOLDEN(f"bernoulli/{peer}")
    p, q = Bernoulli(jnp.asarray(x["logits"])), Bernoulli(jnp.asarray(x["logits2"]))
    total = (lambda a: a) if peer == "sb3" else (lambda a: a.sum(-1))  # others: elementwise
    close(p.log_prob(jnp.asarray(x["actions"])), total(y["log_prob"]))
    close(p.entropy(), total(y["entropy"]), atol=5e-6)
    if "kl_pq" in y:
        close(p.kl(q), total(y["kl_pq"]), atol=5e-6)
    if "mode" in y:
        np.testing.assert_array_equal(p.mode(), y["mode"])


EXAMPLES = [
    Categorical(jnp.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]])),
    MultiCategorical(jnp.array([[0.3, -1.0, 2.0, 0.0, 1.0]]), (3, 2)),
    JointCategorical(jnp.array([[0.3, -1.0, 2.0, 0.0, 1.0, -jnp.inf]]), (3, 2)),
    Bernoulli(jnp.array([[0.3, -1.0]])),
    DiagGaussian(jnp.array([[0.3, -1.0]]), jnp.array([[0.1, -0.4]])),
    TanhGaussian(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.full(2, -1.0), jnp.full(2, 2.0)),
]


@pytest.mark.parametrize("dist", EXAMPLES, ids=lambda d: type(d).__name__)
def test_bulk_noise_gives_the_same_samples(dist):
    np.testing.assert_array_equal(dist.sample(KEY), dist.sample_from(dist.noise(KEY)))
    noise = dist.noise(KEY, (5,))
    assert jax.vmap(dist.sample_from)(noise).shape == (5, *dist.sample(KEY).shape)
    shapes = jax.eval_shape(lambda: dist)
    np.testing.assert_array_equal(shapes.noise(KEY, (5,)), noise)  # only shapes are read


@pytest.mark.parametrize("dist", EXAMPLES, ids=lambda d: type(d).__name__)
def test_entropy_and_kl_are_expectations_of_log_prob(dist):
    other = jax.tree.map(lambda x: x * 0.7 if x.ndim == 2 else x, dist)
    samples = jax.vmap(dist.sample)(jax.random.split(KEY, 100_000))
    log_p, log_q = jax.vmap(dist.log_prob)(samples), jax.vmap(other.log_prob)(samples)
    error = 5 * np.asarray(log_p.std(0)) / np.sqrt(100_000) + 1e-5
    assert (np.abs(-log_p.mean(0) - dist.entropy()) < error).all()
    error = 5 * np.asarray((log_p - log_q).std(0)) / np.sqrt(100_000) + 1e-5
    assert (np.abs((log_p - log_q).mean(0) - dist.kl(other)) < error).all()
    np.testing.assert_allclose(dist.kl(dist), 0.0, atol=1e-6)


def test_categorical_samples_follow_the_probabilities():
    dist = Categorical(jnp.array([2.0, 0.0, -1.0, 1.0]))
    count = jnp.bincount(dist.sample_from(jax.random.uniform(KEY, (400_000,))), length=4)
    expected = jax.nn.softmax(dist.logits)
    error = 5 * np.sqrt(expected * (1 - expected) / 400_000)
    assert (np.abs(count / 400_000 - expected) < error).all()


@pytest.mark.parametrize("masked", [0, 1, 3])
def test_an_impossible_action_is_never_taken_and_harms_nothing(masked):
    logits = jnp.array([0.5, -2.0, 30.0, 0.1]).at[masked].set(-jnp.inf)
    dist = Categorical(logits)
    edges = jnp.array([0.0, 1e-30, 0.25, 0.5, 1.0 - 2.0**-24])
    drawn = dist.sample_from(jnp.concatenate([edges, jax.random.uniform(KEY, (10_000,))]))
    assert (drawn != masked).all() and (drawn >= 0).all() and (drawn < 4).all()
    allowed = np.delete(np.asarray(logits), masked)
    np.testing.assert_allclose(
        dist.entropy(), Categorical(jnp.asarray(allowed)).entropy(), rtol=1e-5
    )
    for f in (lambda z: Categorical(z).entropy(), lambda z: Categorical(z).log_prob(jnp.array(2))):
        gradient = jax.grad(f)(logits)
        assert jnp.isfinite(gradient).all() and gradient[masked] == 0
    uniform = Categorical(jnp.zeros(4))
    assert (
        jnp.isfinite(dist.kl(uniform))
        and jnp.isfinite(jax.grad(lambda z: Categorical(z).kl(uniform))(logits)).all()
    )


LOGITS = jax.random.normal(jax.random.key(7), (2, 6)) * 3
# Distribution of logits, legal actions, and the same for each logit. The second row of each has a
# part without any legal choice, which is then not masked.
MASKED = {
    "Categorical": (
        Categorical,
        jnp.array([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]], bool),
        [[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]],
    ),
    "MultiCategorical": (
        lambda z: MultiCategorical(z, (4, 2)),
        jnp.array([[[1, 0, 0, 1], [0, 1, 1, 1]], [[0, 0, 0, 0], [1, 0, 0, 0]]], bool),
        [[1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 0]],
    ),
    "JointCategorical": (
        lambda z: JointCategorical(z, (3, 2)),
        jnp.array([[[1, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [0, 0]]], bool),
        [[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
    ),
}
masked = pytest.mark.parametrize("kind", MASKED)


def events(dist):
    """All actions [actions, ...], and whether each is legal in each row."""
    if isinstance(dist, MultiCategorical):
        return jnp.stack(jnp.meshgrid(jnp.arange(4), jnp.arange(2), indexing="ij"), -1).reshape(
            8, 2
        )
    return jnp.arange(6)


@masked
def test_illegal_actions_have_probability_zero(kind):
    make, legal, possible = MASKED[kind]
    dist, possible = make(LOGITS).masked(legal), np.array(possible, bool)
    np.testing.assert_array_equal(dist.logits, np.where(possible, LOGITS, -np.inf))
    edges = jnp.array([0.0, 1e-30, 0.5, 1.0 - 2.0**-24])
    shape = dist.noise(KEY).shape
    noise = [jnp.broadcast_to(edge, (1, *shape)) for edge in edges]
    drawn = dist.sample_from(jnp.concatenate([*noise, dist.noise(KEY, (100_000,))]))
    for action in (drawn, dist.mode()[None]):
        assert (dist.log_prob(action) > -jnp.inf).all()
    actions = events(dist)
    probability = jnp.exp(jax.vmap(lambda a: dist.log_prob(jnp.stack([a, a])))(actions))
    np.testing.assert_allclose(probability.sum(0), 1.0, rtol=1e-6)
    # Impossible actions have probability exactly 0, and the others keep their proportions.
    free = jnp.exp(jax.vmap(lambda a: make(LOGITS).log_prob(jnp.stack([a, a])))(actions))
    allowed = probability > 0
    expected = jnp.where(allowed, free, 0.0) / jnp.sum(free * allowed, axis=0)
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    options = (4, 2) if kind == "MultiCategorical" else (6,)
    ends = np.cumsum(options)[:-1]
    counts = [np.prod([p.sum() for p in np.split(row, ends)]) for row in possible]
    np.testing.assert_array_equal(allowed.sum(0), counts)


@masked
def test_gradients_stop_at_the_mask(kind):
    """Log-probability, entropy and KL under jit and vmap: finite, and 0 for illegal actions."""
    make, legal, possible = MASKED[kind]
    actions = make(LOGITS).masked(legal).mode()
    wrong = jnp.ones_like(actions)  # illegal in the first row of each
    other = jax.random.normal(KEY, LOGITS.shape)

    def parts(logits, other, legal, action, wrong):
        dist, old = make(logits).masked(legal), make(other).masked(legal)
        log_prob = dist.log_prob(action)
        return {
            "log_prob": log_prob,
            "of_illegal": dist.log_prob(wrong),
            "entropy": dist.entropy(),
            "kl": dist.kl(old),
            "kl_of_old": old.kl(dist),
            "surrogate": clipped_surrogate(log_prob, old.log_prob(action), 1.0, 0.2),
        }

    rows = (LOGITS, other, legal, actions, wrong)
    values = jax.vmap(parts)(*rows)
    assert values["of_illegal"][0] == -jnp.inf
    for name, value in values.items():
        assert np.isfinite(value).all() or name == "of_illegal", name
    for name, gradient in jax.jit(jax.vmap(jax.jacrev(parts)))(*rows).items():
        assert np.isfinite(gradient).all(), name
        assert (gradient[~np.array(possible, bool)] == 0).all(), name
    # Products with the Hessian, as in TRPO.
    curve = jax.vmap(lambda z, legal: jax.hessian(lambda z: make(z).masked(legal).entropy())(z))
    assert np.isfinite(curve(LOGITS, legal)).all()


def test_masked_divergences_are_those_of_what_is_left():
    legal = jnp.array([1, 0, 1, 1, 0, 1], bool)
    p, q = (Categorical(z).masked(legal) for z in LOGITS)
    left, right = (Categorical(z[np.asarray(legal)]) for z in LOGITS)
    close(p.kl(q), left.kl(right))
    close(p.entropy(), left.entropy())
    assert p.kl(Categorical(LOGITS[1])) > 0
    assert Categorical(LOGITS[1]).kl(p) == jnp.inf  # possible there, impossible here


def test_a_joint_action_is_taken_apart_for_the_environment():
    logits = jnp.log(jnp.array([0.05, 0.1, 0.2, 0.15, 0.3, 0.2]))
    dist = JointCategorical(logits, (3, 2))
    np.testing.assert_array_equal(
        dist.to_env(jnp.arange(6)), [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    )
    np.testing.assert_array_equal(dist.to_env(dist.mode()), [2, 0])
    flat = Categorical(logits)
    action = jnp.array([1, 4])
    close(dist.log_prob(action), flat.log_prob(action))
    close(dist.entropy(), flat.entropy())


def test_gaussian_actions_are_clipped_for_the_environment_alone():
    dist = DiagGaussian(
        jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.array([-1.0, -2.0]), jnp.array([1.0, 2.0])
    )
    action = jnp.array([[5.0, -0.5]])
    np.testing.assert_array_equal(dist.to_env(action), [[1.0, -0.5]])
    unbounded = DiagGaussian(dist.mean, dist.log_std)
    np.testing.assert_array_equal(unbounded.to_env(action), action)
    np.testing.assert_array_equal(dist.log_prob(action), unbounded.log_prob(action))


@pytest.mark.parametrize("dist", EXAMPLES, ids=lambda d: type(d).__name__)
def test_distributions_are_pytrees(dist):
    doubled = jax.tree.map(lambda x: jnp.stack([x, x]), dist)
    entropies = jax.vmap(lambda d: d.entropy())(doubled)
    np.testing.assert_allclose(entropies[1], dist.entropy(), rtol=1e-6)


def test_a_coin_that_cannot_fall_is_never_seen_to():
    coin = Bernoulli(jnp.array([jnp.inf, -jnp.inf, 0.0]))
    drawn = coin.sample_from(jnp.array([[0.0, 0.0, 0.1], [0.999, 0.999, 0.9]]))
    np.testing.assert_array_equal(drawn, [[1, 0, 1], [1, 0, 0]])
    close(coin.log_prob(jnp.array([1, 0, 1])), np.log(0.5))
    close(coin.entropy(), np.log(2.0))
    assert np.isfinite(jax.grad(lambda z: Bernoulli(z).entropy())(coin.logits)).all()
