"""Self-play in Connect Four: PPO against a league of its own snapshots, with Elo ratings.

    python connect_four.py
    python connect_four.py --generations 5 --updates 10 --csv league.csv

The game is that of pgx (`pip install ".[pgx]"`). The league begins with the random player. In each
generation the agent plays against members of the league, one drawn for each game, and plays either
side; then its parameters join the league. Full columns are masked. At the end, all members play
against each other, and the table has their Elo ratings, with 0 for the random player.
"""

import argparse
import csv
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import league
import numpy as np

from ppo_jax import config as configs
from ppo_jax import envs
from ppo_jax.train import build

DEPTHS = (1, 2, 4)  # of the minimax players


def configure(num_envs, seed):
    """The configuration of PPO."""
    return configs.make(
        preset="none", num_envs=num_envs, num_steps=32, hidden=(128, 128), learning_rate=1e-3,
        anneal_timesteps=math.inf, gamma=0.99, gae_lambda=0.95, entropy_coef=0.02, epochs=2,
        minibatches=8, activation="relu", seed=seed,
    )  # fmt: skip


def say(k, members, metrics):
    """Print a line after generation k."""
    print(
        f"generation {k}: return {float(metrics['episode_return']):.2f} against the league, "
        f"entropy {float(metrics['entropy']):.2f}",
        flush=True,
    )


def train(config, generations, updates, report=say):
    """Train against the league for a number of generations.

    Args:
        config: configuration of the run, a TrainConfig.
        generations: number of snapshots.
        updates: number of updates of PPO in each generation.
        report: function (k, members, metrics of the last update), called after each generation.

    Returns:
        (policy, members [1 + generations, ...]); member 0 is the random player.
    """
    base = envs.make("pgx:connect_four")
    policy = build(config, env=base).policy
    act, size = league.actor(policy), generations + 1

    def program(members, share):
        return build(config, env=league.LeagueEnv(base, act, (members, share)))

    @jax.jit
    def generation(state, members, share):
        step = program(members, share).step
        state, metrics = jax.lax.scan(lambda s, _: step(s), state, None, length=updates)
        return state, jax.tree.map(lambda x: x[-1], metrics)

    # Zero parameters give equal logits, so that every legal move is equally probable.
    start = {"obs": base.env.init(jax.random.key(0)).observation, "action_mask": np.ones(7, bool)}
    shapes = jax.eval_shape(policy.init, jax.random.key(0), jax.tree.map(lambda x: x[None], start))
    members = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
    state = jax.jit(lambda *opponents: program(*opponents).init(jax.random.key(config.seed)))(
        members, jnp.asarray(league.shares(1, size))
    )
    for k in range(1, size):
        state, metrics = generation(state, members, jnp.asarray(league.shares(k, size)))
        members = jax.tree.map(lambda x, new, k=k: x.at[k].set(new), members, state.learner.params)
        report(k, members, metrics)
    return policy, members


def rate(policy, members, config, options):
    """Let all members play, and compute their ratings.

    Args:
        policy: functions of the policy network, a Policy.
        members: [K, ...] parameters; member 0 is the random player.
        config: configuration of the run, a TrainConfig.
        options: what the command line gives: games, minimax_games, updates, seed.

    Returns:
        List of K rows, each a dictionary with the columns of the table; those of minimax are empty.
    """
    game, act = envs.make("pgx:connect_four").env, league.actor(policy)
    key, _ = keys_of_games(options.seed)
    table = league.round_robin(key, game, act, members, options.games)
    # One drawn game is added for each pair: a member that lost all its games has a finite rating.
    ratings, half = league.elo(table[..., 0] + table[..., 1] / 2 + 0.5, table.sum(-1) + 1.0)
    won = table[..., 0] / options.games
    steps = options.updates * config.num_envs * config.num_steps
    return [
        {
            "generation": k,
            "env_steps": k * steps,
            "elo": round(ratings[k]),
            "elo_low": round(ratings[k] - half[k]),
            "elo_high": round(ratings[k] + half[k]),
            "wins_against_first": share(won[k, 1], k != 1),
            "wins_against_random": share(won[k, 0], k != 0),
            "wins_of_last": share(won[-1, k], k + 1 < len(won)),
            **{f"wins_against_minimax_{depth}": "" for depth in DEPTHS},
            "games": options.games,
            "minimax_games": options.minimax_games,
            "seed": options.seed,
        }
        for k in range(len(won))
    ]


def keys_of_games(seed):
    """[2] keys of the games between members, and of those against minimax."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))


def add_minimax(rows, policy, members, options):
    """Let the last member play against minimax, and add the results to the last row."""
    _, key = keys_of_games(options.seed)
    last = jax.tree.map(lambda x: x[-1], members)
    for depth in DEPTHS:
        search = (depth, options.minimax_games)
        count = against_minimax(key, league.actor(policy), last, search)
        rows[-1][f"wins_against_minimax_{depth}"] = share(count[0] / count.sum())


def share(wins, known=True):
    """A share of games with three digits; empty for a member against itself."""
    return f"{wins:.3f}" if known else ""


def against_minimax(key, act, params, search):
    """[3] wins, draws and losses against minimax; `search` is (depth, number of games)."""
    depth, games = search
    game = envs.make("pgx:connect_four").env
    other = league.minimax(game, depth)
    # A few games at a time, because a search of depth 4 holds 2,401 positions per game.
    batch = math.gcd(games, 10)
    mine = lambda params: functools.partial(lambda p, k, s: act(k, s, p), params)
    some = jax.jit(lambda key, p: league.both_sides(key, game, mine(p), other, batch))
    keys = jax.random.split(key, games // batch)
    return np.sum([np.asarray(some(k, params)) for k in keys], axis=0)


def show(rows):
    """The table as Markdown; the columns are those of the CSV file."""
    head = ("generation", "steps", "Elo [95 %]", "wins against generation 1", "against random",
            "wins of the last generation against it")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = (
            r["generation"],
            f"{int(r['env_steps']):,}",
            f"{r['elo']} [{r['elo_low']}, {r['elo_high']}]",
            *(percent(r[f"wins_{x}"]) for x in ("against_first", "against_random", "of_last")),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def percent(wins):
    """A share of games as a percentage; a dash where there is none."""
    return f"{100 * float(wins):.1f} %" if wins else "-"


def write(rows, file):
    """Write the table as a CSV file."""
    with Path(file).open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    """Train, let the members play, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--updates", type=int, default=12, help="updates of each generation")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--games", type=int, default=200, help="games of each pair of members")
    parser.add_argument("--minimax-games", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", help="file to write the table to")
    options = parser.parse_args()
    for name in ("generations", "updates"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be >= 1")
    for name in ("games", "minimax_games"):
        if getattr(options, name) < 2 or getattr(options, name) % 2:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} is {getattr(options, name)}; it must be even and >= 2")
    config = configure(options.num_envs, options.seed)
    if options.csv:  # before the training, so that a path that cannot be written fails at once
        Path(options.csv).parent.mkdir(parents=True, exist_ok=True)
        Path(options.csv).open("a").close()
    policy, members = train(config, options.generations, options.updates)
    rows = rate(policy, members, config, options)
    if options.csv:  # the games against minimax take long, and are not needed for the ratings
        write(rows, options.csv)
    add_minimax(rows, policy, members, options)
    print(show(rows))
    for depth in DEPTHS:
        wins = percent(rows[-1][f"wins_against_minimax_{depth}"])
        print(f"wins of the last generation against minimax of depth {depth}: {wins}")
    if options.csv:
        write(rows, options.csv)


if __name__ == "__main__":
    main()
