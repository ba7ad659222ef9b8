"""Each algorithm for language models on four responses whose numbers are worked out by hand.

The model is a table: the next token depends on the last one alone, with the probabilities

    probability of        end   1     2        end   1     2        end   1    2
    after 1, after 2      1/2   1/4   1/4      1/4   1/4   1/2      .6    .2   .2
                          1/4   1/2   1/4      1/2   1/4   1/4      .1    .8   .1
                          policy π             reference            later policy

There are two prompts, of which each has two responses; the token 0 ends a response:

    response         x = log π − log π_ref     score   score that counts
    1 → 2 1 end      −ln 2, +ln 2, +ln 2         2       2
    1 → end          +ln 2                       1       1
    2 → 1 1 2        +ln 2, 0, −ln 2             6       3: clipped to 4, minus 1 for no end
    2 → 2 end        0, −ln 2                   −0.5    −0.5

β = 0.1 / ln 2, so that the KL penalty β x of a token is −0.1, 0 or 0.1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import losses
from ppo_jax.distributions import Categorical
from ppo_jax.divergences import k3
from ppo_jax.rlhf import algorithms, rollout, train
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.generate import Generation
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rollout import sequences
from ppo_jax.types import Batch, Trajectory
from reference import Golden

VOCABULARY, LENGTH, END = 3, 3, 0
LN2 = math.log(2.0)
TEMPERATURE = 2.0
RESPONSES = np.array([[[2, 1, END], [END, 0, 0]], [[1, 1, 2], [2, END, 0]]])
MASKS = np.array([[[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]])
REAL = MASKS.reshape(4, LENGTH) > 0
# The padded first prompt shows that masked columns are not read.
PROMPTS = (jnp.array([[2, 1], [1, 2]]), jnp.array([[0, 1], [1, 1]]))

near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


class Bigrams(Decoder):
    """A model whose hidden state is the one-hot code of the last token."""

    def hidden(self, params, tokens, mask=None, last=None):
        return jax.nn.one_hot(tokens if last is None else tokens[:, -last:], VOCABULARY)

    def head(self, params):
        return params["table"]


MODEL = Bigrams(small(VOCABULARY))


def language_model(after_1, after_2):
    """Parameters with these probabilities at the temperature; no token follows the end."""
    probability = jnp.array([[1 / 3] * 3, after_1, after_2])
    return {"table": TEMPERATURE * jnp.log(probability)}


def value_model(of_1, of_2):
    """Values of texts that end with the tokens 1 and 2; no text ends with 0 before a token."""
    return {"score": {"kernel": jnp.array([[99.0], [of_1], [of_2]])}}


POLICY = language_model([1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4])
REFERENCE = language_model([1 / 4, 1 / 4, 1 / 2], [1 / 2, 1 / 4, 1 / 4])
LATER = language_model([0.6, 0.2, 0.2], [0.1, 0.8, 0.1])
VALUE, LATER_VALUE = value_model(0.5, 1.0), value_model(1.0, 0.9)

_SCORES = np.full((VOCABULARY,) * LENGTH, np.nan)
for _tokens, _score in zip(RESPONSES.reshape(4, LENGTH), [2.0, 1.0, 6.0, -0.5], strict=True):
    _SCORES[tuple(_tokens)] = _score
REWARD = Reward(
    jnp.asarray(_SCORES), lambda scores, inputs, length: scores[tuple(inputs.tokens[:, 0, -3:].T)]
)


@pytest.fixture(autouse=True)
def given_responses(monkeypatch):
    """The sampler returns the responses of each prompt in turn."""

    def generate(key, params, prompt, mask, *, samples, **options):
        prompt = jnp.repeat(prompt, samples, axis=0)
        row, turn = prompt[:, -1] - 1, jnp.arange(len(prompt)) % 2
        tokens, mask = jnp.asarray(RESPONSES)[row, turn], jnp.asarray(MASKS)[row, turn] > 0
        return Generation(tokens, mask, jnp.zeros(mask.shape))

    monkeypatch.setattr(rollout, "generate", generate)


def build(options, hyper):
    """The program of an algorithm, with the options that all tests share."""
    config = {
        "num_prompts": 2, "group_size": 2, "max_new_tokens": LENGTH, "temperature": TEMPERATURE,
        "kl_coef": 0.1 / LN2, "reward_clip": 4.0, "missing_eos_penalty": 1.0, "updates": 4,
    }  # fmt: skip
    config = train.Config(**config | options)
    hyper = {"epochs": 1, "minibatches": 1, "clip_eps": 0.25, "learning_rate": 0.01} | hyper
    hyper = algorithms.Config(**hyper)
    critic = (MODEL, VALUE) if algorithms.ALGORITHMS[config.algorithm].critic else ("none", {})
    models = train.Models(MODEL, POLICY, *critic, REFERENCE, REWARD)
    program = train.build(models, *PROMPTS, config, hyper=hyper, eos_id=END)
    algorithm = algorithms.make(
        config.algorithm,
        program.policy,
        hyper,
        program.frozen,
        total_updates=config.updates,
        group_size=config.group_size,
        kl_kind=config.kl_kind if config.kl_in == "loss" else None,
    )
    return program, algorithm


def collected(program):
    """(state after the rollout, Trajectory) of the policy π."""
    state = program.init(jax.random.key(0))
    return rollout.collect(
        jax.random.key(1),
        state.learner.params,
        state.rollout,
        program.frozen,
        policy=program.policy,
        reference=MODEL,
        score=REWARD.score,
        settings=program.settings,
    )


def responses(x, obs):
    """[4, L] of an array [B, L]: the rows in the order of the prompts, padding as 0."""
    order = np.argsort(np.asarray(obs.tokens)[:, 0, 1], kind="stable")
    return np.where(REAL, np.asarray(x)[order], 0.0)


def update(program, algorithm, batch):
    """(learner, metrics) of an update that starts from the later policy."""
    params = {"actor": LATER}
    if program.policy.critic != "none":
        params["critic"] = LATER_VALUE
    learner = algorithm.init(jax.random.key(0), params)
    return jax.jit(algorithm.update)(jax.random.key(2), learner, batch)


def estimated(options, hyper):
    """(program, algorithm, rewards [4, L], batch) after one rollout."""
    program, algorithm = build(options, hyper)
    _, trajectory = collected(program)
    batch = sequences(algorithm.estimate(trajectory))
    return program, algorithm, responses(trajectory.reward.T, batch.obs), batch


# r_t = −β x_t, and the score at the last token.
REWARDS = [[0.1, -0.1, 1.9], [0.9, 0, 0], [-0.1, 0, 3.1], [0, -0.4, 0]]


def test_ppo():
    """γ = λ = 0.5, the critic with V(1) = 0.5 and V(2) = 1 before the update.

    δ_t = r_t + 0.5 V_{t+1} − V_t, without V_{t+1} after the last token
      0.1 + 0.5 − 0.5 = 0.1,     −0.1 + 0.25 − 1 = −0.85,   1.9 − 0.5 = 1.4
      0.9 − 0.5 = 0.4
      −0.1 + 0.25 − 1 = −0.85,   0.25 − 0.5 = −0.25,        3.1 − 0.5 = 2.6
      0.5 − 1 = −0.5,            −0.4 − 1 = −1.4
    Â_t = δ_t + 0.25 Â_{t+1}
      −0.025, −0.5, 1.4;   0.4;   −0.75, 0.4, 2.6;   −0.85, −1.4
    of which the mean is 0.1416667 and the standard deviation 1.1716560.

    The later policy: ρ = 0.8, 1.6, 1.2;  1.2;  1.6, 0.8, 0.8;  0.4, 0.4, clipped to [0.75, 1.25].
    Â whitened:   −0.14225, −0.54766, 1.07398;   0.22049;   −0.76103, 0.22049, 2.09817;   −0.84638,
      −1.31580
    −min(ρ Â, clip(ρ) Â):   0.11380, 0.87625, −1.28877;   −0.26458;   1.21765, −0.17639, −1.67854;
      0.63479, 0.98685, of which the mean is 0.0467841.
    Targets Â + V:   0.475, 0.5, 1.9;   0.9;   0.25, 0.9, 3.1;   0.15, −0.4. The later critic has
      V(1) = 1, clipped to 0.5 + 0.2, and V(2) = 0.9. The larger of both ½ (V − target)²:
      0.1378125, 0.08, 0.72;   0.02;   0.21125, 0.02, 2.88;   0.28125, 0.845: mean 5.1953125 / 9.
    Entropies: 0.9502705 after 1 (5 tokens), 0.6390319 after 2 (4 tokens): mean 0.8119422.
    Loss: 0.0467841 + 0.5 · 0.5772569 − 0.1 · 0.8119422 = 0.2542183.
    """
    hyper = {"gamma": 0.5, "gae_lambda": 0.5, "value_clip_eps": 0.2, "value_coef": 0.5}
    program, algorithm, reward, batch = estimated({}, hyper | {"entropy_coef": 0.1})
    near(reward, REWARDS)
    white = [
        [-0.14225, -0.54766, 1.07398], [0.22049, 0, 0], [-0.76103, 0.22049, 2.09817],
        [-0.84638, -1.31580, 0],
    ]  # fmt: skip
    near(responses(batch.advantage, batch.obs), white, atol=1e-5)
    target = [[0.475, 0.5, 1.9], [0.9, 0, 0], [0.25, 0.9, 3.1], [0.15, -0.4, 0]]
    near(responses(batch.target, batch.obs), target)
    _, metrics = update(program, algorithm, batch)
    near(metrics["policy_loss"], 0.0467841)
    near(metrics["value_loss"], 5.1953125 / 9)
    near(metrics["entropy"], 0.8119422)
    near(metrics["loss"], 0.2542183)
    near(metrics["first_ratio_gap"], 0.6)


def test_ppo_without_whitening():
    """The raw estimates of `test_ppo`; the rewards scaled by their standard deviation instead.

    Mean of the rewards 5.4 / 9 = 0.6; of their squares 14.22 / 9; variance 1.58 − 0.36 = 1.22, and
    standard deviation 1.1045361. The last reward of the first response: (1.9 − 0.6) / 1.1045361 +
    0.6 = 1.7769651, from which V(1) = 0.5 is subtracted.
    """
    raw = [[-0.025, -0.5, 1.4], [0.4, 0, 0], [-0.75, 0.4, 2.6], [-0.85, -1.4, 0]]
    hyper = {"gamma": 0.5, "gae_lambda": 0.5, "whiten_advantages": False}
    *_, batch = estimated({}, hyper)
    near(responses(batch.advantage, batch.obs), raw)
    *_, batch = estimated({}, hyper | {"whiten_rewards": True})
    near(responses(batch.advantage, batch.obs)[0, 2], 1.2769651)


def test_reinforce():
    """Σ_{s≥t} r_s minus the mean return of the three other responses.

    Returns 1.9, 0.9, 3.0, −0.4; means of the others 3.5 / 3, 4.5 / 3, 2.4 / 3, 5.8 / 3.
    Rewards to go   1.9, 1.8, 1.9;   0.9;   3.0, 3.1, 3.1;   −0.4, −0.4
    Â   0.73333, 0.63333, 0.73333;   −0.6;   2.2, 2.3, 2.3;   −2.33333, −2.33333
    of which the mean is 0.4037037 and the standard deviation 1.7217164.

    −min(ρ Â, clip(ρ) Â) of the whitened Â and the ρ of `test_ppo`:
      −0.15316, −0.16672, −0.22974;   0.69956;   −1.30415, −0.88112, −0.88112;   1.19229, 1.19229
    Loss: the mean, −0.0590974.
    """
    program, algorithm, reward, batch = estimated({"algorithm": "reinforce"}, {})
    near(reward, REWARDS)
    advantage = [[2.2 / 3, 1.9 / 3, 2.2 / 3], [-0.6, 0, 0], [2.2, 2.3, 2.3], [-7 / 3, -7 / 3, 0]]
    whitened = np.where(REAL, (np.array(advantage) - 0.4037037) / 1.7217164, 0.0)
    near(responses(batch.advantage, batch.obs), whitened)
    near(update(program, algorithm, batch)[1]["loss"], -0.0590974)


def test_rloo():
    """The return minus that of the other response to the same prompt, for each token.

    Returns 1.9, 0.9 and 3.0, −0.4: Â = 1, −1 and 3.4, −3.4, not whitened.
    −min(ρ Â, clip(ρ) Â) with the ρ of `test_ppo`:
      −0.8, −1.25, −1.2;   1.2;   −4.25, −2.72, −2.72;   2.55, 2.55
    Loss: −6.64 / 9.
    """
    program, algorithm, reward, batch = estimated({"algorithm": "rloo"}, {})
    near(reward, REWARDS)
    advantage = [[1, 1, 1], [-1, 0, 0], [3.4, 3.4, 3.4], [-3.4, -3.4, 0]]
    near(responses(batch.advantage, batch.obs), advantage)
    near(update(program, algorithm, batch)[1]["loss"], -6.64 / 9)


def test_grpo():
    """The score within its group, and the KL in the loss instead of the rewards.

    Scores 2, 1: ±0.5 / (√0.5 + 1e-4) = ±0.7070068; scores 3, −0.5: ±1.75 / (√6.125 + 1e-4) =
      ±0.7070782 (sample standard deviations).
    −min(ρ Â, clip(ρ) Â) with the ρ of `test_ppo`:
      −0.56561, −0.88376, −0.84841;   0.84841;   −0.88385, −0.56566, −0.56566;   0.53031, 0.53031
      of which the mean is −0.2671022.
    k3 = π_ref / π − 1 − ln(π_ref / π) of the later policy, with π_ref / π = 5/2, 5/16, 5/12;
      5/12;   5/16, 5/4, 5/2;   5/2, 5:
      0.58371, 0.47565, 0.29214;   0.29214;   0.47565, 0.02686, 0.58371;   0.58371, 2.39056
    The mean of ρ k3 is 0.4853707, times β = 0.1442695: 0.0700242.
    Loss: −0.2671022 + 0.0700242 = −0.1970780.
    """
    options = {"algorithm": "grpo", "kl_in": "loss", "kl_kind": "k3"}
    program, algorithm, reward, batch = estimated(options, {})
    near(reward, [[0, 0, 2], [1, 0, 0], [0, 0, 3], [0, -0.5, 0]])
    a, b = 0.7070068, 0.7070782
    near(responses(batch.advantage, batch.obs), [[a, a, a], [-a, 0, 0], [b, b, b], [-b, -b, 0]])
    _, metrics = update(program, algorithm, batch)
    near(metrics["policy_loss"], -0.2671022)
    near(metrics["kl_loss"], 0.0700242)
    near(metrics["loss"], -0.1970780)


def test_the_step_has_the_kl_in_the_loss():
    """The update that `train.build` makes of the options: k2 = ½ ln² 2 for 7 of 9 tokens.

    At the policy that was sampled from, ρ = 1, the whitened advantages have the mean 0, and the
    loss is that of the KL alone: 0.1 / ln 2 · 7/9 · ½ ln² 2 = 0.0269557.
    """
    program, _ = build({"algorithm": "reinforce", "kl_in": "loss", "kl_kind": "k2"}, {})
    state = program.init(jax.random.key(0))
    _, metrics = jax.jit(program.step)(state, program.frozen)
    near(metrics["loss"], 0.0269557)


def test_the_kl_coefficient_follows_the_kl():
    """Mean KL of a response (1 + 1 + 0 − 1) ln 2 / 4 = 0.1732868 nats, 4 responses, horizon 8.

    Target 0.16: 0.1732868 / 0.16 − 1 = 0.0830425, β grows by 0.0830425 · 4 / 8 = 4.152 %.
    Target 0.1: the error 0.73 is clipped to 0.2, β grows by 10 %. Target 0.4: −0.2, by −10 %.
    """
    for target, factor in ((0.16, 1.0415212), (0.1, 1.1), (0.4, 0.9)):
        program, _ = build({"kl_target": target, "kl_horizon": 8.0}, {})
        state, _ = collected(program)
        near(state.metrics["kl"], 0.25 * LN2)
        near(state.kl_coef, factor * 0.1 / LN2)
    program, _ = build({}, {})
    near(collected(program)[0].kl_coef, 0.1 / LN2)


def test_the_learning_rate_decays_to_zero():
    """Four updates: 1, 3/4, 1/2 and 1/4 of the learning rate."""
    _, algorithm, _, batch = estimated({"algorithm": "rloo"}, {})
    learner = algorithm.init(jax.random.key(0), {"actor": LATER})
    step = jax.jit(algorithm.update)
    for share in (1, 0.75, 0.5, 0.25):
        learner, metrics = step(jax.random.key(0), learner, batch)
        near(metrics["learning_rate"], 0.01 * share)


def test_the_variants_of_ppo_in_an_update():
    """RLOO with SPO's objective, 2 (ρ − 1)² |Â| − ρ Â for ε = 1/4, with the ρ of `test_ppo`:
      −0.72, −0.88, −1.12;   1.28;   −2.992, −2.448, −2.448;   3.808, 3.808
    Loss: −1.712 / 9. The weight decay of the only matrix is α λ θ; Adam's counter restarts.
    """
    options = {"algorithm": "rloo"}
    program, algorithm, _, batch = estimated(options, {"objective": "simple"})
    plain, metrics = update(program, algorithm, batch)
    near(metrics["loss"], -1.712 / 9)
    hyper = {"objective": "simple", "weight_decay": 0.5, "adam_reset": True}
    _, algorithm = build(options, hyper)
    learner, _ = update(program, algorithm, batch)
    decayed = plain.params["actor"]["table"] - 0.01 * 0.5 * LATER["table"]
    near(learner.params["actor"]["table"], decayed, rtol=1e-4)
    learner, _ = jax.jit(algorithm.update)(jax.random.key(2), learner, batch)
    assert int(learner.opt_state.adam.count) == 1 and int(learner.step) == 2


# The KL as a term of the loss.

OLD, NEW, FIXED = (
    jnp.log(jnp.array(p)) for p in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.5, 0.1])
)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "abs"])
def test_the_gradient_of_the_kl_loss_is_that_of_the_kl(kind):
    """All tokens, weighted by the old policy: the expectation, after several gradient steps too."""
    term = algorithms.kl_penalty(kind)
    nothing = jnp.zeros(3)
    extra = {"ref_log_prob": FIXED, "kl_coef": jnp.full(3, 0.3)}
    rows = Batch((), jnp.arange(3), OLD, nothing, nothing, nothing, jnp.exp(OLD), extra)

    def loss(logits):
        log_prob = jax.nn.log_softmax(logits)
        return term(losses.Prediction(None, log_prob, nothing, nothing), rows)[0]

    exact = lambda logits: 0.3 * Categorical(logits).kl(Categorical(FIXED))
    for logits in (OLD, NEW):
        (value, gradient), (kl, expected) = (jax.value_and_grad(f)(logits) for f in (loss, exact))
        near(gradient, expected)
        if kind in ("k1", "k3"):  # the unbiased estimators
            near(value, kl)


def test_differentiating_an_unbiased_estimate_is_not_the_gradient():
    """Why the loss replaces it: E[∇ k3] = ∇ KL(π_ref ‖ π), the other direction."""
    expected = jax.grad(lambda z: Categorical(FIXED).kl(Categorical(z)))(NEW)
    estimate = lambda z: jnp.sum(jnp.exp(NEW) * k3(FIXED, jax.nn.log_softmax(z)))
    near(jax.grad(estimate)(NEW), expected)


def test_an_unknown_estimator_of_the_kl_is_refused():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'"):
        algorithms.kl_penalty("k4")


# The numbers of OpenRLHF and TRL, through the same functions.


class Table:
    """Log-probabilities that are the parameters; the entropy is 0."""

    def __init__(self, log_prob):
        self._log_prob = log_prob

    def log_prob(self, action):
        return self._log_prob

    def entropy(self):
        return jnp.zeros_like(self._log_prob)


class TablePolicy:
    """A policy whose parameters are the outputs of each row, which `obs` names."""

    def apply(self, params, obs):
        row = obs.tokens[:, 0]
        return Table(params["actor"][row]), params["critic"][row]

    def joined(self, frozen):
        return self


def test_openrlhf_through_the_algorithm():
    """Rewards, GAE, clipped losses and their gradients of OpenRLHF, by one update of `ppo`."""
    golden = Golden("07_rlhf")
    x = golden("inputs")
    reward, gae = golden("openrlhf/kl_reward_k1"), golden("openrlhf/gae_g1.0_l0.95")
    policy_loss, value_loss = (
        golden("openrlhf/policy_loss_token"),
        golden("openrlhf/value_loss_clip"),
    )
    config = algorithms.Config(
        gae_lambda=float(gae["hp/lambd"]),
        gamma=float(gae["hp/gamma"]),
        clip_eps=float(policy_loss["hp/clip_eps_low"]),
        value_clip_eps=float(value_loss["hp/clip_eps"]),
        value_coef=1.0,
        whiten_advantages=False,
        epochs=1,
        minibatches=1,
    )
    algorithm = algorithms.make("ppo", TablePolicy(), config, {}, total_updates=1)
    real = x["mask"] > 0
    settings = rollout.Settings(
        1, kl_coef=float(reward["hp/kl_coef"]), reward_clip=float(reward["hp/reward_clip_high"])
    )
    trajectory = golden_trajectory(x, settings)
    near(np.where(real, trajectory.reward.T, 0), np.where(real, reward["rewards"], 0), rtol=2e-5)
    batch = sequences(algorithm.estimate(trajectory))
    for found, name in ((batch.advantage, "advantages"), (batch.target, "returns")):
        near(found[real], gae[name][real], rtol=2e-5, atol=2e-6)
    params = {"actor": jnp.asarray(x["new_logprobs"]), "critic": jnp.asarray(x["vpreds"])}
    learner = algorithm.init(jax.random.key(0), params)
    _, metrics = jax.jit(algorithm.update)(jax.random.key(0), learner, batch)
    near(metrics["policy_loss"], policy_loss["loss"], rtol=2e-5)
    near(metrics["value_loss"], value_loss["loss"], rtol=2e-5)
    gradient = np.hypot(policy_loss["grad_logprobs"], value_loss["grad_vpreds"])
    near(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-4)


def golden_trajectory(x, settings) -> Trajectory:
    """The trajectory that `rollout` makes of the golden responses; `obs` is the row."""
    rows = jnp.arange(len(x["mask"]))
    said = rollout.Responses(
        inputs=TokenInputs(rows[:, None], rows[:, None]),
        tokens=jnp.asarray(x["tokens"]),
        mask=jnp.asarray(x["mask"]),
        ended=jnp.ones(len(rows), bool),
        gap=jnp.zeros(()),
        log_prob=jnp.asarray(x["old_logprobs"]),
        ref_log_prob=jnp.asarray(x["ref_logprobs"]),
        value=jnp.asarray(x["values"]),
        raw_score=jnp.asarray(x["scores"]),
        entropy=jnp.zeros(x["mask"].shape),
        log_weight=jnp.zeros(x["mask"].shape),
    )
    score = rollout.shape_scores((), said, settings)
    return rollout._trajectory(said, score, settings.kl_coef, settings)
