"""Self-play against a league, examples/league.py, on a game whose values are known."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.envs import spaces
from ppo_jax.envs.pgx import PgxEnv, uniformly_legal
from ppo_jax.train import build

FILE = Path(__file__).parent.parent / "examples" / "league.py"
SPEC = importlib.util.spec_from_file_location("league", FILE)
league = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(league)
KEY = jax.random.key(0)
MOST = 7  # stones
ALONE = ((), np.ones(1))  # a league of one member without parameters


class Pile(NamedTuple):
    """A state of Nim, with the names of pgx."""

    stones: jax.Array
    current_player: jax.Array
    legal_action_mask: jax.Array
    observation: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array


def pile(stones, player, rewards, ended):
    legal = ended | (jnp.arange(2) < stones)
    observation = jax.nn.one_hot(stones, MOST + 1)
    return Pile(stones, player, legal, observation, rewards, ended, jnp.array(False))


class Nim:
    """Players in turn take 1 or 2 stones (actions 0 and 1), and who takes the last one wins.

    The player to move loses against perfect play if and only if the number of stones is a multiple
    of 3, because the other can always complete three. A game begins with `fewest` to `most` stones.
    """

    num_players = 2

    def __init__(self, fewest, most=None):
        self.fewest, self.most = fewest, most or fewest

    def init(self, key):
        stones_key, player_key = jax.random.split(key)
        stones = jax.random.randint(stones_key, (), self.fewest, self.most + 1)
        player = jax.random.bernoulli(player_key).astype(jnp.int32)
        return pile(stones, player, jnp.zeros(2), jnp.array(False))

    def step(self, state, action, key):
        stones = jnp.maximum(state.stones - action - 1, 0)
        ended = stones == 0
        won = jnp.where(jnp.arange(2) == state.current_player, 1.0, -1.0)
        rewards = jnp.where(ended & ~state.terminated, won, 0.0)
        return pile(stones, 1 - state.current_player, rewards, ended)


def perfect(key, state, _=None):
    """Leaves a multiple of 3, or takes a legal number at random if that is impossible."""
    return jnp.where(state.stones % 3 > 0, state.stones % 3 - 1, uniformly_legal(key, state))


def constant(key, state, action):
    """Takes the same number of stones in each move, or one stone if only one is left."""
    return jnp.minimum(action, state.stones - 1)


def against(game, act=perfect, side="random", params=ALONE):
    """The environment of a game against a league."""
    space = {
        "obs": spaces.Box(np.zeros(MOST + 1), np.ones(MOST + 1), (MOST + 1,)),
        "action_mask": spaces.Box(np.zeros(2), np.ones(2), (2,), np.bool_),
    }
    game = PgxEnv(game, "nim", space, spaces.Discrete(2), np.inf, uniformly_legal, side)
    return league.LeagueEnv(game, act, params)


def episodes(env, mine, count):
    """Games of `mine`: rewards [E, T], and the stones and the member [E, T + 1] at its turns."""

    def turn(state, key):
        own, step_key = jax.random.split(key)
        _, state, reward, *_ = env.step(step_key, state, mine(own, state[0][0]), env.params)
        return state, (reward, state[0][0].stones, state[1])

    def game(key):
        key, reset_key = jax.random.split(key)
        _, first = env.reset(reset_key, env.params)
        _, (rewards, stones, index) = jax.lax.scan(turn, first, jax.random.split(key, MOST))
        stones = jnp.concatenate([first[0][0].stones[None], stones])
        return rewards, stones, jnp.concatenate([first[1][None], index])

    return [np.asarray(x) for x in jax.jit(jax.vmap(game))(jax.random.split(KEY, count))]


def test_the_reward_is_the_agents_whoever_ends_the_game():
    """With perfect play of both, the player to move loses if the stones are a multiple of 3. The
    opponent ends the games that the agent loses, so that a wrong sign of its reward is visible."""
    rewards, stones, _ = episodes(against(Nim(3, MOST)), perfect, 200)
    assert (rewards.sum(1) == np.where(stones[:, 0] % 3 > 0, 1.0, -1.0)).all()
    assert (np.abs(rewards).sum(1) == 1).all() and {*stones[:, 0]} >= {2, 3, 4, 5, 6, 7}


def test_the_agent_plays_either_side_and_only_its_own_turns():
    env = against(Nim(MOST), constant, params=(jnp.array([0]), jnp.ones(1)))
    keys = jax.random.split(KEY, 4000)
    obs, ((game, agent, _), _) = jax.vmap(env.reset, (0, None))(keys, env.params)
    assert (game.current_player == agent).all()
    stones = np.asarray(obs["obs"].argmax(-1))
    assert set(stones) == {MOST, MOST - 1}  # it begins, or the opponent has taken one
    assert abs(np.mean(stones == MOST) - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_a_member_is_drawn_by_its_share_and_stays_for_the_game():
    params = jnp.array([0, 1, 1]), jnp.array([0.25, 0.75, 0.0])
    env = against(Nim(MOST), constant, "first", params)
    _, (_, index) = jax.vmap(env.reset, (0, None))(jax.random.split(KEY, 4000), params)
    counts = np.bincount(index, minlength=3) / 4000
    assert abs(counts[0] - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000) and counts[2] == 0
    _, stones, index = episodes(env, lambda key, state: 0, 50)
    assert (index == index[:, :1]).all()
    # The agent takes one stone per turn: 7, 5, 3, 1 against the first member, 7, 4, 1 otherwise.
    turns = np.where(index[:, :1] == 0, [7, 5, 3, 1], [7, 4, 1, 0])
    assert (stones[:, :4] == turns).all() and {*index[:, 0]} == {0, 1}


def test_the_shares_favour_the_last_member():
    assert league.shares(1, 3).tolist() == [1, 0, 0]
    assert league.shares(2, 3, latest=0.5) == pytest.approx([0.25, 0.75, 0])
    assert league.shares(3, 3, latest=0) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_ppo_learns_the_values_of_nim_against_a_perfect_opponent():
    """The agent moves first. V is 1 if the stones are not a multiple of 3, and -1 with three."""
    env = against(Nim(1, 5), side="first")
    config = configs.make(
        preset="none", num_envs=32, num_steps=16, hidden=(32,), learning_rate=1e-2, gamma=1.0,
        gae_lambda=1.0, entropy_coef=0.0, anneal_timesteps=np.inf,
    )  # fmt: skip
    program = build(config, env=env)
    state = jax.jit(program.init)(KEY)
    train = lambda state: jax.lax.scan(lambda s, _: program.step(s), state, None, length=40)[0]
    params = jax.jit(train)(state).learner.params
    states = jax.vmap(lambda n: pile(n, 0, jnp.zeros(2), jnp.array(False)))(jnp.arange(1, 6))
    obs = {"obs": states.observation, "action_mask": states.legal_action_mask}
    core, starts = program.policy.init_core(5), jnp.ones(5, bool)
    _, dist, value = program.policy.act(params, core, obs, starts)
    assert np.asarray(value) == pytest.approx([1, 1, -1, 1, 1], abs=0.2)
    assert dist.mode()[np.array([0, 1, 3, 4])].tolist() == [0, 1, 0, 1]


def test_zero_parameters_play_every_legal_move_with_equal_probability():
    config = configs.make(preset="none", num_envs=2)
    policy = build(config, env=against(Nim(MOST))).policy
    state = pile(jnp.array(5), 0, jnp.zeros(2), jnp.array(False))
    obs = {"obs": state.observation[None], "action_mask": state.legal_action_mask[None]}
    zeros = jax.tree.map(jnp.zeros_like, policy.init(KEY, obs))
    act = league.actor(policy)
    drawn = jax.vmap(lambda k: act(k, state, zeros))(jax.random.split(KEY, 4000))
    assert abs(np.mean(drawn) - 0.5) < 4 * 0.5 / np.sqrt(4000)
    last = pile(jnp.array(1), 0, jnp.zeros(2), jnp.array(False))
    assert not jax.vmap(lambda k: act(k, last, zeros))(jax.random.split(KEY, 100)).any()


def test_the_results_of_matches_are_those_of_the_known_games():
    """With five stones, taking two always wins against taking one; with four, the beginner wins."""
    one, two = (lambda k, s, n=n: constant(k, s, n) for n in (0, 1))
    assert league.play(KEY, Nim(5), one, two).tolist() == [-1, 1]
    assert league.both_sides(KEY, Nim(5), one, two, 6).tolist() == [0, 0, 6]
    assert league.both_sides(KEY, Nim(4), perfect, perfect, 6).tolist() == [3, 0, 3]
    table = league.round_robin(KEY, Nim(5), constant, jnp.array([1, 0]), 6)
    assert table[0, 1].tolist() == [6, 0, 0] and table[1, 0].tolist() == [0, 0, 6]
    assert not table[[0, 1], [0, 1]].any()


@pytest.mark.parametrize("stones", [1, 2, 4, 5, 7])
def test_minimax_plays_nim_perfectly(stones):
    act = league.minimax(Nim(stones), depth=stones)
    state = Nim(stones).init(KEY)
    assert int(act(KEY, state)) == stones % 3 - 1


def test_minimax_draws_among_equally_good_moves():
    act, state = league.minimax(Nim(3), depth=3), Nim(3).init(KEY)
    drawn = jax.vmap(lambda key: act(key, state))(jax.random.split(KEY, 1000))
    assert abs(np.mean(drawn) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def simulate(ratings, games, rng):
    """Points and numbers of games of a round robin of players with these ratings."""
    points = np.triu(rng.binomial(games, league.expected(ratings)), 1)
    points = points + np.tril(games - points.T, -1)
    return points, np.full(points.shape, games)


def test_ratings_give_the_expected_scores():
    """400 points are odds of 10, and 200 are odds of the square root of 10."""
    found = league.expected([0, 400, 200])
    assert found[1, 0] == pytest.approx(10 / 11) and found[2, 0] == pytest.approx(0.759747)
    assert found + found.T == pytest.approx(np.ones((3, 3)))


def test_exact_scores_give_back_the_ratings():
    ratings = np.array([0.0, 150.0, -90.0, 700.0])
    games = np.full((4, 4), 50.0)
    found, _ = league.elo(games * league.expected(ratings), games)
    assert found == pytest.approx(ratings, abs=1e-6)
    # The variance of one pair with n games is 1 / (n p (1 - p)) in natural units.
    _, half = league.elo(games[:2, :2] / 2, games[:2, :2])
    assert half == pytest.approx([0, 1.959964 * 400 / np.log(10) / np.sqrt(50 / 4)])


def test_ratings_are_recovered_from_simulated_games():
    """The intervals hold the true ratings in about 95 % of 300 tournaments."""
    rng, ratings = np.random.default_rng(0), np.array([0.0, 100.0, 250.0, -120.0, 400.0])
    held = []
    for _ in range(300):
        found, half = league.elo(*simulate(ratings, 60, rng))
        held.append(np.abs(found - ratings)[1:] <= half[1:])
    assert 0.92 < np.mean(held) < 0.975
    found, half = league.elo(*simulate(ratings, 20_000, rng))
    assert np.abs(found - ratings).max() < 12 and half.max() < 12


def test_players_who_won_all_points_have_no_ratings():
    points: Any = np.array([[0, 0, 0], [10, 0, 6], [10, 4, 0]])
    with pytest.raises(ValueError, match="would be infinite"):
        league.elo(points, points + points.T)
