"""Several processes that train one agent together, on one machine or many.

group.py    who leads and who follows; what all do next
watch.py    a process that is lost, or hangs, ends all
start.py    joining the others
board.py    the texts that the processes tell each other
"""

from typing import TYPE_CHECKING

from ppo_jax.lazy import attach

if TYPE_CHECKING:
    from ppo_jax.runs.cluster.group import Alone, Group, current, join, joined, leave
    from ppo_jax.runs.cluster.options import ClusterOptions, place_of

__all__ = [
    "Alone",
    "ClusterOptions",
    "Group",
    "current",
    "join",
    "joined",
    "leave",
    "place_of",
]

__getattr__ = attach(
    __name__,
    {
        "group": ("Alone", "Group", "current", "join", "joined", "leave"),
        "options": ("ClusterOptions", "place_of"),
    },
)
