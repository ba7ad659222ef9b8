"""A configuration as TOML text, which `--config` reads."""

import json
import math
from pathlib import Path
from typing import Any

from ppo_jax import config as configs
from ppo_jax.config.options import to_json
from ppo_jax.config.schedules import Schedule
from ppo_jax.config.train import TrainConfig

HEAD = """# Read by `ppo-jax train --config FILE`. No preset: every value is listed here.
# Options of the run, such as --run-dir and --eval-every, are given on the command line."""


def to_toml(config: TrainConfig) -> str:
    """The values of a configuration, one a line, as `--config` reads them.

    Args:
        config: a configuration; its schedules are those that have a text.

    Raises:
        ConfigError: a schedule that is a function, which has no text.
    """
    known = configs.fields(config.algorithm)
    values = configs.to_flat(config)
    lines = [HEAD, 'preset = "none"']
    for name, value in values.items():
        if value is None and known[name].default is None:
            lines.append(f'# {name} = "none"')  # the default, which TOML cannot express
            continue
        lines.append(f"{name} = {_value(value)}")
    return "\n".join(lines)


def _value(value: Any) -> str:
    """A value in TOML's syntax; None is the text "none"."""
    if value is None or callable(value) or isinstance(value, Schedule | Path | str):
        text = "none" if value is None else to_json(value)
        return json.dumps(str(text), ensure_ascii=False)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return ("-inf" if value < 0 else "inf") if math.isinf(value) else repr(value)
    return str(value)
