"""Images of environment states, drawn on the host with Pillow."""

from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 300
WHITE, BLACK, GREY = (255, 255, 255), (30, 30, 30), (150, 150, 150)
BLUE, ORANGE, GREEN = (58, 96, 164), (221, 132, 60), (70, 140, 80)


def _canvas(draw_on: Callable[[Any], None]) -> np.ndarray:
    # Drawn at twice the size and reduced, for anti-aliasing.
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * SIZE, 2 * SIZE), WHITE)
    draw_on(ImageDraw.Draw(image))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _disc(
    draw: Any, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def cartpole(state: Any, params: Any) -> np.ndarray:
    """Draw the cart on a rail with its pole; the edges of the image are the position limits."""

    def paint(draw: Any) -> None:
        unit = SIZE / float(params.x_threshold)
        x, y = SIZE + float(state.x) * unit, 1.4 * SIZE
        length, angle = 2.0 * float(params.length) * unit * 1.6, float(state.theta)
        draw.line((0, y, 2 * SIZE, y), fill=GREY, width=4)
        draw.rectangle((x - 60, y - 35, x + 60, y + 35), fill=BLUE)
        tip = (x + length * np.sin(angle), y - 35 - length * np.cos(angle))
        draw.line((x, y - 35, *tip), fill=ORANGE, width=20)
        _disc(draw, (x, y - 35), 10, BLACK)

    return _canvas(paint)


def pendulum(state: Any, params: Any) -> np.ndarray:
    """Draw a rod on an axle; at angle 0 it is upright."""

    def paint(draw: Any) -> None:
        angle = float(state.theta)
        tip = (SIZE - 0.8 * SIZE * np.sin(angle), SIZE - 0.8 * SIZE * np.cos(angle))
        draw.line((SIZE, SIZE, *tip), fill=ORANGE, width=44)
        _disc(draw, tip, 22, ORANGE)
        _disc(draw, (SIZE, SIZE), 14, BLACK)

    return _canvas(paint)


def acrobot(state: Any, params: Any) -> np.ndarray:
    """Draw two links that hang from an axle; the line is the height to reach."""

    def paint(draw: Any) -> None:
        unit = 0.42 * SIZE
        first, second = float(state.joint_angle1), float(state.joint_angle2)
        elbow = (SIZE + unit * np.sin(first), SIZE + unit * np.cos(first))
        total = first + second
        tip = (elbow[0] + unit * np.sin(total), elbow[1] + unit * np.cos(total))
        draw.line((0, SIZE - unit, 2 * SIZE, SIZE - unit), fill=GREY, width=4)
        draw.line((SIZE, SIZE, *elbow), fill=BLUE, width=24)
        draw.line((*elbow, *tip), fill=ORANGE, width=24)
        for x, y in ((SIZE, SIZE), elbow):
            _disc(draw, (x, y), 14, BLACK)

    return _canvas(paint)


def mountain_car(state: Any, params: Any) -> np.ndarray:
    """Draw a car in a valley with a flag on the right hill."""

    def paint(draw: Any) -> None:
        low, high = float(params.min_position), float(params.max_position)

        def at(position: np.ndarray) -> np.ndarray:
            x = (position - low) / (high - low) * 2 * SIZE
            return np.stack([x, 1.7 * SIZE - 0.6 * SIZE * (np.sin(3 * position) + 1)], axis=-1)

        hill = at(np.linspace(low, high, 100))
        draw.line([tuple(p) for p in hill], fill=BLACK, width=6)
        x, y = at(np.asarray(float(params.goal_position)))
        draw.line((x, y, x, y - 100), fill=BLACK, width=6)
        draw.polygon(((x, y - 100), (x + 50, y - 82), (x, y - 64)), fill=GREEN)
        x, y = at(np.asarray(float(state.position)))
        _disc(draw, (x, y - 24), 24, BLUE)

    return _canvas(paint)


PAINTERS: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Acrobot-v1": acrobot,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car,
}


def grid(obs: np.ndarray) -> np.ndarray:
    """Draw a grid of channels, as in MinAtar, with one colour per channel.

    Args:
        obs: [H, W] or [H, W, C] observation; cells that are not 0 are coloured.

    Returns:
        An image of about [SIZE, SIZE, 3] uint8.
    """
    cells = obs[..., None] if obs.ndim == 2 else obs
    palette = np.array(
        [BLUE, ORANGE, GREEN, (170, 60, 70), (120, 90, 160), (90, 160, 170), (200, 180, 70)],
        np.uint8,
    )
    picture = np.full((*cells.shape[:2], 3), 30, np.uint8)
    for channel in range(cells.shape[-1]):
        picture[cells[..., channel] > 0] = palette[channel % len(palette)]
    factor = max(1, SIZE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def figure(drawn: Any) -> np.ndarray:
    """Convert a matplotlib figure to pixels and close the figure."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    plt.close(drawn)
    return pixels
