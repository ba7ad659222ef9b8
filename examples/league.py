"""Self-play against a league of snapshots, for two-player games with the interface of pgx.

A league is a pytree of parameters [K, ...] with one probability for each of its K members. It is an
argument of the compiled programs, so that one program serves all generations. The functions here do
not import pgx: a game is any object with `num_players`, `init(key)` and `step(state, action, key)`,
whose states have the attributes current_player, legal_action_mask, observation, rewards, terminated
and truncated. connect_four.py uses them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs.pgx import PgxEnv

SCALE = 400 / np.log(10)  # Elo points per unit of the natural logarithm of the odds
NORMAL_975 = 1.959964


@dataclasses.dataclass(frozen=True, eq=False)
class LeagueEnv:
    """A pgx game against a league: one member is drawn for each game and plays all of its moves.

    The agent's side is that of the PgxEnv: with side "random", it is drawn for each game, too. The
    reward is the agent's: 1 for a game that it wins, -1 for one that the opponent wins.

    Attributes:
        base: PgxEnv, whose opponent is replaced by the drawn member.
        act: function (key, State of pgx, parameters of one member) -> action.
        params: (members [K, ...], probabilities [K]).
    """

    base: PgxEnv
    act: Callable[[jax.Array, Any, Any], jax.Array]
    params: Any

    name = property(lambda self: f"{self.base.name} against a league")
    observation_space = property(lambda self: self.base.observation_space)
    action_space = property(lambda self: self.base.action_space)
    time_limit = property(lambda self: self.base.time_limit)

    def reset(self, key, params):
        """Draw a member and play to the agent's first move: (obs, (state, index of the member))."""
        member_key, game_key = jax.random.split(key)
        share = params[1]
        index = jax.random.choice(member_key, share.shape[0], p=share)
        obs, state = self._against(params, index).reset(game_key, ())
        return obs, (state, index)

    def step(self, key, state, action, params):
        """One move of the agent and the member's answer."""
        state, index = state
        obs, state, *rest = self._against(params, index).step(key, state, action, ())
        return obs, (state, index), *rest

    def _against(self, params, index):
        """The game against one member."""
        member = jax.tree.map(lambda x: x[index], params[0])
        opponent = lambda key, state: self.act(key, state, member)
        return dataclasses.replace(self.base, opponent=opponent)


def shares(count, size, latest=0.5):
    """The probabilities [size] of the first `count` members, and 0 for the free places.

    The last member is drawn with probability `latest`, and otherwise one of all members with equal
    probability. Berner et al. (2019), Dota 2 with large scale deep reinforcement learning, section
    3.4, play 80 % of their games against the latest version and the others against older ones.
    """
    share = np.where(np.arange(size) < count, (1 - latest) / count, 0.0)
    share[count - 1] += latest
    return share


def actor(policy, greedy=False):
    """The moves of a policy: function (key, State of pgx, params) -> action.

    Args:
        policy: Policy for observations {"obs", "action_mask"}.
        greedy: whether to take the most probable action instead of drawing one.
    """

    def act(key, state, params):
        obs = {"obs": state.observation, "action_mask": state.legal_action_mask}
        obs = jax.tree.map(lambda x: x[None], obs)
        _, dist, _ = policy.act(params, policy.init_core(1), obs, jnp.ones(1, bool))
        return (dist.mode() if greedy else dist.sample(key))[0]

    return act


def play(key, game, first, second):
    """One game: [2] the rewards of the two players, the one who begins first.

    Args:
        key: PRNG key.
        game: game with the interface of pgx.
        first, second: functions (key, State) -> action.
    """
    key, init_key = jax.random.split(key)
    state = game.init(init_key)
    beginner = state.current_player

    def move(carry):
        key, state, total = carry
        key, first_key, second_key, step_key = jax.random.split(key, 4)
        action = jnp.where(
            state.current_player == beginner, first(first_key, state), second(second_key, state)
        )
        state = game.step(state, action, step_key)
        return key, state, total + state.rewards

    going = lambda carry: ~(carry[1].terminated | carry[1].truncated)
    _, _, total = jax.lax.while_loop(going, move, (key, state, jnp.zeros(2)))
    return jnp.stack([total[beginner], total[1 - beginner]])


def results(rewards):
    """[3] the numbers of wins, draws and losses among rewards of one player."""
    return jnp.stack([(rewards > 0).sum(), (rewards == 0).sum(), (rewards < 0).sum()])


def both_sides(key, game, mine, other, games):
    """[3] wins, draws and losses of `mine` in `games` games, half of which it begins."""
    run = lambda keys, a, b: jax.vmap(lambda key: play(key, game, a, b))(keys)
    keys = jax.random.split(key, (2, games // 2))
    return results(
        jnp.concatenate([run(keys[0], mine, other)[:, 0], run(keys[1], other, mine)[:, 1]])
    )


def round_robin(key, game, act, members, games):
    """All pairs of members play: [K, K, 3] wins, draws and losses of i against j.

    Args:
        key: PRNG key.
        game: game with the interface of pgx.
        act: function (key, State, params) -> action.
        members: [K, ...] parameters.
        games: number of games of each pair, half of which each member begins.
    """
    count = jax.tree.leaves(members)[0].shape[0]
    pairs = np.stack(np.triu_indices(count, 1), 1)
    keys = jax.random.split(key, len(pairs))

    def pair(inputs):
        key, (i, j) = inputs
        mine, other = (jax.tree.map(lambda x, k=k: x[k], members) for k in (i, j))
        return both_sides(
            key, game, lambda k, s: act(k, s, mine), lambda k, s: act(k, s, other), games
        )

    # One pair after the other, so that the games of a pair share their parameters.
    found = np.asarray(jax.jit(lambda k, p: jax.lax.map(pair, (k, p)))(keys, jnp.asarray(pairs)))
    table = np.zeros((count, count, 3), int)
    table[pairs[:, 0], pairs[:, 1]] = found
    table[pairs[:, 1], pairs[:, 0]] = found[:, ::-1]
    return table


def minimax(game, depth, decay=0.9):
    """A player that looks `depth` moves ahead: function (key, State) -> action.

    Each position has the value max_a [r - decay * (value of the next position)] for the player to
    move, and a position at the end of the search, if the game goes on, the value 0. The decay makes
    sooner wins and later losses better. Equally good actions are drawn with equal probability.
    Players alternate.

    Args:
        game: game with the interface of pgx whose moves are not random.
        depth: number of moves of both players together, >= 1.
        decay: factor per move, between 0 and 1.
    """

    def values(state, depth):
        actions = jnp.arange(state.legal_action_mask.shape[0])
        after = jax.vmap(lambda a: game.step(state, a, jax.random.key(0)))(actions)
        reward = after.rewards[:, state.current_player]
        if depth > 1:
            theirs = jax.vmap(lambda s: values(s, depth - 1).max())(after)
            reward = jnp.where(after.terminated, reward, reward - decay * theirs)
        return jnp.where(state.legal_action_mask, reward, -jnp.inf)

    def act(key, state):
        value = values(state, depth)
        return jax.random.categorical(key, jnp.where(value >= value.max() - 1e-6, 0.0, -jnp.inf))

    return act


def expected(ratings):
    """[K, K] the expected score of i against j: 1 / (1 + 10^((R_j - R_i) / 400))."""
    difference = np.asarray(ratings)[:, None] - np.asarray(ratings)[None]
    return 1 / (1 + 10 ** (-difference / 400))


def elo(points, games, anchor=0):
    """The most likely Elo ratings of players, and their 95 % intervals.

    They maximise sum_ij S_ij log p_ij with p_ij = 1 / (1 + 10^((R_j - R_i) / 400)), the model of
    Bradley and Terry (1952), by Newton's method. A draw counts as half a win for both players. The
    intervals are +- 1.96 sqrt(variance of R_i - R_anchor), from the inverse of the information
    matrix; draws make them wider than needed.

    Args:
        points: [K, K] points S_ij of i in the games against j.
        games: [K, K] numbers of games, symmetric.
        anchor: index of the player whose rating is 0.

    Returns:
        (ratings [K], half-widths of the intervals [K]).

    Raises:
        ValueError: if a group of players won all points against the others, or has not played
            against them, so that no finite ratings are the most likely ones.
    """
    points, games = np.array(points, float), np.array(games, float)
    np.fill_diagonal(points, 0.0)
    np.fill_diagonal(games, 0.0)
    beaten = np.linalg.matrix_power((points > 0) + np.eye(len(points)), len(points)) > 0
    if not beaten.all():
        raise ValueError("some players won all points against others: ratings would be infinite")
    likelihood = lambda x: np.sum(points * np.log(expected(x * SCALE)))
    x = np.zeros(len(points))
    for _ in range(100):
        p = expected(x * SCALE)
        spread = games * p * (1 - p)
        inverse = np.linalg.pinv(np.diag(spread.sum(1)) - spread, hermitian=True)
        step = inverse @ (points - games * p).sum(1)
        while np.abs(step).max() > 1e-9 and likelihood(x + step) < likelihood(x):
            step /= 2
        x = x + step
        if np.abs(step).max() < 1e-9:
            break
    variance = np.diag(inverse) + inverse[anchor, anchor] - 2 * inverse[anchor]
    half = NORMAL_975 * SCALE * np.sqrt(np.maximum(variance, 0.0))
    return (x - x[anchor]) * SCALE, half
