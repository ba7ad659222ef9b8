"""A figure of the clipped surrogate, drawn with the loss function of the package.

python -m benchmarks.clip          writes docs/images/clipped_surrogate.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.analysis import style
from ppo_jax.losses import clipped_surrogate, surrogate

PICTURE = Path(__file__).parent.parent / "docs/images/clipped_surrogate.png"
CLIP_EPS = 0.2
ADVANTAGES = {"A > 0": 1.0, "A < 0": -1.0}
# Ratios below, inside and above the clip range, with a point for each sign of A.
RATIOS = (0.6, 1.0, 1.4)


def objective(ratio: jax.Array, advantage: float) -> tuple[jax.Array, jax.Array]:
    """The maximised objective at each ratio, and its derivative: (−L [R], −dL/dρ [R])."""

    def negated(ratio: jax.Array) -> jax.Array:
        return -clipped_surrogate(jnp.log(ratio), 0.0, advantage, CLIP_EPS)

    return jax.vmap(jax.value_and_grad(negated))(ratio)


@style.styled
def main() -> None:
    """Draw and save the figure."""
    ratio = jnp.linspace(0.4, 1.6, 601)
    figure, panels = style.figure(1, 2, size=(10, 4))
    for axes, (name, advantage) in zip(panels, ADVANTAGES.items(), strict=True):
        value, slope = (np.asarray(x) for x in objective(ratio, advantage))
        plain = -np.asarray(surrogate(jnp.log(ratio), 0.0, advantage))
        axes.plot(ratio, plain, ":", color=style.INK, linewidth=1.2, label="ρA (not clipped)")
        flat = slope == 0
        for rank, (part, label) in enumerate(((~flat, "with gradient"), (flat, "zero gradient"))):
            shown = np.where(part, value, np.nan)
            axes.plot(ratio, shown, color=style.colour(rank), linewidth=2.5, label=label)
        points, at = np.array(RATIOS), objective(jnp.array(RATIOS), advantage)[0]
        axes.plot(points, at, "o", color=style.INK, label="ratios 0.6, 1.0 and 1.4")
        for edge in (1 - CLIP_EPS, 1 + CLIP_EPS):
            style.threshold(axes, edge, vertical=True)
        x, y = "probability ratio ρ = π(a|s) / π_old(a|s)", "objective min(ρA, clip(ρ)A)"
        style.label(axes, title=name, x=x, y=y)
    style.legend(figure)
    style.write(figure, PICTURE)


if __name__ == "__main__":
    main()
