"""Self-play in Kuhn poker, examples/kuhn_poker.py: the game, its equilibria, and the league."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.evaluate import confidence_interval

FILE = Path(__file__).parent.parent / "examples" / "kuhn_poker.py"
SPEC = importlib.util.spec_from_file_location("kuhn_poker", FILE)
kuhn = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kuhn)


def equilibrium(alpha):
    """A Nash equilibrium for each 0 <= alpha <= 1/3: Kuhn (1950), A simplified two-person poker."""
    table = np.zeros((4, 3))
    table[kuhn.START] = alpha, 0, 3 * alpha
    table[kuhn.PASSED_BET] = 0, alpha + 1 / 3, 1
    table[kuhn.PASSED] = 1 / 3, 0, 1
    table[kuhn.BET] = 0, 1 / 3, 1
    return table


@pytest.fixture
def strategies():
    return np.random.default_rng(0).uniform(size=(3, 4, 3))


@pytest.mark.parametrize("alpha", [0, 0.1, 1 / 3])
def test_the_known_equilibria_are_not_exploitable(alpha):
    table = equilibrium(alpha)
    assert kuhn.value(table, table) == pytest.approx(kuhn.VALUE) == pytest.approx(-1 / 18)
    assert kuhn.exploitability(table) == pytest.approx(0, abs=1e-12)
    table[kuhn.BET, 1] += 0.1
    assert kuhn.exploitability(table) > 0.005


def test_the_uniform_strategy_has_the_published_exploitability():
    """NashConv is 11/12 for uniform play: OpenSpiel, algorithms/exploitability_test.py."""
    assert 2 * kuhn.exploitability(kuhn.UNIFORM) == pytest.approx(11 / 12)


def test_the_average_plays_like_a_drawn_member(strategies):
    share, other = np.array([0.5, 0.3, 0.2]), kuhn.UNIFORM
    found = kuhn.average(strategies, share)
    first = [kuhn.value(s, other) for s in strategies]
    second = [kuhn.value(other, s) for s in strategies]
    assert kuhn.value(found, other) == pytest.approx(np.dot(share, first))
    assert kuhn.value(other, found) == pytest.approx(np.dot(share, second))


def test_the_environment_pays_the_value_of_the_strategies(strategies):
    """Hands of one strategy against a league of two, each side in both seats."""
    mine, league, share = strategies[0], strategies[1:], np.array([0.25, 0.75])
    env = kuhn.Kuhn((jnp.asarray(league), jnp.asarray(share)))
    table = jnp.asarray(mine)

    def hand(key):
        reset_key, *keys = jax.random.split(key, 5)
        obs, state = env.reset(reset_key, env.params)
        total, alive = 0.0, True
        for action_key, step_key in (keys[:2], keys[2:]):
            bets = table[jnp.argmax(obs[:4]), jnp.argmax(obs[4:])]
            action = jax.random.bernoulli(action_key, bets).astype(int)
            obs, state, reward, ended, *_ = env.step(step_key, state, action, env.params)
            total, alive = total + reward * alive, alive & ~ended
        return total, alive

    won, alive = jax.jit(jax.vmap(hand))(jax.random.split(jax.random.key(0), 100_000))
    other = kuhn.average(league, share)
    low, high = confidence_interval(np.asarray(won))
    middle, half = (low + high) / 2, (high - low) / 2
    expected = (kuhn.value(mine, other) - kuhn.value(other, mine)) / 2
    assert not alive.any() and abs(middle - expected) < 2 * half and half < 0.02


def test_elo_is_the_logarithm_of_the_odds_of_two_players(strategies):
    low, high = kuhn.elo(strategies[:2])
    wins = lambda chips: float(chips > 0)
    first, second = (kuhn.outcomes(*pair, wins) for pair in (strategies[:2], strategies[1::-1]))
    odds = (first + 1 - second) / (1 - first + second)
    assert low - high == pytest.approx(400 * np.log10(odds)) and low + high == pytest.approx(0)


@pytest.mark.slow
def test_self_play_approaches_an_equilibrium():
    lines = []
    league = kuhn.train(30, seed=0, report=lines.append)
    found = kuhn.average(league, np.full(len(league), 1 / len(league)))
    assert kuhn.exploitability(found) <= 0.1 and len(lines) == 3
    assert kuhn.value(found, found) == pytest.approx(kuhn.VALUE, abs=0.03)
    assert np.isfinite(kuhn.elo(league)).all()
