"""Several processes that train one agent together, on one or more machines.

group.py    the group of processes: process 0 leads, the others follow its commands
watch.py    supervision: if one process is lost or hangs, all processes end
start.py    joining the other processes
board.py    messages between the processes
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

__getattr__, __dir__ = attach(
    __name__,
    {
        "group": ("Alone", "Group", "current", "join", "joined", "leave"),
        "options": ("ClusterOptions", "place_of"),
    },
)
