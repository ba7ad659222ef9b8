"""The Q actor-critic: inputs, targets and gradients of the Q-function and the actor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probe_envs
from ppo_jax import config as configs
from ppo_jax import rollout
from ppo_jax.algorithms import actor_critic
from ppo_jax.config import ConfigError
from ppo_jax.envs import spaces, vectorize
from ppo_jax.networks import StateAction, encode, make_policy
from ppo_jax.train import build, make_train
from ppo_jax.types import Trajectory
from reference import assert_close

BOX = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete((2, 3)),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_q_depends_on_state_and_action(space):
    policy = make_policy(BOX, space, hidden=(16,), critic="q")
    obs = jax.random.normal(jax.random.key(0), (5, 7, 3))
    params = policy.init(jax.random.key(1), obs[0])
    dist = policy.act(params, (), obs, jnp.zeros((5, 7), bool))[1]
    actions = [dist.sample(jax.random.key(i)) for i in (2, 3)]
    dists, values = zip(*(policy.apply(params, StateAction(obs, a)) for a in actions), strict=True)
    assert values[0].shape == (5, 7) and not jnp.allclose(values[0], values[1])
    assert_close(dists[0], dists[1], rtol=0, atol=0)  # the actor ignores the action
    assert_close(dists[0], dist, rtol=0, atol=0)
    elsewhere = policy.apply(params, StateAction(obs + 1.0, actions[0]))[1]
    assert not jnp.allclose(values[0], elsewhere)
    np.testing.assert_array_equal(policy.value(params, StateAction(obs, actions[0])), values[0])


def test_q_of_a_discrete_action_is_one_output_of_many():
    policy = make_policy(BOX, spaces.Discrete(4), hidden=(16,), critic="q")
    obs = jax.random.normal(jax.random.key(0), (3,))
    params = policy.init(jax.random.key(1), obs)
    each = jnp.stack([policy.apply(params, StateAction(obs, jnp.int32(a)))[1] for a in range(4)])
    body, head = params["critic"]["body"]["Dense_0"], params["critic"]["head"]
    hidden = jnp.tanh(obs @ body["kernel"] + body["bias"])
    np.testing.assert_allclose(each, hidden @ head["kernel"] + head["bias"], rtol=1e-5)


def test_several_choices_are_encoded_one_by_one():
    found = encode(spaces.MultiDiscrete((2, 3)), jnp.array([[1, 0], [0, 2]]))
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])


def test_without_a_critic_there_is_nothing_of_it():
    policy = make_policy(BOX, spaces.Discrete(4), shared_torso=True, critic="none")
    params = policy.init(jax.random.key(0), jnp.zeros((2, 3)))
    assert params.keys() == {"actor", "torso"}
    _, _, value = policy.act(params, (), jnp.zeros((2, 3)), jnp.zeros(2, bool))
    np.testing.assert_array_equal(value, [0.0, 0.0])


def test_what_does_not_know_the_action_is_refused():
    with pytest.raises(ValueError, match="shared_torso=False"):
        make_policy(BOX, ACTIONS["box"], shared_torso=True, critic="q")
    with pytest.raises(ConfigError, match="shared_torso=False"):
        configs.make(preset="none", algorithm="actor_critic", shared_torso=True)
    with pytest.raises(ValueError, match="needs a critic 'q'"):
        actor_critic.make(make_policy(BOX, ACTIONS["box"]), actor_critic.Config())


def test_images():
    space = spaces.Box(0, 255, (10, 10, 2), np.uint8)
    for actions in (spaces.Discrete(3), ACTIONS["box"]):
        policy = make_policy(space, actions, cnn=((4, 3, 1),), hidden=(8,), critic="q")
        obs = jnp.ones((6, 10, 10, 2), jnp.uint8)
        params = policy.init(jax.random.key(0), obs)
        dist = policy.act(params, (), obs, jnp.zeros(6, bool))[1]
        q = policy.apply(params, StateAction(obs, dist.sample(jax.random.key(0))))[1]
        assert q.shape == (6,)


def test_the_rollout_says_q_of_what_was_done_and_of_what_might_be():
    """value = q(s_t, a_t); next_value = q(s_{t+1}, a') with a' drawn from the policy; if a time
    limit truncated the episode, s_{t+1} is the true final observation."""
    counter = probe_envs.Counter()
    env = vectorize(counter, 4, 32)
    policy = make_policy(env.observation_space, spaces.Discrete(2), hidden=(8,), critic="q")
    state = rollout.init(jax.random.key(0), policy, env)
    params = policy.init(jax.random.key(1), state.obs)
    # Far from uniform, so that a' is not arbitrary; large, so that states have different values.
    params["actor"]["head"]["kernel"] *= 100.0
    collect = functools.partial(rollout.collect, env=env, policy=policy, num_steps=32, gamma=0.9)
    end, trajectory = jax.jit(collect)(jax.random.key(2), params, state)
    obs, action = trajectory.obs.obs, trajectory.obs.action
    np.testing.assert_array_equal(action, trajectory.action)

    def q(obs, action):
        return policy.apply(params, StateAction(obs, jnp.broadcast_to(action, obs.shape[:-1])))[1]

    np.testing.assert_allclose(trajectory.value, q(obs, action), rtol=1e-5)
    following = jnp.concatenate([obs[1:], end.obs[None]])
    truncated = np.asarray(trajectory.done & ~trajectory.terminated)
    following = jnp.where(truncated[..., None], counter.successor(obs), following)
    options = np.stack([q(following, 0), q(following, 1)])
    gap = np.abs(options - np.asarray(trajectory.next_value)).min(axis=0)
    relevant = ~np.asarray(trajectory.terminated)
    assert truncated.any() and (gap[relevant] < 1e-3 * np.abs(options).max()).all()
    # a' is drawn independently: if the episode continues, it need not be the next action.
    went_on = ~np.asarray(trajectory.done)[:-1]
    differs = np.asarray(trajectory.next_value[:-1] != trajectory.value[1:])[went_on]
    assert 0.02 < differs.mean() < 0.98


def test_a_prime_follows_the_policy():
    """With one state and p(1) = 0.8, q(s', a') equals q(1) in four of five steps."""
    env = vectorize(probe_envs.TimeLimit(), 64, 64)
    policy = make_policy(env.observation_space, spaces.Discrete(2), hidden=(8,), critic="q")
    state = rollout.init(jax.random.key(0), policy, env)
    params = policy.init(jax.random.key(1), state.obs)
    params["actor"]["head"]["bias"] = jnp.array([0.0, np.log(4.0)])
    params["critic"]["head"]["bias"] = jnp.array([3.0, 7.0])
    _, trajectory = rollout.collect(
        jax.random.key(2), params, state, env=env, policy=policy, num_steps=64, gamma=0.9
    )
    one = policy.apply(params, StateAction(jnp.zeros(1), jnp.int32(1)))[1]
    share = jnp.isclose(trajectory.next_value, one).mean()
    np.testing.assert_allclose(share, 0.8, atol=0.03)
    # independent of the action that was executed in the same state
    again = jnp.isclose(trajectory.next_value[:-1], one)
    executed = trajectory.action[1:] == 1
    correlation = np.corrcoef(np.asarray(again).ravel(), np.asarray(executed).ravel())[0, 1]
    assert abs(correlation) < 0.07


def test_delta_and_the_two_weights():
    """δ = q − (r + γ q'), with bootstrapping after a truncation but not after a termination."""
    critic = make_policy(BOX, spaces.Discrete(2), critic="q")
    ones = jnp.ones((3, 1))
    done = jnp.array([[False], [True], [True]])
    trajectory = Trajectory(
        obs=StateAction(jnp.zeros((3, 1, 2)), jnp.zeros((3, 1), jnp.int32)),
        action=jnp.zeros((3, 1), jnp.int32),
        log_prob=0 * ones,
        value=jnp.array([[1.0], [2.0], [3.0]]),
        next_value=jnp.array([[10.0], [20.0], [30.0]]),
        reward=jnp.array([[0.1], [0.2], [0.3]]),
        terminated=jnp.array([[False], [False], [True]]),
        done=done,
        weight=ones,
    )
    for name, expected in {"q": [1.0, 2.0, 3.0], "td_error": [8.1, 16.2, -2.7]}.items():
        config = actor_critic.Config(gamma=0.9, actor_weight=name)
        batch = actor_critic.make(critic, config).estimate(trajectory)
        np.testing.assert_allclose(batch.target[:, 0], [9.1, 18.2, 0.3], rtol=1e-6)
        np.testing.assert_allclose(batch.advantage[:, 0], expected, rtol=1e-6)


def update_of(**options):
    policy = make_policy(BOX, spaces.Discrete(2), hidden=(8,), critic="q")
    algorithm = actor_critic.make(policy, actor_critic.Config(**options))
    obs = jax.random.normal(jax.random.key(0), (16, 4, 3))
    learner = algorithm.init(jax.random.key(1), obs[0])
    action = jax.random.randint(jax.random.key(2), (16, 4), 0, 2)
    inputs = StateAction(obs, action)
    dist, value = policy.apply(learner.params, inputs)
    flags = jnp.zeros((16, 4), bool)
    trajectory = Trajectory(
        obs=inputs,
        action=action,
        log_prob=dist.log_prob(action),
        value=value,
        next_value=jnp.roll(value, -1, 0),
        reward=obs[..., 0],
        terminated=flags,
        done=flags,
        weight=jnp.ones((16, 4)),
    )
    rows = rollout.flatten_steps(algorithm.estimate(trajectory))
    return policy, learner, rows, jax.jit(algorithm.update)(jax.random.key(3), learner, rows)[0]


def test_the_actor_takes_a_share_of_the_step():
    _, before, _, full = update_of(actor_rate=1.0)
    _, _, _, slow = update_of(actor_rate=0.25)

    def moved(after, part):
        difference = jax.tree.map(lambda a, b: a - b, after.params[part], before.params[part])
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(difference)])

    np.testing.assert_allclose(moved(slow, "actor"), 0.25 * moved(full, "actor"), atol=1e-7)
    np.testing.assert_allclose(moved(slow, "critic"), moved(full, "critic"), atol=1e-7)


def test_the_gradients_are_those_of_the_formulas():
    """The gradients are ∇θ −log π ψ for the actor and δ ∇w q for the critic; the target is
    constant."""
    policy, learner, rows, _ = update_of()
    config = actor_critic.Config(normalize_advantage=False, value_coef=1.0)
    loss_fn = actor_critic.make_loss(policy, config)
    grads = jax.grad(loss_fn, has_aux=True)(learner.params, rows)[0]

    def log_prob(params):
        return policy.apply(params, rows.obs)[0].log_prob(rows.action)

    def q(params):
        return policy.apply(params, rows.obs)[1]

    per_row = jax.jacobian(log_prob)(learner.params)["actor"]
    actor = jax.tree.map(lambda j: -jnp.tensordot(rows.advantage, j, 1) / 64, per_row)
    assert_close(grads["actor"], actor, rtol=1e-4, atol=1e-6)
    delta = rows.value - rows.target
    per_row = jax.jacobian(q)(learner.params)["critic"]
    critic = jax.tree.map(lambda j: jnp.tensordot(delta, j, 1) / 64, per_row)
    assert_close(grads["critic"], critic, rtol=1e-4, atol=1e-6)


def test_q_learns_the_worth_of_each_action():
    """Reward 1 for action 1 and −1 for action 0: q distinguishes them for any actor."""
    config = configs.make(
        preset="none",
        algorithm="actor_critic",
        num_envs=8,
        num_steps=32,
        hidden=(16,),
        actor_rate=0.0,
        learning_rate=5e-3,
        total_timesteps=40_000,
    )
    env = probe_envs.RewardIsAction()
    state, _ = jax.jit(make_train(config, env))(jax.random.key(0))
    policy = build(config, env).policy
    q = [policy.apply(state.learner.params, StateAction(jnp.zeros(1), a))[1] for a in (0, 1)]
    np.testing.assert_allclose(q, [-1.0, 1.0], atol=0.05)
