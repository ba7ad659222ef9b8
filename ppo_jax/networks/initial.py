"""Where the first actions of a Gaussian policy lie among those that the environment takes."""

import math
from typing import Any

import numpy as np

from ppo_jax.envs import spaces

# A standard deviation of more than so many times half the range of an action chooses between its
# ends; one of less than this part of it sees nothing of the range.
RATIO = 20.0


def first_actions(actions: Any, log_std_init: float, map_actions: bool) -> str | None:
    """What is to be said of the actions that a Gaussian around 0 takes before it has learned.

    Args:
        actions: space of actions.
        log_std_init: log σ at the start.
        map_actions: whether elements are moved to where `spaces.action_frame` says.

    Returns:
        None: they lie well between the bounds, or there are none.
    """
    if not isinstance(actions, spaces.Box):
        return None
    frame = spaces.action_frame(actions)
    if frame is not None:
        shift, scale = frame
        moved = (shift != 0) | (scale != 1)
        where = f"a Gaussian around 0 starts outside or at the edge of {_bounds(actions, moved)}"
        if not map_actions:
            return (
                f"{where}, where its actions are clipped, and may learn nothing; leave out "
                "--no-map-actions, or use --squash"
            )
        return (
            f"{where}; these actions are mapped: -1 and 1 to two finite bounds, 0 to one unit "
            "inside a single one (--no-map-actions clips them, --squash bounds them by tanh)"
        )
    half = (np.asarray(actions.high, np.float64) - actions.low) / 2
    share = math.exp(log_std_init) / np.where(np.isfinite(half) & (half > 0), half, np.nan)
    far = (share > RATIO) | (share < 1 / RATIO)
    if not far.any():
        return None
    return (
        f"the first actions have standard deviation {math.exp(log_std_init):.3g}, which is "
        f"{float(share[far].flat[0]):.3g} of half the range of {_bounds(actions, far)}; "
        "use --squash, whose numbers are shares of the range, or another --log-std-init"
    )


def _bounds(actions: spaces.Box, which: np.ndarray) -> str:
    """The bounds of some elements of an action in words: "the bounds [10, 20] of action [0]"."""
    index = tuple(int(i) for i in np.argwhere(which)[0])
    low, high = float(actions.low[index]), float(actions.high[index])
    more = f" and {int(which.sum()) - 1} more" if which.sum() > 1 else ""
    return f"the bounds [{low:g}, {high:g}] of action {list(index)}{more}"
