"""Problems as records of data files, and the reward function of the responses to them.

The command `ppo-jax rlhf ppo` reads the records with `--data`, and names the reward function as
`--reward ppo_jax.rlhf.tasks:reward`. A record names its task, so that one file may have several.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ppo_jax.rlhf.tasks import reasoning_gym, tokens
from ppo_jax.rlhf.tasks.protocol import Task
from ppo_jax.rlhf.tasks.registry import from_text, to_text


def records(
    task: str, number: int, *, held_out: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """Problems of a task as records with the columns prompt, completion and task.

    Args:
        task: text of the task, such as "addition digits=3", or "reasoning_gym:NAME" with its
            configuration, such as "reasoning_gym:chain_sum min_terms=2".
        number: number of problems.
        held_out: whether the problems are held out from training.
        seed: seed of the problems.

    Returns:
        The records, in which no prompt of training is held out for any seed. The completion is a
        worked answer. Those of reasoning-gym have a further column, index.

    Raises:
        ConfigError: an unknown task or an invalid difficulty.
        ImportError: the package reasoning-gym is required and not installed.
    """
    if task.startswith(reasoning_gym.PREFIX):
        return reasoning_gym.records(task, number, held_out=held_out, seed=seed)
    made = from_text(task)
    drawn = _draw(made, number, jax.random.key(seed), held_out)
    prompts, answers = map(np.asarray, drawn)
    return [
        {
            "prompt": tokens.decode(made.vocabulary, prompt),
            "completion": tokens.decode(made.vocabulary, answer),
            "task": to_text(made),
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(task: Task, number: int, key: jax.Array, held_out: bool) -> tuple[jax.Array, jax.Array]:
    """Prompts [number, P] and worked answers [number, R]."""
    prompts = task.problems(key, number, held_out)
    return prompts, jax.vmap(task.solve)(prompts)


def reward(
    prompts: Sequence[Any], completions: Sequence[Any], task: Sequence[str], **columns: Any
) -> list[float]:
    """The rewards of responses to the problems of `records`, in plain Python.

    Args:
        prompts: [B] texts of the prompts, or conversations.
        completions: [B] texts of the responses, or messages of the assistant.
        task: [B] texts of the tasks, a column of the records.
        **columns: further columns; `index` belongs to the problems of reasoning-gym, and
            `completion_ids` are the token ids of the responses, of any tokenizer. If they are the
            tokens of the task, a response with <pad> or <bos> in it, or without <eos>, has the
            reward 0, as under `jax.jit`.

    Returns:
        The B rewards from 0 to 1.

    Raises:
        ValueError: a prompt does not belong to its task.
        ConfigError: an unknown task.
        ImportError: the package reasoning-gym is required and not installed.
    """
    nothing = [None] * len(task)
    index, ids = (columns.get(name) or nothing for name in ("index", "completion_ids"))
    rows = zip(prompts, completions, task, index, ids, strict=True)
    return [_reward(_text(x), _text(y), name, index=i, ids=row) for x, y, name, i, row in rows]


def _reward(
    prompt: str, response: str, task: str, *, index: int | None, ids: Sequence[int] | None
) -> float:
    if task.startswith(reasoning_gym.PREFIX):
        return reasoning_gym.reward(task, index, response)
    made = from_text(task)
    if ids is not None and tokens.is_malformed(made.vocabulary, response, ids):
        return 0.0
    return made.python_reward(prompt, response)


def _text(message: Any) -> str:
    """A text, or the content of the last message of a conversation."""
    return message if isinstance(message, str) else str(message[-1]["content"])
