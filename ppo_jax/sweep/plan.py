"""The plan of a sweep: which agents share a program, and how they are divided into chunks."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ppo_jax.config import TrainConfig
from ppo_jax.sweep.program import structure


class Chunk(NamedTuple):
    """Agents that one device trains at the same time; results are stored per chunk.

    Attributes:
        number: unique number of the chunk; never reused.
        group: number of the group of agents that share a compiled program.
        agents: numbers of at most `width` agents; the last agent is repeated to fill the program.
        width: number of agents in the program. Another width rounds differently.
    """

    number: int
    group: int
    agents: tuple[int, ...]
    width: int


class Group(NamedTuple):
    """Agents that differ only in their seeds and real-valued hyperparameters.

    Attributes:
        static: the part of the configuration that determines the program.
        agents: numbers of the agents in the sweep.
        seeds: agent -> seed.
        floats: agent -> name -> value of a real-valued hyperparameter.
    """

    static: TrainConfig
    agents: tuple[int, ...]
    seeds: dict[int, int]
    floats: dict[int, dict[str, float]]


def group_agents(points: Sequence[TrainConfig], seeds: Sequence[int]) -> list[Group]:
    """Group agents by their program; agent p * S + s has configuration p and the seed number s."""
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
        chunks: chunks of an earlier session, with their widths.
        done: numbers of the finished chunks.
        on_change: function called with all chunks before a new chunk is trained.
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
        """Whether the agents of a group have already been divided into chunks."""
        return any(c.group == group for c in self.chunks)

    def left(self, group: int) -> list[Chunk]:
        """The unfinished chunks of a group."""
        return [c for c in self.chunks if c.group == group and c.number not in self.done]

    def add(self, group: int, agents: Sequence[int], width: int) -> list[Chunk]:
        """Divide agents into chunks of one width."""
        first = self.next_number
        parts = [tuple(agents[i : i + width]) for i in range(0, len(agents), width)]
        new = [Chunk(first + i, group, part, width) for i, part in enumerate(parts)]
        self.chunks += new
        self.next_number += len(new)
        self.on_change(self.chunks)
        return new

    def replace(self, old: Sequence[Chunk], width: int) -> list[Chunk]:
        """Divide the agents of chunks of one group into new chunks with new numbers."""
        gone = {c.number for c in old}
        self.chunks = [c for c in self.chunks if c.number not in gone]
        return self.add(old[0].group, [a for c in old for a in c.agents], width)
