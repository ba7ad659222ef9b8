"""Self-play in Kuhn poker: PPO against a league of its own snapshots, with exact exploitability.

    python kuhn_poker.py
    python kuhn_poker.py --generations 20 --seed 1

In each generation, the agent plays against the league: at the start of a game an earlier snapshot
is drawn as its opponent. Then its policy joins the league. This is fictitious play with PPO in
place of an exact best response (Brown 1951; Heinrich, Lanctot and Silver 2015), so that the average
strategy of the league, and not the last snapshot, approaches a Nash equilibrium.

Kuhn poker (Kuhn 1950) has three cards and two players. Each antes one chip and gets a card. The
players in turn pass or bet one chip; a pass after a bet folds, and otherwise the higher card wins.
A strategy is a table [4, 3] of the probability of a bet for each history of actions and own card.
With optimal play, the first player wins -1/18 chips on average.
"""

import argparse
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.envs import spaces
from ppo_jax.train import build

# Histories: the first player's turn, the second's after a pass and after a bet, and the first's
# after a pass and a bet.
START, PASSED, BET, PASSED_BET = range(4)
OF_FIRST, OF_SECOND = [START, PASSED_BET], [PASSED, BET]
VALUE = -1 / 18
UNIFORM = np.full((4, 3), 0.5)
UPDATES = 10  # of PPO in each generation


def observe(history, card):
    """The history and the own card, as [7] zeros and ones."""
    return jnp.concatenate([jax.nn.one_hot(history, 4), jax.nn.one_hot(card, 3)])


@dataclasses.dataclass(frozen=True, eq=False)
class Kuhn:
    """A hand of Kuhn poker in a random seat; the reward is the number of chips won.

    Attributes:
        params: strategies of the league [K, 4, 3], one of which is drawn for each hand, with the
            probabilities [K].
    """

    params: tuple
    name: str = "Kuhn poker"
    observation_space: spaces.Box = dataclasses.field(
        default_factory=lambda: spaces.Box(np.zeros(7), np.ones(7), (7,))
    )
    action_space: spaces.Discrete = dataclasses.field(default_factory=lambda: spaces.Discrete(2))
    time_limit: float = np.inf

    def reset(self, key, params):
        """Deal; if the agent is second, the opponent acts: (obs, (history, cards, strategy))."""
        deal_key, seat_key, league_key, move_key = jax.random.split(key, 4)
        own, other = jax.random.permutation(deal_key, 3)[:2]
        league, share = params
        strategy = league[jax.random.choice(league_key, len(league), p=share)]
        bets = jax.random.bernoulli(move_key, strategy[START, other])
        second = jax.random.bernoulli(seat_key)
        history = jnp.where(second, jnp.where(bets, BET, PASSED), START)
        return observe(history, own), (history, (own, other), strategy)

    def step(self, key, state, action, params):
        """Pass or bet, and the opponent's answer."""
        history, (own, other), strategy = state
        faces_bet = (history == BET) | (history == PASSED_BET)
        asked = jnp.array([PASSED, PASSED_BET, BET, BET])[history]
        answer = jnp.where(action == 1, jnp.where(history == START, BET, PASSED_BET), asked)
        bets = jax.random.bernoulli(key, strategy[answer, other])
        won = jnp.where(own > other, 1.0, -1.0)
        ends = jnp.where(action == 1, 2 * won, -1.0)  # a bet was called, or folded to
        after_bet = jnp.where(bets, 2 * won, 1.0)
        reward = jnp.where(faces_bet, ends, jnp.where(action == 1, after_bet, won))
        again = (history == START) & (action == 0) & bets
        state = jnp.where(again, PASSED_BET, history), (own, other), strategy
        nothing = jnp.zeros((), bool)
        obs = observe(state[0], own)
        return obs, state, jnp.where(again, 0.0, reward), ~again, nothing, {}


def outcomes(first, second, payoff):
    """The mean of a payoff over all deals, for the first player.

    Args:
        first, second: strategies [4, 3].
        payoff: function of the chips that the first player wins.
    """
    total = 0.0
    for a, b in itertools.permutations(range(3), 2):
        won = 1 if a > b else -1
        bet, call = first[START, a], first[PASSED_BET, a]
        answer, raised = second[BET, b], second[PASSED, b]
        total += bet * (answer * payoff(2 * won) + (1 - answer) * payoff(1))
        checked = (1 - raised) * payoff(won)
        checked += raised * (call * payoff(2 * won) + (1 - call) * payoff(-1))
        total += (1 - bet) * checked
    return total / 6


def value(first, second):
    """The mean number of chips that the first player wins."""
    return outcomes(first, second, lambda chips: chips)


def exploitability(strategy):
    """Half the sum of what best responses in both seats win against a strategy.

    It is 0 in a Nash equilibrium. A best response is one of the 64 pure strategies of a seat. This
    is NashConv / 2 in the terms of Lanctot et al. (2017), section 2.
    """
    pure = [np.array(bits).reshape(2, 3) for bits in itertools.product((0, 1), repeat=6)]
    best_first = max(value(placed(OF_FIRST, bits), strategy) for bits in pure)
    best_second = max(-value(strategy, placed(OF_SECOND, bits)) for bits in pure)
    return (best_first + best_second) / 2


def placed(rows, bits):
    """A table [4, 3] with the two rows of one seat."""
    table = np.zeros((4, 3))
    table[rows] = bits
    return table


def average(league, share):
    """The strategy that plays like a league in which a member is drawn for each hand.

    The second decision of the first player counts in proportion to the probability with which the
    first one leads to it (Kuhn's theorem).

    Args:
        league: strategies [K, 4, 3].
        share: probabilities [K].
    """
    weight = np.repeat(np.asarray(share)[:, None, None], 4, axis=1) * np.ones((1, 1, 3))
    weight[:, PASSED_BET] *= 1 - np.asarray(league)[:, START]
    weight[:, PASSED_BET] += 1e-12  # a decision that no member reaches
    return (weight * league).sum(0) / weight.sum(0)


def elo(league, rounds=500):
    """Elo ratings of strategies, with mean 0: the probability of i to win chips from j is about
    1 / (1 + 10^((R_j - R_i) / 400)). They are the most likely ones, by the iteration of Hunter
    (2004), MM algorithms for generalized Bradley-Terry models.

    Args:
        league: strategies [K, 4, 3].
        rounds: number of iterations.
    """
    wins = lambda chips: float(chips > 0)
    seats = [[outcomes(a, b, wins) for b in league] for a in league]
    won = (np.array(seats) + 1 - np.array(seats).T) / 2  # [i, j]: i wins, over both seats
    np.fill_diagonal(won, 0.0)
    strength, off = np.ones(len(league)), 1 - np.eye(len(league))
    for _ in range(rounds):
        strength = won.sum(1) / (off / (strength[:, None] + strength)).sum(1)
        strength /= np.exp(np.log(strength).mean())
    return 400 * np.log10(strength)


def strategy_of(program, state):
    """The table [4, 3] of a policy, from its action distribution in all 12 situations."""
    obs = jnp.stack([observe(h, c) for h in range(4) for c in range(3)])
    params = state.learner.params
    _, dist, _ = program.policy.act(params, program.policy.init_core(12), obs, jnp.ones(12, bool))
    return np.asarray(jax.nn.softmax(dist.logits)[:, 1], np.float64).reshape(4, 3)


def train(generations, seed, report=print):
    """Train against the league for a number of generations.

    Returns:
        The strategies [K, 4, 3] of the snapshots.
    """
    # The large entropy bonus keeps every action probable enough to be tried again when the league
    # has changed; with 0.01, the policy stays near one pure strategy.
    config = configs.make(
        preset="none", num_envs=256, num_steps=8, hidden=(32, 32), learning_rate=3e-3,
        anneal_timesteps=np.inf, gamma=1.0, gae_lambda=1.0, entropy_coef=0.2, seed=seed,
    )  # fmt: skip
    size = generations + 1

    @jax.jit
    def generation(state, league, share):
        # The league is an argument, so that one compiled program serves all generations.
        step = lambda state, _: build(config, env=Kuhn((league, share))).step(state)
        return jax.lax.scan(step, state, None, length=UPDATES)[0]

    league, share = np.broadcast_to(UNIFORM, (size, 4, 3)).copy(), np.zeros(size)
    share[0] = 1.0
    program = build(config, env=Kuhn((jnp.asarray(league), jnp.asarray(share))))
    state = jax.jit(program.init)(jax.random.key(seed))
    for k in range(1, size):
        state = generation(state, jnp.asarray(league), jnp.asarray(share))
        league[k] = strategy_of(program, state)
        share = np.where(np.arange(size) <= k, 1.0, 0.0) / (k + 1)
        if k % 10 == 0 or k == generations:
            of_all = exploitability(average(league, share))
            report(
                f"generation {k}: exploitability {of_all:.3f} of the league's average, "
                f"{exploitability(league[k]):.3f} of the last snapshot; "
                f"Elo of the last {elo(league[: k + 1])[-1]:.0f}"
            )
    return league


def main():
    """Train, and print the average strategy of the league."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.generations < 1:
        parser.error(f"--generations is {options.generations}; it must be >= 1")
    league = train(options.generations, options.seed)
    found = average(league, np.full(len(league), 1 / len(league)))
    print("probability of a bet with J, Q, K")
    for name, row in zip(
        ("first", "after a pass", "after a bet", "after both"), found, strict=True
    ):
        print(f"  {name:13} {row[0]:.2f} {row[1]:.2f} {row[2]:.2f}")
    print(f"value for the first player {value(found, found):.4f} (optimal {VALUE:.4f})")
    print(f"exploitability {exploitability(found):.4f}")


if __name__ == "__main__":
    main()
