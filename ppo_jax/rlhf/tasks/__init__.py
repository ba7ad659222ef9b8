"""Reasoning tasks whose answers are verified by a program, under jit and in plain Python.

A task draws problems from a key, solves them, and rewards a response with 1 if it is right and with
0 otherwise. `protocol.Task` is the interface; docs/reasoning_tasks.md describes the tasks.
"""

from ppo_jax.rlhf.tasks.protocol import Task as Task
from ppo_jax.rlhf.tasks.records import records as records
from ppo_jax.rlhf.tasks.records import reward as reward
from ppo_jax.rlhf.tasks.registry import TASKS as TASKS
from ppo_jax.rlhf.tasks.registry import from_text as from_text
from ppo_jax.rlhf.tasks.registry import make as make
from ppo_jax.rlhf.tasks.registry import to_text as to_text
