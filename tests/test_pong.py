"""Pong: physics, frames, returns of simple players, and a run of PPO."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import advantages, envs, networks, rollout
from ppo_jax import config as configs
from ppo_jax.envs import pong
from ppo_jax.train import build, make_train

KEY = jax.random.key(0)
STAY, UP, DOWN = 0, 1, 2
# Frames of one pixel, for tests that do not depend on frames.
EASY = pong.Pong(1, 1)
step = jax.jit(EASY.step)


def game(**fields):
    """A state in which the ball flies through the middle, with given changes."""
    start = {"ball": (80.0, 80.0), "velocity": (2.0, 0.0), "agent": 80.0, "opponent": 80.0}
    start |= {"aim": 0.0} | fields
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    return dataclasses.replace(EASY.reset(KEY, EASY.params)[1], **arrays)


def stay(key, state):
    return jnp.zeros((), int)


def guess(key, state):
    return jax.random.randint(key, (), 0, 3)


def follow(key, state):
    """A player that keeps the paddle's middle within five pixels of the ball."""
    off = state.ball[1] - state.agent
    return jnp.where(jnp.abs(off) < 5, STAY, jnp.where(off < 0, UP, DOWN))


def look_ahead(off, key, state):
    """A player that moves to where the ball will arrive, `off` from the paddle's middle, to send it
    away from the opponent, and otherwise waits in the middle of the court."""
    (x, y), (across, down) = state.ball, state.velocity
    face = pong.AGENT_X - pong.PADDLE_WIDTH - pong.BALL
    frames = jnp.ceil((face - x) / jnp.where(across > 0, across, 1.0))
    # The path between the walls, without reflections.
    span = pong.COURT - 2 * pong.BALL
    way = jnp.mod(y + down * frames - pong.BALL, 2 * span)
    height = pong.BALL + jnp.where(way > span, 2 * span - way, way)
    side = jnp.where(state.opponent > pong.COURT / 2, -off, off)
    low, high = pong.PADDLE_HEIGHT, pong.COURT - pong.PADDLE_HEIGHT
    there = height - side
    there = jnp.where((there < low) | (there > high), height + side, there)
    coming = across > 0
    moved = jnp.array(pong.DIRECTIONS) * pong.PADDLE_SPEED
    reached = jnp.clip(
        state.agent + moved * jnp.where(coming, jnp.clip(frames, 1, 4), 4), low, high
    )
    return jnp.argmin(jnp.abs(reached - jnp.where(coming, there, pong.COURT / 2)))


safe, hasty = functools.partial(look_ahead, 5.0), functools.partial(look_ahead, 8.0)
PLAYERS = [stay, guess, follow, safe, hasty]


@jax.jit
def play(player, params):
    """(returns [E], lengths [E]) of 32 games."""
    env = EASY

    def one(key):
        def body(carry, keys):
            state, total, over, time = carry
            _, state, reward, terminated, truncated, _ = env.step(
                keys[0], state, jax.lax.switch(player, PLAYERS, keys[1], state), params
            )
            total = total + jnp.where(over, 0, reward)
            return (state, total, over | terminated | truncated, time + ~over), None

        start = (env.reset(key, params)[1], 0.0, False, 0)
        keys = jax.random.split(key, (env.time_limit, 2))
        (_, total, over, time), _ = jax.lax.scan(body, start, keys)
        return total, time

    return jax.vmap(one)(jax.random.split(KEY, 32))


@pytest.mark.parametrize(
    ("difficulty", "player", "low", "high"),
    [
        ("easy", stay, -18, -14),
        ("easy", guess, -18.5, -15),
        ("easy", follow, 15, 20),
        ("easy", safe, 20.5, 21),
        ("easy", hasty, 16, 20),
        ("hard", guess, -20, -17),
        ("hard", safe, 20.5, 21),
    ],
)
def test_what_simple_players_earn(difficulty, player, low, high):
    """The results of docs/pong.md: standing still and random actions lose, following the ball wins,
    and hitting it half way to the paddle's end wins every point."""
    params = pong.Params(jnp.float32(pong.DIFFICULTIES[difficulty]))
    returns, lengths = play(PLAYERS.index(player), params)
    assert low < returns.mean() <= high and (returns.std() > 1 or player is safe)
    assert (lengths >= EASY.shortest_episode).all() and (jnp.abs(returns) <= 21).all()


@pytest.mark.parametrize(
    ("x", "across", "reward", "score"), [(4, -2, 1, (1, 0)), (156, 2, -1, (0, 1))]
)
def test_a_point_belongs_to_who_sent_the_ball_out(x, across, reward, score):
    state = game(ball=(x, 80.0), velocity=(across, 0.0))
    _, after, earned, terminated, truncated, _ = step(KEY, state, STAY, EASY.params)
    assert earned == reward and tuple(after.score) == score and not (terminated or truncated)
    assert (
        after.ball[0] == 80 and after.agent == state.agent
    )  # served again, with the paddles unchanged


def test_the_game_ends_at_21():
    for score, over in (((20, 20), True), ((19, 20), False)):
        state = game(ball=(4.0, 80.0), velocity=(-2.0, 0.0)).replace(score=jnp.array(score))
        _, after, reward, terminated, truncated, _ = step(KEY, state, STAY, EASY.params)
        assert reward == 1 and bool(terminated) == over and not truncated
        assert after.score[0] == score[0] + 1


def test_serves_are_random_and_no_point_is_made_sooner_than_promised():
    states = jax.vmap(lambda key: EASY.reset(key, EASY.params)[1])(jax.random.split(KEY, 400))
    (x, y), (across, down) = states.ball.T, states.velocity.T
    assert (x == 80).all() and 40 <= y.min() < 45 and 115 < y.max() <= 120
    assert set(np.asarray(across).tolist()) == {-2.0, 2.0} and 150 < (across > 0).sum() < 250
    assert -0.5 <= down.min() < -0.4 and 0.4 < down.max() <= 0.5
    assert EASY.shortest_episode == 210
    state, steps, reward = game(agent=8.0), 0, 0.0
    while reward == 0:
        _, state, reward, *_ = step(KEY, state, STAY, EASY.params)
        steps += 1
    assert reward == -1 and steps == 210 // 21


def test_where_the_ball_meets_the_paddle_decides_angle_and_speed():
    def after_hit(offset):
        # Two frames before the paddle's face at x = 138.
        state = game(ball=(134.0, 80.0), velocity=(2.0, 0.0), agent=80.0 - offset)
        return step(KEY, state, STAY, EASY.params)[1]

    np.testing.assert_allclose(after_hit(0).velocity, [-2, 0])
    np.testing.assert_allclose(after_hit(5).velocity, [-2.5, 1.5])
    np.testing.assert_allclose(after_hit(-10).velocity, [-3, -3])
    np.testing.assert_allclose(after_hit(10.5).velocity, [2, 0])  # past the end of the paddle
    # The opponent's paddle is the mirror image.
    state = game(ball=(26.0, 85.0), velocity=(-2.0, 0.0), aim=5.0)
    np.testing.assert_allclose(step(KEY, state, STAY, EASY.params)[1].velocity, [2.5, 1.5])


def test_walls_send_the_ball_back():
    state = game(ball=(80.0, 5.0), velocity=(2.0, -3.0))
    after = step(KEY, state, STAY, EASY.params)[1]
    np.testing.assert_allclose(after.ball, [88, 2 * pong.BALL - (5 - 4 * 3)])
    np.testing.assert_allclose(after.velocity, [2, 3])


def test_paddles_keep_to_the_court_and_to_their_speeds():
    def agent_after(start, action):
        return float(step(KEY, game(agent=start), action, EASY.params)[1].agent)

    assert [agent_after(80, a) for a in (STAY, UP, DOWN)] == [80, 70, 90]
    assert (agent_after(9, UP), agent_after(151, DOWN)) == (8, 152)
    state = game(ball=(80.0, 150.0), velocity=(-2.0, 0.0))
    many = jax.vmap(lambda key: EASY.step(key, state, STAY, EASY.params)[1].opponent - 80)
    moves = np.asarray(jax.jit(many)(jax.random.split(KEY, 400))).tolist()
    rested = moves.count(0.0)
    assert set(moves) == {0.0, 4 * 1.5} and 25 < rested < 80  # an eighth of 400 is 50
    fast = pong.Params(jnp.float32(2.0))
    assert (
        max(float(step(k, state, STAY, fast)[1].opponent) for k in (KEY, jax.random.key(5))) == 88
    )


def test_a_time_limit_truncates_exactly():
    env = pong.Pong(1, 1, time_limit=3)
    assert env.time_limit == env.shortest_episode == 3
    _, state = env.reset(KEY, env.params)
    ends = []
    for _ in range(3):
        _, state, _, terminated, truncated, _ = env.step(KEY, state, STAY, env.params)
        ends.append((bool(terminated), bool(truncated)))
    assert ends == [(False, False), (False, False), (False, True)]


def test_a_frame_is_the_area_that_is_covered():
    """Frames of all sizes show the same areas, with positions finer than a pixel."""
    total = 2 * (4 * 16) + 4 * 4
    state = game(ball=(61.3, 90.7), agent=33.1, opponent=150.0)
    for size in ((160, 160), (84, 84), (42, 42), (20, 80)):
        frame = np.asarray(pong.Pong(*size).draw(state), float)
        assert frame.shape == (*size, 1)
        area = frame.sum() / 255 * (160 / size[0]) * (160 / size[1])
        assert abs(area - total) < 0.01 * total, size
    frame = np.asarray(pong.Pong(160, 160).draw(state))[..., 0]
    # Columns 59.3 to 63.3 of rows 88.7 to 92.7.
    expected = np.outer([0.3, 1, 1, 1, 0.7], [0.7, 1, 1, 1, 0.3])
    np.testing.assert_allclose(frame[88:93, 59:64], 255 * expected, atol=0.51)
    assert (frame[25:41, 140:144] >= 229).all() and frame[142:158, 16:20].min() == 255
    inside = pong.coverage(jnp.array([3.0, 159.0]), jnp.array([2.0, 2.0]), 16)
    np.testing.assert_allclose(inside.sum(axis=-1) * 10, [4, 3], rtol=1e-5)  # one is half outside


def test_credit_may_end_with_the_point():
    """The games are the same; but where a point ends, later rewards are not credited to it."""

    def played(credit):
        env = envs.make("Pong", size=4, frames=1, time_limit=100, credit=credit)
        vector = envs.vectorize(env, 8, 200)
        policy = networks.make_policy(env.observation_space, env.action_space, hidden=(4,))
        state = rollout.init(KEY, policy, vector)
        collect = functools.partial(
            rollout.collect, env=vector, policy=policy, num_steps=200, gamma=0.9
        )
        state, trajectory = jax.jit(collect)(KEY, policy.init(KEY, state.obs), state)
        return state.metrics, trajectory

    (metrics, game), (others, point) = played("game"), played("point")
    made = game.reward != 0
    assert made.sum() > 50 and not game.terminated.any() and game.done.sum() == 8 * 2
    np.testing.assert_array_equal(point.terminated, made)
    np.testing.assert_array_equal(point.done, made | game.done)
    for name in ("obs", "action", "reward", "value", "next_value", "weight"):
        np.testing.assert_array_equal(getattr(point, name), getattr(game, name), err_msg=name)
    assert {k: float(v) for k, v in metrics.items()} == {k: float(v) for k, v in others.items()}
    assert metrics["episodes"] == 16  # games, as before, not points
    advantage = advantages.estimate_gae(point, gamma=0.9, lambda_=0.95).advantage
    np.testing.assert_allclose(advantage[made], (point.reward - point.value)[made], atol=1e-6)


def test_a_picture_shows_court_and_points():
    state = game().replace(score=jnp.array([3, 20]))
    picture = envs.render(EASY, state)
    assert picture.shape == (172, 160, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) == 5
    assert (picture[92, 80] == 235).all()


def test_it_is_made_by_name_and_follows_the_protocol():
    env = envs.as_env("Pong", size=42, frames=3, difficulty="hard", time_limit=500)
    assert envs.canonical("Pong") == "ppo_jax:Pong" and env.name == "Pong"
    space = env.observation_space
    assert space.shape == (42, 42, 3) and space.dtype == np.uint8
    assert (space.low == 0).all() and (space.high == 255).all() and env.action_space.n == 3
    assert env.time_limit == 500 and env.shortest_episode == 210
    assert float(env.params.opponent_speed) == 2.0
    assert envs.make("Pong").observation_space.shape == (84, 84, 4)
    assert envs.make("Pong", height=30, width=40).observation_space.shape == (30, 40, 4)
    assert envs.make("Pong", opponent_speed=1.2).params.opponent_speed == 1.2
    obs, state = env.reset(KEY, env.params)
    assert obs.dtype == jnp.uint8 and not obs[..., :2].any() and obs[..., 2].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sise": 42}, r"Pong has no argument 'sise'; did you mean size"),
        ({"difficulty": "hart"}, r"Pong has no difficulty 'hart'; did you mean hard"),
        ({"credit": "points"}, r"Pong has no credit 'points'; did you mean point"),
        ({"size": 0}, r"height of Pong is 0; it must be an integer >= 1"),
        ({"frames": "three"}, r"frames of Pong is 'three'; it must be an integer >= 1"),
        ({"opponent_speed": -1}, r"opponent_speed of Pong is -1; it must be >= 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(envs.InvalidEnvironment, match=message):
        envs.make("Pong", **arguments)


def test_frame_differences_are_one_matrix_and_its_own_inverse():
    """Rows: acceleration I_t − 2 I_{t−1} + I_{t−2}, velocity I_t − I_{t−1}, position I_t."""
    matrix = np.array(networks.FRAME_MIXES["differences"])
    np.testing.assert_array_equal(matrix, [[1, -2, 1], [0, -1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(matrix @ matrix, np.eye(3))
    x = jax.random.uniform(KEY, (2, 4, 5, 3))
    mixed = networks.mix_frames(x, "differences")
    np.testing.assert_allclose(mixed, x @ matrix.T, atol=1e-6)
    np.testing.assert_allclose(networks.mix_frames(mixed, "differences"), x, atol=1e-6)
    assert networks.mix_frames(x, "none") is x


def test_a_policy_sees_the_differences():
    """A network on differences equals one on frames whose first kernel is transformed."""
    env = envs.make("Pong", size=42, frames=3)
    make = functools.partial(
        networks.make_policy, env.observation_space, env.action_space, hidden=(8,),
        activation="relu", cnn=((4, 8, 4),), shared_torso=True,
    )  # fmt: skip
    obs = jax.random.randint(KEY, (2, 42, 42, 3), 0, 256).astype(jnp.uint8)
    mixing, plain = make(frame_mix="differences"), make()
    params = mixing.init(KEY, obs)
    value = mixing.apply(params, obs)[1]
    matrix = jnp.array(networks.FRAME_MIXES["differences"], jnp.float32)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.einsum("hwmf,mc->hwcf", x, matrix) if x.ndim == 4 else x, params
    )
    np.testing.assert_allclose(plain.apply(moved, obs)[1], value, rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain.apply(params, obs)[1], value)


def test_differences_need_three_frames():
    values = {"env": "Pong", "preset": "pong", "env_args": ("size=28", "frames=4")}
    with pytest.raises(envs.InvalidEnvironment, match=r"are Box\(28, 28, 4\) uint8.*frames=3"):
        build(configs.make(**values))
    with pytest.raises(envs.InvalidEnvironment, match="of CartPole-v1 are Box"):
        build(configs.make(env="CartPole-v1", frame_mix="differences"))


def test_the_preset_is_of_pong():
    config = configs.make(env="Pong")  # selects its own preset
    assert config == configs.make(preset="pong")
    assert configs.from_json(configs.to_json(config)) == config
    program = build(config)
    assert program.env.observation_space.shape == (42, 42, 3)
    assert float(program.env.params.opponent_speed) == 1.5


def test_ppo_runs_on_it():
    config = configs.make(
        preset="pong", env_args=("size=20", "frames=3", "time_limit=12"), num_envs=4, num_steps=16,
        total_timesteps=128, hidden=(8,), epochs=1, minibatches=2, anneal_timesteps=None,
    )  # fmt: skip
    state, metrics = jax.jit(make_train(config))(KEY)
    assert state.rollout.obs.shape == (4, 20, 20, 3) and state.rollout.obs.dtype == jnp.uint8
    assert not metrics["reused_resets"].any() and not metrics["lost_cuts"].any()
    assert metrics["episodes"].sum() == 4 * (32 // 12)
    assert np.isfinite(metrics["policy_loss"]).all()
