"""What observations and actions look like: static descriptions, no arrays inside jit."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Discrete:
    """An integer in {0, ..., n − 1}."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = np.int32


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several integers, component i in {0, ..., sizes[i] − 1}.

    Attributes:
        joint: as actions, one distribution over all combinations instead of independent ones.
    """

    sizes: tuple[int, ...]
    dtype: Any = np.int32
    joint: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclasses.dataclass(frozen=True)
class MultiBinary:
    """n bits."""

    n: int
    dtype: Any = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """An array with bounds per element, possibly infinite; a scalar bound holds for all."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = np.broadcast_to(np.asarray(getattr(self, name), self.dtype), self.shape)
            object.__setattr__(self, name, bound)

    @property
    def bounded(self) -> bool:
        """Whether every element has finite bounds with low < high."""
        finite = np.isfinite(self.low).all() and np.isfinite(self.high).all()
        return bool(finite and (self.low < self.high).all())


Space = Discrete | MultiDiscrete | MultiBinary | Box
ACTION_SPACES = (Discrete, MultiDiscrete, MultiBinary, Box)
