"""Which agents share a program, and into which chunks they are cut."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ppo_jax.config import TrainConfig
from ppo_jax.sweep.program import structure


class Chunk(NamedTuple):
    """Agents that one device trains side by side, and a unit of what is kept.

    Attributes:
        number: its name; never given again.
        group: of agents that share a compiled program.
        agents: at most `width` of them; the last is repeated where there are fewer.
        width: of the program. The same agents at another width round differently.
    """

    number: int
    group: int
    agents: tuple[int, ...]
    width: int


class Group(NamedTuple):
    """Agents that differ in seed and floats alone.

    Attributes:
        static: what decides the program.
        agents: their numbers in the sweep.
        seeds: agent -> its seed.
        floats: agent -> name -> value.
    """

    static: TrainConfig
    agents: tuple[int, ...]
    seeds: dict[int, int]
    floats: dict[int, dict[str, float]]


def group_agents(points: Sequence[TrainConfig], seeds: Sequence[int]) -> list[Group]:
    """Agents by the program they need, in order; agent p * S + s is point p with seed s."""
    members: dict[TrainConfig, list[int]] = {}
    floats: dict[int, dict[str, float]] = {}
    for p, config in enumerate(points):
        static, values = structure(config)
        for agent in range(p * len(seeds), (p + 1) * len(seeds)):
            members.setdefault(static, []).append(agent)
            floats[agent] = values
    return [
        Group(
            static,
            tuple(agents),
            {a: seeds[a % len(seeds)] for a in agents},
            {a: floats[a] for a in agents},
        )
        for static, agents in members.items()
    ]


class Plan:
    """The chunks of a sweep, and which of them are finished.

    Args:
        chunks: of an earlier session, with the widths they had.
        done: the numbers of those that are finished.
        on_change: called with all chunks before any new one runs.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk] = (),
        done: Iterable[int] = (),
        on_change: Callable[[list[Chunk]], None] = lambda chunks: None,
    ) -> None:
        self.chunks, self.done, self.on_change = list(chunks), set(done), on_change
        self.next_number = 1 + max((c.number for c in chunks), default=-1)

    def has(self, group: int) -> bool:
        """Whether the agents of a group are cut into chunks already."""
        return any(c.group == group for c in self.chunks)

    def left(self, group: int) -> list[Chunk]:
        """The chunks of a group that are not finished."""
        return [c for c in self.chunks if c.group == group and c.number not in self.done]

    def add(self, group: int, agents: Sequence[int], width: int) -> list[Chunk]:
        """Cut agents into chunks of one width."""
        first = self.next_number
        parts = [tuple(agents[i : i + width]) for i in range(0, len(agents), width)]
        new = [Chunk(first + i, group, part, width) for i, part in enumerate(parts)]
        self.chunks += new
        self.next_number += len(new)
        self.on_change(self.chunks)
        return new

    def replace(self, old: Sequence[Chunk], width: int) -> list[Chunk]:
        """Cut the agents of chunks of one group anew, under new numbers."""
        gone = {c.number for c in old}
        self.chunks = [c for c in self.chunks if c.number not in gone]
        return self.add(old[0].group, [a for c in old for a in c.agents], width)
