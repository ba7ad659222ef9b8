"""Tasks of the package reasoning-gym, whose rewards are computed by Python on the host.

A task is a text, "reasoning_gym:NAME" followed by the fields of its configuration as NAME=VALUE. A
problem is determined by the task, its seed and an index, so that a file of prompts names it and the
reward function makes it again; the version of the package must be the same.

Source: Stojanovski et al. 2025, Reasoning Gym: Reasoning Environments for Reinforcement Learning
with Verifiable Rewards.
"""

import functools
import hashlib
from typing import Any

from ppo_jax.config import installation
from ppo_jax.config.options import ConfigError, did_you_mean, guess
from ppo_jax.rlhf.tasks.split import PARTS

PREFIX = "reasoning_gym:"
# A configuration with few distinct problems repeats them; after this many draws for each wanted
# problem, there are not enough.
DRAWS = 200


def records(task: str, number: int, *, held_out: bool, seed: int) -> list[dict[str, Any]]:
    """Distinct problems as records with the columns prompt, completion, task and index.

    A hash of the question decides whether a problem is held out, one of four. Tasks with many right
    answers, such as rush_hour, have no completion.

    Args:
        task: text of the task.
        number: number of problems.
        held_out: whether the problems are held out from training.
        seed: seed of the data of reasoning-gym.

    Raises:
        ConfigError: the package has no such task, the configuration is invalid, or it has too few
            distinct problems.
        ImportError: the package is not installed.
    """
    text = f"{task} seed={seed} size={DRAWS * number}"
    data, found = _data(text), dict[str, dict[str, Any]]()
    for index in range(DRAWS * number):
        if len(found) == number:
            break
        entry = data[index]
        question = entry["question"]
        if _is_held_out(question) == held_out and question not in found:
            worked = _worked(data, entry)
            found[question] = {"prompt": question, **worked, "task": text, "index": index}
    if len(found) < number:
        raise ConfigError(
            f"{task} has only {len(found)} distinct problems of this part among {DRAWS * number} "
            f"draws; ask for at most {len(found)}, or for a configuration with more problems"
        )
    return [*found.values()]


def reward(task: str, index: int | None, response: str) -> float:
    """The score that reasoning-gym gives a response, from 0 to 1.

    A response with <answer>...</answer> is scored by the last text between these tags, the
    convention of the package; any other response is scored as a whole.

    Args:
        task: text of the task in the record.
        index: index of the problem in the record.
        response: text of the response.

    Raises:
        ConfigError: the record has no index, or as for `records`.
        ImportError: the package is not installed.
    """
    if index is None:
        raise ConfigError(
            f"a problem of {task} needs its column index; write the file of prompts anew"
        )
    data = _data(task)
    answer = _package().utils.extract_answer(response)
    entry = data[int(index)]
    return float(
        data.score_answer(answer=response.strip() if answer is None else answer, entry=entry)
    )


def _worked(data: Any, entry: Any) -> dict[str, str]:
    """The worked answer as a column, which tasks with many right answers do not have."""
    answer = entry["answer"]
    if answer is None or data.score_answer(answer=str(answer), entry=entry) < 1:
        return {}
    return {"completion": str(answer)}


def _is_held_out(question: str) -> bool:
    return hashlib.blake2b(question.encode(), digest_size=8).digest()[0] % PARTS == 0


@functools.lru_cache(maxsize=64)
def _data(text: str) -> Any:
    """The data of a task, whose problems are made when they are indexed."""
    package = _package()
    name, *words = text.removeprefix(PREFIX).split() or [""]
    known = package.factory.DATASETS
    if name not in known:
        raise ConfigError(f"reasoning-gym has no task {name!r}; {did_you_mean(name, known)}")
    if not all("=" in word for word in words):
        raise ConfigError(f"{text!r}: write the configuration as NAME=VALUE after the task")
    options = {key: guess(value) for key, _, value in (word.partition("=") for word in words)}
    try:
        return package.create_dataset(name, **options)
    except (AssertionError, TypeError, ValueError) as error:  # of its checks of configurations
        raise ConfigError(f"{text!r} is not a configuration of reasoning-gym: {error}") from error


def _package() -> Any:
    """The package reasoning-gym.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(
            "tasks of reasoning-gym require the package reasoning-gym, which is not installed; "
            f"install it with: {installation.command('[reasoning]')}"
        ) from error
    return reasoning_gym
