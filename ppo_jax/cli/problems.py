"""`ppo-jax rlhf problems`: problems of a reasoning task as a file of prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError
from ppo_jax.rlhf import tasks
from ppo_jax.rlhf.roles import needed
from ppo_jax.runs import files, terminal


def write(values: dict[str, Any], options: None) -> Callable[[], int]:
    """Write problems as JSON Lines, with the columns that `tasks.reward` reads.

    Raises:
        ConfigError: an unknown task, an invalid difficulty, a file that exists, or a folder that
            does not.
    """
    task, out = needed(values, "task"), Path(needed(values, "out"))
    if out.exists() and not values["overwrite"]:
        raise ConfigError(f"{out} exists; choose another --out, or replace it with --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {out}, but there is no folder {out.parent}; create it first")
    text = " ".join([task, *values["difficulty"]])
    how = {"held_out": values["held_out"], "seed": values["seed"]}
    rows = tasks.records(text, values["number"], **how)

    def run() -> int:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files.write_bytes(out, lines.encode())
        first = rows[0]
        terminal.say(f"{len(rows):,} problems of {text} are in {out}")
        answer = first.get("completion", "one of several right answers")
        terminal.say(f"the first one: {first['prompt']!r}, answered by {answer!r}")
        return 0

    return run
