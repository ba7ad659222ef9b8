"""The variants of the policy loss, each with numbers that are worked out by hand, and with TRL's.

The hand-worked cases use the four responses of `test_rlhf_methods`. Under the later policy their
ratios are ρ = 0.8, 1.6, 1.2;  1.2;  1.6, 0.8, 0.8;  0.4, 0.4, and the clip range is 0.25.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import losses
from ppo_jax.cli import rlhf as command
from ppo_jax.config.options import coerce, parse
from ppo_jax.config.rlhf import METHODS, settled
from ppo_jax.rlhf import algorithms, combinations, objective, rewards, rollout, selection, train
from ppo_jax.rlhf import generate as generation
from ppo_jax.rlhf.folder import flat
from ppo_jax.rlhf.generate import Generation
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rollout import sequences
from ppo_jax.types import Batch
from reference import Golden
from test_rlhf_methods import (
    LATER,
    MASKS,
    POLICY,
    REAL,
    RESPONSES,
    TEMPERATURE,
    Table,
    TablePolicy,
    build,
    collected,
    estimated,
    given_responses,
    near,
    responses,
    update,
)  # fmt: skip

assert given_responses  # a fixture, which applies to the tests of this file as well

RATIO = np.array([[0.8, 1.6, 1.2], [1.2, 0, 0], [1.6, 0.8, 0.8], [0.4, 0.4, 0]])
# The scores themselves as returns, and no KL penalty.
NO_KL = {"kl_in": "loss", "kl_coef": 0.0}


# The mean over tokens.


def test_aggregations():
    """Losses 1, 2, 3 and 4 of responses of three tokens and one, with L = 3.

    token: 10/4;  sequence: (6/3 + 4/1) / 2;  constant: (6/3 + 4/3) / 2.
    """
    loss = jnp.array([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    weight = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    for name, expected in (("token", 2.5), ("sequence", 3.0), ("constant", 5 / 3)):
        near(losses.mean(loss * objective.token_weights(weight, name), weight), expected)
    masked = jnp.concatenate([weight, jnp.zeros((2, 3))])  # responses that do not count
    for name in ("token", "sequence", "constant"):
        weights = objective.token_weights(masked, name)
        near(weights[:2], objective.token_weights(weight, name))
        assert jnp.isfinite(objective.token_weights(masked[2:], name)).all()


def rows_of(x, advantage, **extra):
    """Six golden responses as the samples of an update; `obs` is the row."""
    number = jnp.arange(len(x["mask"]))
    shape = x["mask"].shape
    zeros = jnp.zeros(shape)
    extra = {"ref_log_prob": jnp.asarray(x["ref_logprobs"]), **extra}
    return Batch(
        obs=TokenInputs(number[:, None], number[:, None]),
        action=jnp.zeros(shape, int),
        log_prob=jnp.asarray(x["old_logprobs"]),
        value=zeros,
        advantage=jnp.broadcast_to(jnp.asarray(advantage), shape),
        target=zeros,
        weight=jnp.asarray(x["mask"]),
        extra={"kl_coef": jnp.full(shape, 0.1)} | extra,
    )


@pytest.mark.parametrize("aggregation", ["sequence", "constant"])
def test_micro_batches_have_the_gradient_of_the_whole_minibatch(aggregation):
    """Parts with 19, 7 and 5 of 31 tokens; GSPO's ratio, the KL term and a masked response."""
    x = Golden("11_grpo")("inputs")
    x["mask"][3] = 0.0
    batch = rows_of(x, np.linspace(-1, 2, 6)[:, None].astype(np.float32))
    params = {"actor": jnp.asarray(x["new_logprobs"]), "critic": jnp.zeros(x["mask"].shape)}
    found = []
    for parts in (1, 3):
        config = algorithms.Config(
            aggregation=aggregation, ratio="sequence", epochs=1, minibatches=1, micro_batches=parts
        )
        learn = algorithms.make("grpo", TablePolicy(), config, {}, total_updates=1, kl_kind="k3")
        learner = learn.init(jax.random.key(0), params)
        found.append(jax.jit(learn.update)(jax.random.key(1), learner, batch)[1])
    for name in ("loss", "policy_loss", "kl_loss", "grad_norm", "clip_fraction_low"):
        near(found[0][name], found[1][name])


# Each algorithm by hand.


def loss_of(algorithm, hyper=None, **options):
    """(batch, metrics) of an update that starts from the later policy, without a KL penalty."""
    options = NO_KL | {"algorithm": algorithm} | options
    program, learn, _, batch = estimated(options, hyper or {})
    return batch, update(program, learn, batch)[1]


def test_dr_grpo():
    """Â = ±0.5 and ±1.75; the sum over the tokens divided by 4 responses times L = 3.

    min(ρ Â, clip(ρ) Â):  0.4, 0.625, 0.6;  −0.6;  2.1875, 1.4, 1.4;  −1.3125, −1.3125
    """
    batch, metrics = loss_of("dr_grpo")
    near(responses(batch.advantage, batch.obs)[:, 0], [0.5, -0.5, 1.75, -1.75])
    near(metrics["policy_loss"], -3.3875 / 12)


def test_grpo_with_the_mean_of_responses():
    """min(ρ Â, clip(ρ) Â) of `test_grpo`, first averaged over the tokens of each response."""
    _, metrics = loss_of("grpo", {"aggregation": "sequence"})
    a, b = 0.7070068, 0.7070782
    means = [a * (0.8 + 1.25 + 1.2) / 3, -1.2 * a, b * (1.25 + 0.8 + 0.8) / 3, -0.75 * b]
    near(metrics["policy_loss"], -np.mean(means))


def test_gspo():
    """The ratio of a response is the geometric mean of its ratios: 1.536^⅓, 1.2, 1.024^⅓, 0.4.

    Only the last is outside [0.75, 1.25]: two of nine tokens, at the lower bound.
    """
    _, metrics = loss_of("gspo")
    a, b = 0.7070068, 0.7070782
    terms = [a * 1.536 ** (1 / 3), -1.2 * a, b * 1.024 ** (1 / 3), -0.75 * b]
    near(metrics["policy_loss"], -np.mean(terms))
    near(metrics["clip_fraction_low"], 2 / 9)
    near(metrics["clip_fraction_high"], 0.0)


def test_clip_higher_and_dual_clip():
    """Upper bound 1.5: of the ratios with Â > 0, the 1.6 become 1.5. Dual clip: −Â · 1.6 at most.

    a and b as in `test_grpo`; the low ratios of the last response are clipped to 0.75.
    """
    _, metrics = loss_of("grpo", {"clip_eps_high": 0.5})
    a, b = 0.7070068, 0.7070782
    total = a * (0.8 + 1.5 + 1.2 - 1.2) + b * (1.5 + 0.8 + 0.8 - 0.75 - 0.75)
    near(metrics["policy_loss"], -total / 9)
    near(metrics["clip_fraction_high"], 2 / 9)
    near(metrics["clip_fraction_low"], 2 / 9)
    loss, advantage = jnp.array([5.0, 1.0, -5.0]), jnp.array([-1.0, -1.0, 1.0])
    near(objective.dual_clipped(loss, advantage, 3.0), [3.0, 1.0, -5.0])


def test_cispo():
    """−min(ρ, 1.25) Â log π: a token above the bound keeps a gradient, min(ρ, 1.25) Â."""
    _, metrics = loss_of("cispo", {"clip_eps_high": 0.25, "clip_eps": 0.2})
    a, b = 0.7070068, 0.7070782
    advantage = np.array([[a], [-a], [b], [-b]])
    later = np.array([[0.2, 0.8, 0.6], [0.6, 1, 1], [0.8, 0.2, 0.2], [0.1, 0.1, 1]])
    near(metrics["policy_loss"], -np.sum(np.minimum(RATIO, 1.25) * advantage * np.log(later)) / 9)
    near(metrics["clip_fraction"], 2 / 9)
    old, advantage = -jnp.log(jnp.array([0.5, 2.0])), jnp.array([3.0, -3.0])
    loss = lambda z: jnp.sum(objective.cispo(z, z - old, advantage, 0.25))
    near(jax.grad(loss)(jnp.zeros(2)), [-1.5, 3.75])


def test_maxrl():
    """Scores 2, 1: (R − 1.5) / 1.5 = ±1/3.  Scores 3, −0.5: ±1.75 / 1.25 = ±1.4."""
    options = {"algorithm": "maxrl", "missing_eos_penalty": 0.0, "reward_clip": 3.0, **NO_KL}
    *_, batch = estimated(options, {})
    near(responses(batch.advantage, batch.obs)[:, 0], [1 / 3, -1 / 3, 1.4, -1.4])
    near(rewards.group_normalized(jnp.array([[0.0, 0.0], [-3.0, 1.0]]), "mean"), np.zeros((2, 2)))


def test_reinforce_pp():
    """Rewards to go 1.9, 1.8, 1.9;  0.9;  3.0, 3.1, 3.1;  −0.4, −0.4, whitened over the tokens."""
    *_, batch = estimated({"algorithm": "reinforce_pp"}, {})
    to_go = np.array([[1.9, 1.8, 1.9], [0.9, 0, 0], [3.0, 3.1, 3.1], [-0.4, -0.4, 0]])
    expected = (to_go - to_go[REAL].mean()) / to_go[REAL].std()
    near(responses(batch.advantage, batch.obs), np.where(REAL, expected, 0))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantage_scales(scale):
    """Advantages ±1 and ±3.5 of RLOO, for scores 2, 1 and 3, −0.5."""
    *_, batch = estimated({"algorithm": "rloo", **NO_KL}, {"advantage_scale": scale})
    score = np.array([2, 1, 3, -0.5])
    by = {"none": 1.0, "batch": np.std(score, ddof=1) + 1e-4}
    by["group"] = np.repeat(np.std(score.reshape(2, 2), axis=1, ddof=1), 2) + 1e-4
    near(responses(batch.advantage, batch.obs)[:, 0], np.array([1, -1, 3.5, -3.5]) / by[scale])


# Responses and tokens that are selected.


def test_groups_without_spread_are_masked():
    """Scores clipped to 1: 1, 1 and 1 − 1, −0.5. The first group learns nothing and is left out."""
    options = {"algorithm": "grpo", "reward_clip": 1.0, "dynamic_sampling": "mask", **NO_KL}
    program, _ = build(options, {})
    experience, trajectory = collected(program)
    near(experience.metrics["groups_without_spread"], 0.5)
    batch, metrics = loss_of("grpo", reward_clip=1.0, dynamic_sampling="mask")
    near(responses(batch.weight, batch.obs), MASKS.reshape(4, 3) * [[0], [0], [1], [1]])
    a = 0.25 / (np.sqrt(0.125) + 1e-4)
    near(metrics["policy_loss"], -a * (1.25 + 0.8 + 0.8 - 0.75 - 0.75) / 5)
    near(trajectory.weight.sum(), 9)  # the estimate removes them, after groups are compared


def test_groups_without_spread_are_redrawn():
    """Each draw answers both prompts; only the second has a spread, so that two draws fill both."""
    program, learn = build({"algorithm": "dapo", "reward_clip": 1.0, **NO_KL}, {})
    experience, trajectory = collected(program)
    near(experience.metrics["groups_without_spread"], 0.5)
    near(experience.metrics["draws"], 2.0)
    near(experience.metrics["tokens"], 2 * 9)  # of both draws
    assert int(experience.cursor) == 4  # prompts
    batch = sequences(learn.estimate(trajectory))
    near(np.asarray(batch.weight).sum(axis=1), [3, 2, 3, 2])
    near(batch.obs.tokens[:, 0, 1], [2, 2, 2, 2])
    near(experience.metrics["score"], np.mean([2.0, 1.0, 6.0, -0.5]))  # of the first draw


def test_redrawing_ends():
    """Three draws at most, and those with a spread first, in the order in which they were drawn."""
    scores = jnp.array([[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 2]])
    draw = lambda i: {"score": scores[i], "draw": jnp.full(4, i)}
    again = lambda count: selection.redraw(
        draw, draw(0), lambda x: x["score"], tokens_of=lambda x: jnp.sum(x["draw"]) + 4,
        group_size=2, max_draws=count,
    )  # fmt: skip
    found, draws, tokens = jax.jit(lambda: again(3))()
    assert (int(draws), int(tokens)) == (3, 4 + 8 + 12)
    np.testing.assert_array_equal(found["draw"], [0, 0, 2, 2])
    np.testing.assert_array_equal(found["score"], [1, 0, 0, 2])
    found, draws, tokens = again(2)
    assert (int(draws), int(tokens)) == (2, 4 + 8)
    np.testing.assert_array_equal(found["draw"], [0, 0, 0, 0])


def test_truncated_responses_are_masked_but_compared():
    """The third response has no end: it has no weight, but its score 3 is part of the group."""
    *_, batch = estimated({"algorithm": "grpo", "mask_truncated": True, **NO_KL}, {})
    near(responses(batch.weight, batch.obs).sum(axis=1), [3, 1, 0, 2])
    near(responses(batch.advantage, batch.obs)[3, 0], -0.7070782)


def test_the_length_penalty():
    """L = 10, from 8 on: nothing for 8 tokens, a half for 9, the whole of 10."""
    mask = jnp.arange(10) < jnp.array([[1], [8], [9], [10]])
    near(rewards.length_penalty(jnp.ones(4), mask, 2.0, 0.8), [1, 1, 0, -1])
    program, _ = build({"length_penalty": 3.0, "length_penalty_start": 0.5, "kl_coef": 0.0}, {})
    experience, _ = collected(program)  # lengths 3, 1, 3, 2 of at most 3: penalties 3, 0, 3, 1
    near(experience.metrics["shaped_score"], np.mean([2 - 3, 1, 3 - 3, -0.5 - 1]))


def test_tokens_of_the_highest_entropy():
    """Of six tokens that count, ⌈0.4 · 6⌉ = 3 are chosen; 0.2 · 10 is 2 and not 3 by rounding."""
    entropy = jnp.array([[0.1, 0.9, 0.5, 7.0, 8.0], [0.6, 0.2, 0.8, 0.3, 9.0]])
    weight = jnp.array([[1.0, 1, 1, 0, 0], [1, 1, 0, 1, 0]])
    highest = jax.jit(selection.highest)
    expected = [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(highest(entropy, weight, 0.4), expected)
    np.testing.assert_array_equal(highest(entropy, weight, 1.0), weight > 0)
    np.testing.assert_array_equal(highest(entropy, 0 * weight, 0.4), 0 * weight)
    assert highest(entropy, jnp.ones((2, 5)), 0.2).sum() == 2


def test_importance_weights():
    """The sampler reports probabilities of 1: the weights are π, 1/2 or 1/4, and at most 0.3."""
    program, _ = build({"algorithm": "grpo", "importance_cap": 0.3, **NO_KL}, {})
    experience, trajectory = collected(program)
    found = responses(trajectory.extra["coefficient"].T, sequences(trajectory).obs)
    probability = np.exp(responses(trajectory.log_prob.T, sequences(trajectory).obs))
    near(found, np.where(REAL, np.minimum(probability, 0.3), 0))
    near(experience.metrics["importance_mean"], probability[REAL].mean())
    near(experience.metrics["importance_min"], 0.25)
    near(experience.metrics["importance_max"], 0.5)


def test_stale_rollouts_are_sampled_with_the_parameters_before_the_last_update(monkeypatch):
    """The sampler's own probabilities, of the later policy; the weights are π / later."""

    def generate(key, params, prompt, mask, *, samples, **options):
        prompt = jnp.repeat(prompt, samples, axis=0)
        row, turn = prompt[:, -1] - 1, jnp.arange(len(prompt)) % 2
        tokens, mask = jnp.asarray(RESPONSES)[row, turn], jnp.asarray(MASKS)[row, turn] > 0
        before = jnp.concatenate([prompt[:, -1:], tokens[:, :-1]], axis=1)
        table = jax.nn.log_softmax(params["table"] / TEMPERATURE)
        return Generation(tokens, mask, table[before, tokens])

    monkeypatch.setattr(rollout, "generate", generate)
    options = {"algorithm": "grpo", "stale": True, "importance_cap": 9.0, **NO_KL}
    program, _ = build(options, {})
    state = program.init(jax.random.key(0))
    near(state.rollout.sampler["actor"]["table"], POLICY["table"])
    sampler = dataclasses.replace(state.rollout, sampler={"actor": LATER})
    experience, trajectory = program.collect(
        jax.random.key(1), state.learner.params, sampler, program.frozen
    )
    found = responses(trajectory.extra["coefficient"].T, sequences(trajectory).obs)
    near(found[REAL], 1 / RATIO[REAL])
    near(experience.sampler["actor"]["table"], POLICY["table"])  # of the rollout after the update


def test_the_sampler_reports_the_probability_in_the_truncated_distribution(monkeypatch):
    """Probabilities 0.5, 0.3, 0.2 and top_k = 2: 0.625 and 0.375."""
    monkeypatch.setattr(generation, "_drawn", lambda logits, key: jnp.array([0, 1]))
    logits = jnp.log(jnp.tile(jnp.array([0.5, 0.3, 0.2]), (2, 1)))
    _, whole, left = generation._sample(jax.random.key(0), logits, 1.0, top_k=2, top_p=None)
    near(jnp.exp(whole), [0.5, 0.3])
    near(jnp.exp(left), [0.625, 0.375])


# TRL's numbers.

TRL = {
    "sequence": {"aggregation": "sequence"},
    "token": {},
    "dapo": {"clip_eps_high": 0.28},
    "constant": {"aggregation": "constant", "advantage_scale": "none"},
    "batch": {"advantage_scale": "batch"},
    "gspo": {
        "ratio": "sequence", "aggregation": "sequence", "clip_eps": 0.1, "clip_eps_high": 0.15,
    },
    "cispo": {"objective": "cispo", "clip_eps_high": 0.3},
    "dual_clip": {"dual_clip": 1.5},
    "entropy": {"entropy_top_fraction": 0.4},
    "importance": {"importance_cap": 9.0},
}  # fmt: skip


@pytest.mark.parametrize("name", TRL)
def test_trl(name):
    """Advantages, loss, gradient and clip fractions of TRL 1.12.0, from its `_compute_loss`."""
    golden = Golden("11_grpo")
    x, expected, options = golden("inputs"), golden(name), dict(TRL[name])
    fraction, cap = options.pop("entropy_top_fraction", None), options.pop("importance_cap", None)
    config = settled(algorithms.Config(**options), "grpo")
    score = jnp.asarray(x["scores"]).reshape(2, 3)
    advantage = rewards.group_normalized(score, config.advantage_scale).reshape(-1, 1)
    near(advantage[:, 0], expected["advantages"])
    coefficient = selection.coefficients(
        x["mask"], x["entropy"], np.log(x["importance"]), top_fraction=fraction, cap=cap
    )
    extra = {} if coefficient is None else {"coefficient": coefficient}
    rows = objective.with_token_weights(rows_of(x, advantage, **extra), config.aggregation)

    def loss(log_prob):
        log_prob = jnp.where(rows.weight > 0, log_prob, rows.log_prob)
        new = losses.Prediction(Table(log_prob), log_prob, rows.value, rows.value)
        each, metrics = objective.surrogate(new, rows, config)
        return losses.mean(each, rows.weight), metrics

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = both(x["new_logprobs"])
    near(value, expected["loss"])
    near(gradient, expected["grad_logprobs"])
    for side in ("low", "high"):
        if f"clip_{side}" in expected and name not in ("gspo", "cispo"):
            found = losses.mean(metrics[f"clip_fraction_{side}"], rows.weight)
            near(found, expected[f"clip_{side}"])


# Combinations.

REFUSED = [
    ("ppo", {}, {"advantage_scale": "batch"}, "advantage_scale is batch.*compared.*leave"),
    ("reinforce", {}, {"ratio": "sequence"}, "ratio is sequence.*reinforce does not compare"),
    ("ppo", {"dynamic_sampling": "redraw"}, {}, "dynamic_sampling is redraw.*grpo"),
    ("rloo", {}, {"advantage_scale": "batch", "whiten_advantages": True}, "no effect with whiten"),
    ("maxrl", {}, {}, "use kl_in loss, or kl_coef 0"),
    ("cispo", {}, {"dual_clip": 3.0}, "leave dual_clip out"),
    ("cispo", {}, {"clip_eps": 0.3}, "clip_eps is 0.3.*set clip_eps_high"),
    ("dapo", {}, {"dual_clip": 1.25}, r"dual_clip is 1.25; it must exceed .* 1 \+ 0.28"),
    ("grpo", {"length_penalty_start": 0.5}, {}, "length_penalty is 0; set length_penalty"),
    ("dapo", {}, {"objective": "simple", "clip_eps_high": 0.5}, "clip_eps_high is 0.5.*leave"),
    ("grpo", {}, {"objective": "discovered", "clip_eps": 0.3}, "discovered has no clip range"),
    ("grpo", {"kl_horizon": 64.0}, {}, "kl_horizon is 64.0.*set kl_target"),
    ("maxrl", {"length_penalty": 1.0, **NO_KL}, {}, "length_penalty is 1.0.*negative"),
    ("maxrl", {"missing_eos_penalty": 1.0, **NO_KL}, {}, "missing_eos_penalty is 1.0.*negative"),
    ("maxrl", {"missing_eos_score": -1.0, **NO_KL}, {}, "missing_eos_score is -1.0.*negative"),
    ("grpo", {"max_draws": 9}, {}, "max_draws is 9, but dynamic_sampling is off"),
    ("grpo", {"stale": True}, {}, "stale is True.*set importance_cap"),
    ("grpo", {"top_k": 4}, {}, "top_k is 4.*set importance_cap"),
]


@pytest.mark.parametrize(("algorithm", "options", "hyper", "message"), REFUSED)
def test_combinations_without_a_meaning_are_refused(algorithm, options, hyper, message):
    config = train.Config(algorithm=algorithm, group_size=2, **options)
    groups = algorithms.ALGORITHMS[algorithm].groups
    with pytest.raises(ValueError, match=message):
        combinations.check(config, algorithms.Config(**hyper), groups=groups)


def test_every_algorithm_has_options_that_fit_together():
    assert {*METHODS} == {*algorithms.ALGORITHMS}
    for name, method in algorithms.ALGORITHMS.items():
        config = train.Config(algorithm=name, group_size=2, kl_in="loss")
        combinations.check(config, algorithms.Config(), groups=method.groups)
        hyper = settled(algorithms.Config(), name)
        assert None not in (hyper.aggregation, hyper.ratio, hyper.objective)
        assert (hyper.advantage_scale is not None) == method.groups
        given = settled(algorithms.Config(aggregation="constant"), name)
        assert given.aggregation == "constant"


@pytest.mark.parametrize("algorithm", ["dapo", "cispo"])
@pytest.mark.parametrize("chosen", ["clip", "cispo", "simple", "discovered"])
def test_the_upper_bound_of_an_algorithm_is_that_of_its_own_objective(algorithm, chosen):
    hyper = algorithms.Config(objective=chosen)
    combinations.check(train.Config(algorithm=algorithm, group_size=2), hyper, groups=True)
    own = METHODS[algorithm].get("objective", "clip") == chosen
    bound = METHODS[algorithm]["clip_eps_high"] if own else None
    assert settled(hyper, algorithm).clip_eps_high == bound
    given = dataclasses.replace(hyper, clip_eps_high=0.5)
    assert settled(given, algorithm).clip_eps_high == 0.5


def test_the_scale_none_is_not_the_scale_of_the_algorithm():
    """On a command line and in a saved run, where "none" otherwise means None."""
    field = next(f for f in dataclasses.fields(algorithms.Config) if f.name == "advantage_scale")
    assert (parse(field, "none"), coerce(field, "none")) == ("none", "none")
    assert (parse(field, "None"), coerce(field, None)) == (None, None)
    kinds, rest = command.KINDS["ppo"], ["--model", "m", "--data", "d", "--reward", "r:f"]
    values, _ = command._values("ppo", ["--advantage-scale", "none", *rest], kinds)
    assert values["advantage_scale"] == "none"
    assert command.restored(flat(values), kinds)["advantage_scale"] == "none"
    values, _ = command._values("ppo", rest, kinds)
    assert values["advantage_scale"] is None
