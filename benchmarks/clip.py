"""A figure of the clipped surrogate, drawn with the loss function of the package.

python -m benchmarks.clip          writes docs/images/clipped_surrogate.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

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


def main() -> None:
    """Draw it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratio = jnp.linspace(0.4, 1.6, 601)
    figure, panels = plt.subplots(1, 2, figsize=(8, 3))
    for axes, (name, advantage) in zip(panels, ADVANTAGES.items(), strict=True):
        value, slope = (np.asarray(x) for x in objective(ratio, advantage))
        plain = -np.asarray(surrogate(jnp.log(ratio), 0.0, advantage))
        axes.plot(ratio, plain, ":", color="grey", linewidth=1, label="ρA")
        flat = slope == 0
        for part, color, label in ((~flat, "tab:blue", "gradient"), (flat, "tab:red", "none")):
            axes.plot(ratio, np.where(part, value, np.nan), color=color, linewidth=2, label=label)
        points, at = np.array(RATIOS), objective(jnp.array(RATIOS), advantage)[0]
        axes.plot(points, at, "o", color="black", markersize=5)
        for edge in (1 - CLIP_EPS, 1 + CLIP_EPS):
            axes.axvline(edge, color="grey", linewidth=0.5)
        axes.set(title=name, xlabel="ratio ρ = π(a|s) / π_old(a|s)", ylabel="min(ρA, clip(ρ)A)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
