"""`ppo-jax zoo`: the trained agents of the package, and the comparison of each with its card."""

import json
import sys
from typing import Any, NoReturn

from ppo_jax.cli import listing
from ppo_jax.cli import play as player
from ppo_jax.cli.errors import Work, exit_prepared, exit_without_device
from ppo_jax.cli.flags import positional
from ppo_jax.config import ConfigError
from ppo_jax.config.errors import did_you_mean
from ppo_jax.runs import cards, terminal
from ppo_jax.runs.cards import Card

PROGRAM = "ppo-jax zoo"
MOST_EPISODES = 1_000_000
DOC = f"""usage: {PROGRAM} COMMAND ...

The trained agents of the package. `play`, `evaluate`, `export` and `ppo_jax.load` take their
names, as zoo:NAME:
`ppo-jax play zoo:cartpole`, `ppo-jax evaluate zoo:cartpole`, `ppo_jax.load("zoo:cartpole")`.

commands:
  list  list the agents with their returns
  card NAME  print everything that is recorded about an agent
  play NAME  watch an agent in the terminal
  verify NAME  evaluate an agent, and compare its returns with its card

`{PROGRAM} verify --help` and `{PROGRAM} play --help` list the options of these commands."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax zoo`, the same as `python -m ppo_jax.zoo`."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["verify"]:
        exit_prepared(lambda: positional(verify, words[1:], f"{PROGRAM} verify"))
    if words[:1] == ["play"]:
        exit_prepared(lambda: positional(player.prepared, _in_zoo(words[1:]), f"{PROGRAM} play"))
    exit_without_device(lambda: _text(words))


def _text(words: list[str]) -> int:
    """The commands that only print."""
    if not words or words[0] in ("-h", "--help"):
        terminal.say(listing.wrapped(DOC))
        return 0 if words else 2
    if words[0] not in PRINTED:
        raise ConfigError(
            f"unknown command {words[0]!r}; {did_you_mean(words[0], [*PRINTED, 'play', 'verify'])}"
        )
    work, most = PRINTED[words[0]]
    if not listing.only_help(words[1:], f"{PROGRAM} {words[0]}", DOC, most=most):
        work(*words[1:])
    return 0


def _list() -> None:
    """Print one line for each agent."""
    rows: listing.Rows = [
        (card.name, card.config["env"], card.config["algorithm"], f"{card.env_steps:,} steps",
         f"return {_shown(card)}")
        for card in map(cards.read, cards.names())
    ]  # fmt: skip
    listing.show(rows)
    terminal.say(
        listing.wrapped(
            f"\nReturns are means of greedy episodes with their 95 % interval. `{PROGRAM} verify "
            "NAME` compares an agent with its card, and `ppo-jax play zoo:NAME` shows it."
        )
    )


def _shown(card: Card) -> str:
    found = card.evaluation
    ends = [found[f"eval_return_ci95_{end}"] for end in ("low", "high")]
    interval = "" if None in ends else " [{:.2f}, {:.2f}]".format(*ends)
    return f"{found['eval_return_mean']:.2f}{interval}"


def _card(name: str = "") -> None:
    """Print the card of an agent as JSON, without the returns of its single episodes."""
    if not name:
        raise ConfigError(f"name an agent: {PROGRAM} card NAME; there are: {_names()}")
    card = cards.read(name)
    content = {field: getattr(card, field) for field in cards.FIELDS}
    content["evaluation"] = {k: v for k, v in card.evaluation.items() if k != "returns"}
    terminal.say(json.dumps(content, indent=2))


PRINTED: dict[str, tuple[Any, int]] = {"list": (_list, 0), "card": (_card, 1)}


def _names() -> str:
    return ", ".join(cards.names())


def _in_zoo(words: list[str]) -> list[str]:
    """The command line of `play` with the name of an agent in place of a run."""
    known = set(cards.names())
    if words and not words[0].startswith("-") and not cards.is_name(words[0]):
        known.add(words[0])  # `play` answers an unknown name with the known ones
    return [cards.PREFIX + word if word in known else word for word in words]


def verify(name: str, episodes: int = 128, *, seed: int = 1, retrain: bool = False) -> Work:
    """Evaluate an agent of the zoo, and compare its returns with those of its card.

    The exit code is 0 if they agree, and 1 otherwise. A two-sample permutation
    test compares the mean returns, at a level of 0.1 %.

    Args:
        name: name of the agent.
        episodes: number of greedy episodes.
        seed: seed of the new episodes.
        retrain: also train the agent again, as its card describes, and compare the parameters to
            the bit. Where versions or machine differ, compare the return with those of other seeds.

    Returns:
        The comparison, which returns exit code 0 or 1.
    """
    if not 2 <= episodes <= MOST_EPISODES:
        raise ConfigError(f"--episodes is {episodes}; it must be between 2 and {MOST_EPISODES}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed is {seed}; it must be >= 0 and < 2**32")
    card = cards.read(name)
    cards.weights_of(card)
    return lambda: _verify(card, episodes, seed, again=retrain)


def _verify(card: Card, episodes: int, seed: int, *, again: bool) -> int:
    from ppo_jax.runs import cache
    from ppo_jax.zoo.verify import retrain
    from ppo_jax.zoo.verify import verify as compare

    cache.use()
    verdict = compare(card, episodes, seed)
    terminal.say(verdict.text)
    if again and verdict.passed:
        terminal.say(f"{cards.PREFIX}{card.name}: training again, {card.env_steps:,} steps")
        verdict = retrain(card, episodes, seed)
        terminal.say(verdict.text)
    return verdict.exit_code
