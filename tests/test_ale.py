"""Atari environments: observations, episode ends, and the reported score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import envs, rollout
from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment, ale
from ppo_jax.evaluate import evaluate, record
from ppo_jax.networks import make_policy
from ppo_jax.train import make_train

pytest.importorskip("ale_py")
KEY = jax.random.key(0)


def play(env, steps, num_envs=2, action=None):
    """Rows [steps, num_envs, ...] of an environment with random actions, or with a fixed action."""
    venv = env.vector(num_envs)
    obs, state = venv.reset(KEY)
    step = jax.jit(venv.step)
    rng, rows = np.random.default_rng(0), []
    for _ in range(steps):
        drawn = rng.integers(env.action_space.n, size=num_envs) if action is None else action
        obs, state, *rest, info = step(KEY, state, jnp.broadcast_to(drawn, num_envs))
        rows.append((obs, *rest, info))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def test_ids_are_found_with_and_without_their_suite():
    from ale_py import roms

    listed = envs.names("ale")
    single = set(roms.get_all_rom_ids()) - {"combat", "joust", "maze_craze", "warlords"}
    assert len(listed) == 2 * len(single)
    assert envs.canonical("ALE/SpaceInvaders-v5") == "ale:ALE/SpaceInvaders-v5"
    assert envs.canonical("PongNoFrameskip-v4") == "ale:PongNoFrameskip-v4"
    assert envs.canonical("ale:Pong") == "ale:Pong"
    with pytest.raises(UnknownEnvironment, match="ALE/Pong-v5"):
        envs.make("ALE/Pang-v5")
    with pytest.raises(InvalidEnvironment, match="clip_reward"):
        envs.make("ale:Pong", clip_rewards=False)


def test_the_standard_preprocessing():
    env = envs.make("ALE/Pong-v5")
    assert env.observation_space.shape == (84, 84, 4) and env.action_space.n == 6
    assert env.time_limit == 27_000  # half an hour at 60 frames per second, 4 frames a step
    obs, _ = env.vector(16).reset(KEY)
    assert obs.shape == (16, 84, 84, 4) and obs.dtype == jnp.uint8
    assert not obs[..., :3].any() and obs[..., 3].any()  # the stack is empty at first
    frames = ale._emulators("pong", ale.Options(), 16).reset(seed=0)[1]["episode_frame_number"]
    assert 0 <= min(frames) < max(frames) <= 31 and len(set(frames)) > 4  # no-op starts
    seen = play(env, 6)[0]
    np.testing.assert_array_equal(seen[1:, ..., :3], seen[:-1, ..., 1:])  # newest frame last
    small = envs.make("ale:Pong", size=42, frames=2, all_actions=True)
    assert small.observation_space.shape == (42, 42, 2) and small.action_space.n == 18


def test_the_two_protocols_differ_as_they_should():
    """NoFrameskip-v4 can end an episode at a lost life; v5 continues, and repeats actions."""
    v4, v5 = envs.make("BreakoutNoFrameskip-v4"), envs.make("ALE/Breakout-v5")
    lives, games = (play(env, 110)[2].sum() for env in (v4, v5))
    assert lives >= 4 > games
    runs = [play(v4, 40)[0], play(envs.make(v5.name, sticky=0.0), 40)[0], play(v5, 40)[0]]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[1] != runs[2]).any()


def test_a_lost_life_ends_an_episode_and_not_the_game():
    """The emulator's own episodic_life restarts the game; our version keeps the state of the
    game."""
    env = envs.make("BreakoutNoFrameskip-v4")
    obs, _, terminated, _, _ = play(env, 120, num_envs=1)
    game, _, over, _, _ = play(env.evaluation(), 120, num_envs=1)
    assert 3 <= terminated.sum() <= 5 and over.sum() <= 1
    np.testing.assert_array_equal(obs[: np.argmax(over) or None], game[: np.argmax(over) or None])


def test_rewards_are_clipped_and_returns_are_not():
    env = envs.make("ALE/MsPacman-v5")
    _, reward, _, _, info = play(env, 110)
    assert info["raw_reward"].max() >= 10
    np.testing.assert_array_equal(reward, np.clip(info["raw_reward"], -1, 1))
    _, raw, _, _, _ = play(env.evaluation(), 110)
    np.testing.assert_array_equal(raw, info["raw_reward"])


def test_time_limits_truncate_with_the_true_last_image():
    env = envs.make("ale:Pong", max_frames=80, sticky=0.0)
    assert env.time_limit == 20
    obs, _, terminated, truncated, info = play(env, 45)
    assert truncated[[19, 39]].all() and truncated.sum() == 4 and not terminated.any()
    final = info["final_observation"]
    assert (final[19] != obs[19]).any()
    np.testing.assert_array_equal(final[19][..., :3], obs[18][..., 1:])


def test_ppo_trains_on_a_cartridge():
    config = configs.make(
        "pong_atari", total_timesteps=512, num_envs=4, num_steps=32, hidden=(16,), epochs=1
    )
    env = envs.make("ALE/Pong-v5", max_frames=200)
    state, metrics = jax.jit(make_train(config, env))(KEY)
    assert metrics["episodes"].sum() == 8 and not metrics["lost_cuts"].any()
    np.testing.assert_array_equal(metrics["episode_length"][1::2], 50)
    for name in ("policy_loss", "value_loss", "entropy"):
        assert np.isfinite(metrics[name]).all(), name
    assert 1.0 < metrics["entropy"][0] <= np.log(6) + 1e-3
    assert int(state.update) == 4


def test_evaluation_plays_whole_games_and_is_drawn_in_colour():
    env = envs.make("PongNoFrameskip-v4", max_frames=1200)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,), activation="relu")
    params = policy.init(KEY, jnp.zeros((1, 84, 84, 4), jnp.uint8))
    agent = {"env": env, "policy": policy}
    result = evaluate(KEY, params, rollout.Moments(), episodes=3, **agent)
    np.testing.assert_array_equal(result.episode_length, 300)
    assert (result.episode_return < 0).all() and result.finished.all()
    frames = record(KEY, params, rollout.Moments(), max_steps=20, **agent)
    assert len(frames) == 21 and frames[0].shape == (210, 160, 3)
    assert (frames[-1] != frames[0]).any()
    assert len(np.unique(frames[-1].reshape(-1, 3), axis=0)) >= 4  # paddles, ball and field


def test_the_preset_is_the_game_s_whatever_its_name():
    for name in ("ALE/Pong-v5", "ale:ALE/Pong-v5", "ale:Pong", "PongNoFrameskip-v4"):
        config = configs.make(env=name)
        assert (config.env, config.network, config.hyper.clip_eps) == (name, "nature", 0.1)
    assert configs.make(env="ALE/Breakout-v5").network == "mlp"
    assert dataclasses.asdict(configs.make("pong_atari"))["env"] == "ale:ALE/Pong-v5"
