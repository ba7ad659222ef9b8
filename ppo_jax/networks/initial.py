"""The initial actions of a Gaussian policy, relative to the bounds of the action space."""

import math
from typing import Any

import numpy as np

from ppo_jax.envs import spaces

# If the standard deviation is more than this number of times half the range of an action, nearly
# all actions are clipped to a bound. If it is less than the inverse, exploration is too small.
RATIO = 20.0


def first_actions(actions: Any, log_std_init: float, map_actions: bool) -> str | None:
    """A warning about the initial actions of a Gaussian policy with mean 0, if they do not fit.

    Args:
        actions: action space.
        log_std_init: initial logarithm of the standard deviation, log σ.
        map_actions: whether actions are mapped by `spaces.action_frame`.

    Returns:
        The warning, or None if the initial actions fit the bounds or there are none.
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
                f"{where}, so that its actions are clipped and training may fail; omit "
                "--no-map-actions, or use --squash"
            )
        return (
            f"{where}; these actions are mapped: -1 and 1 to two finite bounds, 0 to one unit "
            "inside a single bound (--no-map-actions clips them, --squash bounds them by tanh)"
        )
    half = (np.asarray(actions.high, np.float64) - actions.low) / 2
    share = math.exp(log_std_init) / np.where(np.isfinite(half) & (half > 0), half, np.nan)
    far = (share > RATIO) | (share < 1 / RATIO)
    if not far.any():
        return None
    return (
        f"the initial actions have standard deviation {math.exp(log_std_init):.3g}, which is "
        f"{float(share[far].flat[0]):.3g} times half the range of {_bounds(actions, far)}; "
        "use --squash, which scales actions to the range, or another --log-std-init"
    )


def _bounds(actions: spaces.Box, which: np.ndarray) -> str:
    """A description of the bounds of some elements: "the bounds [10, 20] of action [0]"."""
    index = tuple(int(i) for i in np.argwhere(which)[0])
    low, high = float(actions.low[index]), float(actions.high[index])
    more = f" and {int(which.sum()) - 1} more" if which.sum() > 1 else ""
    return f"the bounds [{low:g}, {high:g}] of action {list(index)}{more}"
