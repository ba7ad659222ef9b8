"""Token rewards: agreement with four implementations, and independence of padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import losses, normalization
from ppo_jax.advantages import estimate_gae, estimate_returns
from ppo_jax.distributions import Categorical
from ppo_jax.divergences import k2
from ppo_jax.rlhf import rewards
from ppo_jax.types import Trajectory
from reference import Golden

GOLDEN, CONTROLLER = Golden("07_rlhf"), Golden("04_adaptive_kl")
INPUTS = {k: jnp.asarray(v) for k, v in GOLDEN("inputs").items()}
MASK = INPUTS["mask"]
REAL = np.asarray(MASK) > 0

near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
near_gradient = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)


def case(name: str) -> tuple[dict, dict]:
    """(arrays, hyperparameters) of a case."""
    x = GOLDEN(name)
    hp = {k[3:]: v.item() for k, v in x.items() if k.startswith("hp/")}
    return {k: jnp.asarray(v) for k, v in x.items() if not k.startswith("hp/")}, hp


def trajectory(reward, value, mask) -> Trajectory:
    """Responses [B, L] as a trajectory [T, N], terminated by the last token."""
    t = lambda x: jnp.swapaxes(x, 0, 1)
    ended = t(rewards.last_token(mask))
    next_value = t(jnp.pad(value[:, 1:], ((0, 0), (0, 1))))
    nothing = jnp.zeros_like(t(value))
    return Trajectory(
        obs=(),
        action=(),
        log_prob=nothing,
        value=t(value),
        next_value=next_value,
        reward=t(reward),
        terminated=ended,
        done=ended,
        weight=t(mask),
    )


def gae(reward, value, mask, gamma, lambda_):
    batch = estimate_gae(trajectory(reward, value, mask), gamma=gamma, lambda_=lambda_)
    return batch.advantage.T * (mask > 0), batch.target.T


def token_mean(loss, mask):
    return losses.mean(loss, mask)


def response_mean(loss, mask):
    """OpenRLHF's other reduction: all responses have equal weight, whatever their length."""
    return jnp.mean(jax.vmap(losses.mean)(loss, mask))


def policy_loss(log_prob, old, advantage, mask, eps, reduce=token_mean):
    log_prob = jnp.where(mask > 0, log_prob, old)
    return reduce(losses.clipped_surrogate(log_prob, old, advantage, eps), mask)


def value_loss(value, old, target, mask, eps, reduce=token_mean):
    if eps is None:
        return reduce(losses.squared_error(value, target), mask)
    return reduce(losses.clipped_squared_error(value, old, target, eps), mask)


def token_log_prob(logits, tokens):
    return Categorical(logits).log_prob(tokens)


# Old TRL: the same conventions as ours, except for the sample variance.


def test_trl_log_probs_and_entropy():
    x, _ = case("trl0.11.4/logprobs_entropy")
    dist = Categorical(INPUTS["new_logits"])
    near(dist.log_prob(INPUTS["tokens"]), x["new_logprobs"])
    near(dist.entropy(), x["entropy"])
    near(losses.mean(dist.entropy(), MASK), x["masked_entropy"])


def test_trl_masked_moments():
    x, _ = case("trl0.11.4/masked_ops")
    value = INPUTS["values"]
    near(losses.mean(value, MASK), x["masked_mean"])
    near(jax.vmap(losses.mean)(value, MASK), x["masked_mean_axis1"])
    whiten = functools.partial(rewards.whiten, value, MASK, ddof=1)
    near(whiten()[REAL], x["masked_whiten"][REAL])
    near(whiten(shift_mean=False)[REAL], x["masked_whiten_noshift"][REAL])
    near(rewards.whiten(value, jnp.ones_like(MASK), ddof=1), x["whiten"])
    # With our population variance, the divisor is the biased one.
    ratio = rewards.whiten(value, MASK)[REAL] / x["masked_whiten"][REAL]
    near(ratio, jnp.sqrt(x["masked_var"] / x["masked_var_biased"]), rtol=1e-4)
    np.testing.assert_array_equal(rewards.whiten(value, MASK)[~REAL], 0.0)


@pytest.mark.parametrize(("theirs", "ours"), [("kl", "k1"), ("abs", "abs"), ("mse", "k2")])
def test_trl_rewards(theirs, ours):
    x, hp = case(f"trl0.11.4/compute_rewards_{theirs}")
    log_prob, ref = INPUTS["old_logprobs"], INPUTS["ref_logprobs"]
    near(rewards.kl_estimate(log_prob, ref, ours), x["kls"])
    kl = rewards.kl_estimate(log_prob, ref, ours, MASK)
    reward = rewards.token_rewards(kl, INPUTS["scores"], MASK, hp["kl_coef"])
    near(reward[REAL], x["rewards"][REAL])
    np.testing.assert_array_equal(reward[~REAL], 0.0)


def test_trl_rewards_with_the_kl_over_the_vocabulary():
    x, hp = case("trl0.11.4/compute_rewards_full")
    kl = Categorical(INPUTS["old_logits"]).kl(Categorical(INPUTS["ref_logits"]))
    near(kl, x["kls"])
    reward = rewards.token_rewards(kl, INPUTS["scores"], MASK, hp["kl_coef"])
    near(reward[REAL], x["rewards"][REAL])


@pytest.mark.parametrize("name", ["default", "whiten", "discount"])
def test_trl_advantages(name):
    x, hp = case(f"trl0.11.4/compute_advantages_{name}")
    reward = case("trl0.11.4/compute_rewards_kl")[0]["rewards"]
    value, mask = INPUTS["values"], MASK
    if hp["whiten_rewards"]:
        # Theirs also rewards padding: whitening a reward of 0 does not give 0.
        mean, deviation = jnp.mean(reward[REAL]), jnp.std(reward[REAL], ddof=1)
        whitened = rewards.whiten(reward, MASK, shift_mean=False, ddof=1)
        reward = jnp.where(REAL, whitened, mean - mean / deviation)
        value, mask = x["values_masked"], jnp.ones_like(MASK)
    advantage, target = gae(reward, value, mask, hp["gamma"], hp["lam"])
    near(target[REAL], x["returns"][REAL])
    near(rewards.whiten(advantage, MASK, ddof=1)[REAL], x["advantages"][REAL], atol=5e-6)


@pytest.mark.parametrize("name", ["default", "tight"])
def test_trl_loss_and_gradients(name):
    x, hp = case(f"trl0.11.4/loss_{name}")
    given, _ = case("trl0.11.4/compute_advantages_default")

    def parts(logits, value):
        log_prob = token_log_prob(logits, INPUTS["tokens"])
        policy = policy_loss(
            log_prob, INPUTS["old_logprobs"], given["advantages"], MASK, hp["cliprange"]
        )
        critic = value_loss(
            value, given["values_masked"], given["returns"], MASK, hp["cliprange_value"]
        )
        return policy, hp["vf_coef"] * critic

    arguments = INPUTS["new_logits"], INPUTS["vpreds"]
    policy, critic = parts(*arguments)
    near(policy, x["pg_loss"])
    near(critic, x["vf_loss_times_coef"])
    near(policy + critic, x["stat_loss_total"])
    gradient = jax.grad(lambda *a: sum(parts(*a)), argnums=(0, 1))(*arguments)
    near_gradient(gradient[0], x["grad_logits"])
    near_gradient(gradient[1], x["grad_vpreds"])
    near(
        losses.mean(k2(INPUTS["old_logprobs"], INPUTS["new_logprobs"]), MASK),
        x["stat_policy_approxkl"],
    )


# OpenRLHF: population variance and last token as here; KL and log-ratios are clamped.


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_openrlhf_rewards(kind):
    x, hp = case(f"openrlhf/kl_reward_{kind}")
    kl = rewards.kl_estimate(INPUTS["old_logprobs"], INPUTS["ref_logprobs"], kind)
    kl = jnp.clip(kl, -10.0, 10.0)
    near(kl, x["kl"])
    score = jnp.clip(INPUTS["scores"], hp["reward_clip_low"], hp["reward_clip_high"])
    reward = rewards.token_rewards(kl, score, MASK, hp["kl_coef"])
    near(reward[REAL], x["rewards"][REAL])


@pytest.mark.parametrize("name", ["g1.0_l0.95", "g0.98_l1.0"])
def test_openrlhf_advantages(name):
    x, hp = case(f"openrlhf/gae_{name}")
    reward = case("openrlhf/kl_reward_k1")[0]["rewards"]
    advantage, target = gae(reward, INPUTS["values"], MASK, hp["gamma"], hp["lambd"])
    near(advantage[REAL], x["advantages"][REAL])
    near(target[REAL], x["returns"][REAL])


@pytest.mark.parametrize("name", ["1.0", "0.98"])
def test_openrlhf_returns(name):
    x, hp = case(f"openrlhf/reinforce_returns_g{name}")
    reward = case("openrlhf/kl_reward_k1")[0]["rewards"]
    steps = trajectory(reward, jnp.zeros_like(reward), MASK)
    near(estimate_returns(steps, gamma=hp["gamma"]).target.T[REAL], x["returns"][REAL])


def test_openrlhf_whitening():
    """Per row, and with a lower bound of the variance instead of a term added to it."""
    x, _ = case("openrlhf/masked_normalize")
    row = jax.vmap(lambda v, m: rewards.whiten(v[None], m[None])[0])
    near(row(INPUTS["values"], MASK), x["out"])


@pytest.mark.parametrize("name", ["token", "sample", "dual", "asym"])
def test_openrlhf_policy_loss(name):
    x, hp = case(f"openrlhf/policy_loss_{name}")
    advantage = case("openrlhf/gae_g1.0_l0.95")[0]["advantages"]
    reduce = token_mean if hp["token_level_loss"] else response_mean

    def loss(log_prob):
        old = INPUTS["old_logprobs"]
        surrogate = functools.partial(losses.clipped_surrogate, log_prob, old, advantage)
        # Which side is clipped depends only on the sign of the advantage.
        each = jnp.where(
            advantage < 0, surrogate(hp["clip_eps_low"]), surrogate(hp["clip_eps_high"])
        )
        if "dual_clip" in hp:
            ceiling = -hp["dual_clip"] * advantage
            each = jnp.where(advantage < 0, jnp.minimum(each, ceiling), each)
        return reduce(each, MASK)

    value, gradient = jax.value_and_grad(loss)(INPUTS["new_logprobs"])
    near(value, x["loss"])
    near_gradient(gradient, x["grad_logprobs"])


@pytest.mark.parametrize("name", ["clip", "noclip", "clip_sample"])
def test_openrlhf_value_loss(name):
    x, hp = case(f"openrlhf/value_loss_{name}")
    target = case("openrlhf/gae_g1.0_l0.95")[0]["returns"]
    loss, gradient = jax.value_and_grad(value_loss)(
        INPUTS["vpreds"],
        INPUTS["values"],
        target,
        MASK,
        hp.get("clip_eps"),
        token_mean if hp.get("token_level_loss", True) else response_mean,
    )
    near(loss, x["loss"])
    near_gradient(gradient, x["grad_vpreds"])


# New TRL: the score is one slot later, and the value there is used.


def one_slot_later(mask):
    """[B, L] the mask extended by the slot after each response, if there is one.

    TRL's second PPOTrainer (0.12 to 1.12) and DeepSpeed-Chat assign the score to the slot after the
    last counted token, and bootstrap with the value there.
    """
    later = jnp.pad(mask[:, :-1], ((0, 0), (1, 0)))
    return jnp.maximum(mask, later)


@pytest.mark.parametrize(("name", "kind"), [("k1", "k1"), ("k3_whiten", "k3")])
def test_new_trl_rewards_and_advantages(name, kind):
    x, hp = case(f"trl_new/{name}")
    mask = (~x["padding_mask"]).astype(jnp.float32)
    longer = one_slot_later(mask)
    np.testing.assert_array_equal(longer, ~x["padding_mask_p1"])
    kl = rewards.kl_estimate(x["logprobs"], x["ref_logprobs"], kind, mask)
    near(kl, x["kl"])
    near(jnp.mean(rewards.sequence_kl(kl, mask)), x["log_objective_kl"])
    reward = rewards.token_rewards(kl, x["scores"], longer, hp["kl_coef"])
    near(jnp.mean(jnp.sum(reward, 1)), x["log_objective_rlhf_reward"], rtol=1e-4)
    if hp["whiten_rewards"]:
        reward = rewards.whiten(reward, longer, shift_mean=False, ddof=1)
    near(reward, x["rewards"])
    advantage, target = gae(reward, x["values"], longer, hp["gamma"], hp["lam"])
    near(target, x["returns"])
    near(rewards.whiten(advantage, mask, ddof=1), x["advantages"], atol=5e-6)


@pytest.mark.parametrize("name", ["k1", "k3_whiten"])
def test_new_trl_losses(name):
    x, hp = case(f"trl_new/{name}")
    mask = (~x["padding_mask"]).astype(jnp.float32)
    longer = one_slot_later(mask)
    for k, i in enumerate(x["mb_inds"]):
        policy = policy_loss(
            x["mb_new_logprobs"][k], x["logprobs"][i], x["advantages"][i], mask[i], hp["cliprange"]
        )
        critic = value_loss(
            x["mb_vpred"][k], x["values"][i], x["returns"][i], longer[i], hp["cliprange_value"]
        )
        near(policy, x["mb_pg_loss"][k])
        near(critic, x["mb_vf_loss"][k])
        near(policy + hp["vf_coef"] * critic, x["mb_loss"][k])


def test_new_trl_ends():
    """Their response ends with the first EOS; in our terms, that is the last token of the mask."""
    x, _ = case("trl_new/k1")
    mask = (~x["padding_mask"]).astype(jnp.float32)
    ended = rewards.has_eos(x["responses"], mask, eos_id=1)
    np.testing.assert_array_equal(ended, x["contain_eos_token"])


# DeepSpeed-Chat: one slot later than its attention, prompts first, no whitening.


def test_deepspeed_chat():
    x, hp = case("deepspeed_chat/train_rlhf")
    start = x["prompts"].shape[1] - 1
    mask = x["attention_mask"][:, 1:].astype(jnp.float32)[:, start:]
    longer = one_slot_later(mask)
    response = lambda name: x[name][:, start:]
    kl = rewards.kl_estimate(response("logprobs"), response("ref_logprobs"), "k1")
    clip = hp["clip_reward_value"]
    score = jnp.clip(x["scores"], -clip, clip)
    reward = rewards.token_rewards(kl, score, longer, hp["kl_ctl"])
    near(reward, response("rewards_zeroed"))
    advantage, target = gae(reward, response("values"), longer, hp["gamma"], hp["lam"])
    near(advantage, x["advantages"])
    near(target, x["returns"])

    def actor(logits):
        log_prob = token_log_prob(logits[:, :-1], x["seq"][:, 1:])[:, start:]
        return policy_loss(log_prob, response("logprobs"), advantage, mask, hp["cliprange"])

    def critic(value):
        value = value[:, :-1][:, start:]
        return value_loss(value, response("values_zeroed"), target, mask, hp["cliprange_value"])

    for loss, given, name in ((actor, "new_logits", "actor"), (critic, "new_values", "critic")):
        value, gradient = jax.value_and_grad(loss)(x[given])
        near(value, x[f"{name}_loss"])
        near_gradient(gradient, x["grad_logits" if name == "actor" else "grad_values"])


def token_preference_loss(scores, tokens, masks):
    """[M] the preference loss at every token [M, L], averaged as in DeepSpeed-Chat.

    L = mean over t from the first difference to the longer end of −log σ(s_chosen,t − s_rejected,t)

    Beyond the end of the shorter response it uses the scores of padding, as in its reward_model.py.
    """
    real = [mask > 0 for mask in masks]
    anywhere = real[0] | real[1]
    differs = anywhere & ((tokens[0] != tokens[1]) | (real[0] != real[1]))
    span = anywhere & (jnp.cumsum(differs, axis=1) > 0)
    loss = rewards.preference_loss(*(jnp.where(span, score, 0.0) for score in scores))
    return jax.vmap(losses.mean)(loss, span.astype(loss.dtype))


def test_deepspeed_chat_reward_model():
    x, hp = case("reward_model/deepspeed_chat")
    mask = (x["input_ids"] != hp["pad_id"]).astype(jnp.float32)
    pairs = lambda a: (a[:4], a[4:])

    def loss(head):
        score = x["hidden"] @ head[0]
        return jnp.mean(token_preference_loss(pairs(score), pairs(x["input_ids"]), pairs(mask)))

    value, gradient = jax.value_and_grad(loss)(x["v_head"])
    near(value, x["loss"])
    near_gradient(gradient, x["grad_v_head"])
    ends = jnp.sum(jnp.where(rewards.last_token(mask), x["token_rewards"], 0.0), axis=1)
    near(ends, jnp.concatenate([x["chosen_end_scores"], x["rejected_end_scores"]]))


@pytest.mark.parametrize("name", ["plain", "margin", "center"])
def test_trl_reward_model(name):
    x, hp = case(f"reward_model/trl0.11.4_{name}")

    def loss(chosen, rejected):
        each = rewards.preference_loss(chosen, rejected, x.get("margin", 0.0))
        each += hp.get("center_rewards_coefficient", 0.0) * rewards.centering_loss(chosen, rejected)
        return jnp.mean(each)

    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(x["chosen"], x["rejected"])
    near(value, x["loss"], rtol=1e-5)
    near_gradient(gradient[0], x["grad_chosen"], rtol=1e-5, atol=1e-8)
    near_gradient(gradient[1], x["grad_rejected"], rtol=1e-5, atol=1e-8)


def test_openrlhf_reward_model():
    x, _ = case("reward_model/openrlhf")
    chosen, rejected = x["chosen"], x["rejected"]
    loss = lambda *args: jnp.mean(rewards.preference_loss(*args))
    near(loss(chosen, rejected), x["pairwise"], rtol=1e-5)
    near(loss(chosen, rejected), x["logexp"], rtol=1e-5)
    near(loss(chosen, rejected, x["margin"]), x["pairwise_margin"], rtol=1e-5)
    gradient = jax.grad(loss, argnums=(0, 1))(chosen, rejected)
    near_gradient(gradient[0], x["grad_chosen"])
    near_gradient(gradient[1], x["grad_rejected"])


@pytest.mark.parametrize("peer", ["trl_default", "openrlhf_short_horizon"])
def test_adaptive_kl(peer):
    x = CONTROLLER(peer)
    coef = jnp.float32(x["hp/init_kl_coef"])
    for kl, expected in zip(x["kl"], x["kl_coef"], strict=True):
        coef = rewards.adaptive_kl(
            coef, jnp.float32(kl), x["hp/target"], x["hp/horizon"], x["hp/n_steps"]
        )
        np.testing.assert_allclose(coef, expected, rtol=1e-5)


# Cases that no peer covers.


def test_preferences_of_extreme_scores():
    chosen, rejected = jnp.array([120.0, -120.0, 1.0]), jnp.array([-120.0, 120.0, 1.0])
    loss = rewards.preference_loss(chosen, rejected)
    np.testing.assert_allclose(loss, [0.0, 240.0, np.log(2)], rtol=1e-6)
    gradient = jax.grad(lambda c: jnp.sum(rewards.preference_loss(c, rejected)))(chosen)
    np.testing.assert_allclose(gradient, [0.0, -1.0, -0.5])


def test_the_score_falls_on_the_last_token():
    """A full response, one with a single token, one without tokens, and one with a gap."""
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    score = jnp.array([1.7, -2.5, 9.0, 0.25])
    reward = rewards.token_rewards(jnp.ones((4, 4)), score, mask, 0.0)
    expected = np.zeros((4, 4), np.float32)
    expected[0, 3], expected[1, 0], expected[3, 2] = 1.7, -2.5, 0.25
    np.testing.assert_array_equal(reward, expected)
    assert reward.dtype == jnp.float32


def test_rewards_sum_to_the_penalised_score():
    kl = rewards.kl_estimate(INPUTS["old_logprobs"], INPUTS["ref_logprobs"], "k1", MASK)
    reward = rewards.token_rewards(kl, INPUTS["scores"], MASK, 0.3)
    near(reward.sum(1), INPUTS["scores"] - 0.3 * rewards.sequence_kl(kl, MASK))


def test_padding_is_never_read():
    """Neither the loss of an update nor its gradients change, with a response without tokens."""
    mask = MASK.at[1].set(0.0)

    def loss(log_prob, ref, value, score, coef):
        # One program for all cases, because compiling dominates the time.
        kl = sum(rewards.kl_estimate(log_prob, ref, kind, mask) for kind in rewards.KL_ESTIMATORS)
        reward = rewards.token_rewards(kl, score, mask, coef)
        advantage, target = gae(reward, value, mask, 1.0, 0.95)
        advantage = rewards.whiten(advantage, mask)
        policy = policy_loss(log_prob, INPUTS["old_logprobs"], advantage, mask, 0.2)
        return policy + losses.mean(jnp.square(jnp.where(mask > 0, target, 0.0)), mask)

    def filled(x, empty):
        return jnp.where(mask > 0, x, empty)

    names = ("new_logprobs", "ref_logprobs", "values")
    differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))

    def outcome(empty):
        given = [filled(INPUTS[name], empty) for name in names]
        return jax.tree.leaves(differentiate(*given, INPUTS["scores"].at[1].set(empty), 0.1))

    clean = outcome(0.0)
    assert all(np.isfinite(x).all() for x in clean)
    for garbage in (np.inf, -np.inf, np.nan):
        for expected, found in zip(clean, outcome(garbage), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_whitening_of_one_token_and_of_equal_ones():
    one = jnp.zeros((2, 3)).at[0, 1].set(1.0)
    x = jnp.full((2, 3), 3.3)
    for mask in (one, jnp.ones((2, 3)), jnp.zeros((2, 3))):
        for ddof in (0, 1):
            np.testing.assert_array_equal(rewards.whiten(x, mask, ddof=ddof), 0.0)
        np.testing.assert_allclose(rewards.whiten(x, mask, shift_mean=False), x * mask, rtol=1e-6)


def test_masks_of_bools():
    mask = MASK > 0
    value, kl = INPUTS["values"], INPUTS["old_logprobs"]
    for f in (
        lambda m: rewards.whiten(value, m, shift_mean=False, ddof=1),
        lambda m: rewards.token_rewards(kl, INPUTS["scores"], m, 0.1),
        lambda m: rewards.sequence_kl(kl, m),
        lambda m: gae(kl, value, m, 1.0, 0.95)[0],
    ):
        np.testing.assert_array_equal(f(mask), f(MASK))


def test_whitened_moments():
    x = rewards.whiten(5.0 + 3.0 * INPUTS["values"], MASK)
    np.testing.assert_allclose(losses.mean(x, MASK), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses.mean(jnp.square(x), MASK), 1.0, rtol=1e-5)


def test_ends_when_padding_is_eos():
    """pad == eos = 2: truncated, ended, EOS first, no token, and EOS sampled in the middle."""
    tokens = jnp.array([[5, 6, 7], [5, 2, 2], [2, 2, 2], [2, 2, 2], [5, 2, 6]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    ended = rewards.has_eos(tokens, mask, eos_id=2)
    np.testing.assert_array_equal(ended, [False, True, True, False, False])
    score = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(
        rewards.subtract_without_eos(score, ended, 1.5), [-0.5, 2.0, 3.0, 2.5, 3.5]
    )
    np.testing.assert_array_equal(
        rewards.replace_without_eos(score, ended, -1.0), [-1.0, 2.0, 3.0, -1.0, -1.0]
    )


def test_advantages_within_groups():
    score = jnp.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    np.testing.assert_allclose(rewards.leave_one_out(score), [[-3.0, -1.5, 4.5], [0, 0, 0]])
    sample, population = np.std(score[0], ddof=1), np.std(score[0])
    centred = np.array([-2.0, -1.0, 3.0])
    near(rewards.group_normalized(score), [centred / (sample + 1e-4), [0, 0, 0]])
    near(rewards.group_scale(score, "group", ddof=0, eps=0.0)[0], [population])


def test_running_moments_standardise_scores():
    """Scores of reference samples define the scale; later scores are scaled by it and clipped."""
    sample = jnp.array([1.0, 2.0, 3.0, 6.0])
    moments = normalization.update(normalization.init(()), sample)
    score = normalization.normalize(moments, jnp.array([3.0, 100.0]), clip=5.0)
    np.testing.assert_allclose(score, [0.0, 5.0], atol=1e-3)
    np.testing.assert_allclose(normalization.normalize(moments, sample).std(), 1.0, rtol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="did you mean k3"):
        rewards.kl_estimate(MASK, MASK, "k33")
    with pytest.raises(ValueError, match=r"score must have the shape \(6,\)"):
        rewards.token_rewards(MASK, INPUTS["scores"][:, None], MASK, 0.1)
    for group in (rewards.leave_one_out, rewards.group_normalized):
        with pytest.raises(ValueError, match="K ≥ 2"):
            group(jnp.ones((4, 1)))
