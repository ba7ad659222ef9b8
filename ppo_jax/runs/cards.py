"""The trained agents of the zoo, and the cards that describe them.

An agent NAME is two files of the package: NAME.safetensors has the weights, with the configuration
as header, and NAME.json, the card, has everything needed to verify them. Both contain numbers and
text only, so that reading them executes no code. `ppo_jax.zoo` compares an agent with its card;
`python -m benchmarks.zoo` writes both files.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError
from ppo_jax.config.errors import did_you_mean
from ppo_jax.runs import files

FOLDER = Path(__file__).parents[1] / "zoo" / "agents"
PREFIX = "zoo:"
FORMAT = "ppo_jax card"
# Largest size of the weights of an agent, and of a card, in bytes.
LARGEST = 300_000
LARGEST_CARD = 100_000
# Smallest number of training runs that the return of another one is compared with.
FEWEST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Card:
    """The description of an agent.

    Attributes:
        name: name of the agent in the zoo.
        command: command that trained the agent.
        config: configuration of the training run, as in its config.json.
        env_steps: number of environment steps of the training run.
        evaluation: numbers of the evaluation, as in summary.json, with the `seed` of the episodes
            and their `returns`, [E].
        seeds: seed -> mean return of an agent that was trained with this seed and the same
            configuration otherwise. The agent itself is one of them.
        made_with: versions of the packages, digests of the source code and of the lock file, and
            the machine.
        weights: `bytes` and `sha256` of the file of weights, and `parameters`, the digest of its
            arrays alone.
    """

    name: str
    command: str
    config: dict[str, Any]
    env_steps: int
    evaluation: dict[str, Any]
    seeds: dict[str, float]
    made_with: dict[str, Any]
    weights: dict[str, Any]


FIELDS = {f.name: f.type for f in dataclasses.fields(Card)}
ENTRIES = {
    "config": {"env": str, "algorithm": str, "seed": int},
    "evaluation": {"returns": list, "seed": int},
    "weights": {"bytes": int, "sha256": str, "parameters": str},
}


def is_name(run: Path | str) -> bool:
    """Whether the place of an agent is a name in the zoo, such as "zoo:cartpole"."""
    return str(run).startswith(PREFIX)


def names(folder: Path | None = None) -> list[str]:
    """The names of all agents of the zoo.

    Args:
        folder: folder of the agents; None for that of the package.
    """
    return sorted(path.stem for path in (folder or FOLDER).glob("*.json"))


def read(name: str, folder: Path | None = None) -> Card:
    """The card of an agent.

    Args:
        name: name of the agent, with or without "zoo:".
        folder: folder of the agents; None for that of the package.

    Raises:
        ConfigError: there is no such agent; the message has a similar name and all names. Or the
            card is damaged.
    """
    name, known = str(name).removeprefix(PREFIX), names(folder)
    if name not in known:
        hint, listed = did_you_mean(name, known), f"there are: {', '.join(known)}"
        more = "" if hint == listed else f" {listed[0].upper()}{listed[1:]}"
        raise ConfigError(f"the zoo has no agent {name!r}; {hint}{more}")
    path = (folder or FOLDER) / f"{name}.json"
    content = _content(path)
    found = content.pop("sha256", None)
    if content.get("format") != FORMAT or found != digest(content) or not _is_card(content, name):
        raise ConfigError(f"the card {path} is damaged: {AGAIN}")
    return Card(**{field: content[field] for field in FIELDS})


AGAIN = "its content does not match its digest; install ppo_jax again"


def weights_of(card: Card, folder: Path | None = None) -> Path:
    """The file with the weights of an agent, after a comparison with its card.

    Args:
        card: card of the agent.
        folder: folder of the agents; None for that of the package.

    Raises:
        ConfigError: the file is missing, too large or damaged.
    """
    path = (folder or FOLDER) / f"{card.name}.safetensors"
    try:
        with files.opened(path) as file:  # no more is read than the largest allowed file
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(
            f"the weights {path} cannot be read ({error.strerror}); install ppo_jax again"
        ) from error
    size, wanted = len(content), card.weights["bytes"]
    if size != wanted:
        raise ConfigError(
            f"the weights {path} are damaged: they have {'more than ' * (size > LARGEST)}"
            f"{min(size, LARGEST):,} bytes, but the card states {wanted:,}; install ppo_jax again"
        )
    if hashlib.sha256(content).hexdigest() != card.weights["sha256"]:
        raise ConfigError(f"the weights {path} are damaged: {AGAIN}")
    return path


def write(card: Card, folder: Path) -> Path:
    """Write a card with its digest.

    Args:
        card: card of an agent whose weights are in the folder.
        folder: folder of the agents.

    Returns:
        The path of the card.
    """
    content = {"format": FORMAT, **dataclasses.asdict(card)}
    path = folder / f"{card.name}.json"
    files.write_json(path, content | {"sha256": digest(content)})
    return path


def digest(content: dict[str, Any]) -> str:
    """SHA-256 digest of the content of a card without its own digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    try:
        with files.opened(path) as file:
            content = json.loads(file.read(LARGEST_CARD).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the card {path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _is_card(content: dict[str, Any], name: str) -> bool:
    """Whether the values that a comparison uses are there and have their types."""
    if content.get("name") != name or not content.keys() >= FIELDS.keys():
        return False
    for field, entries in ENTRIES.items():
        value = content[field]
        if not isinstance(value, dict):
            return False
        if not all(type(value.get(entry)) is kind for entry, kind in entries.items()):
            return False
    returns, seeds = content["evaluation"]["returns"], content["seeds"]
    numbers = [*returns, *(seeds.values() if isinstance(seeds, dict) else [None])]
    known = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    enough = len(returns) > 1 and len(seeds) >= FEWEST_SEEDS
    return known and enough and isinstance(content["made_with"], dict)
