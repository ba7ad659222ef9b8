"""Images in a terminal: two pixels per character, in 24-bit colour.

A character cell is about twice as high as wide. The character ▀ fills its upper half with the text
colour and leaves the background colour in its lower half, so that a cell is two square pixels.
"""

import shutil
import sys
import time
from types import TracebackType

import numpy as np

HIDE_CURSOR, SHOW_CURSOR, RESET = "\x1b[?25l", "\x1b[?25h", "\x1b[0m"
UP, CLEAR_LINE = "\x1b[{}A", "\x1b[K"
# Lines that are left free for the text below the image.
BELOW = 2
# An image is enlarged to at most this many times its size.
LARGEST_SCALE = 4


def cells(image: np.ndarray, columns: int, lines: int) -> list[str]:
    """An image as lines of coloured characters.

    Args:
        image: image [H, W, 3] uint8.
        columns: largest number of characters in a line.
        lines: largest number of lines.

    Returns:
        The lines, with the colours as ANSI escape sequences.
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(columns / width, 2 * lines / height, LARGEST_SCALE)
    size = max(1, round(width * scale)), max(2, 2 * round(height * scale / 2))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    pixels = np.asarray(resized).tolist()
    return [_line(*pair) for pair in zip(pixels[::2], pixels[1::2], strict=True)]


def _line(upper: list[list[int]], lower: list[list[int]]) -> str:
    """A line of cells; a colour is written only where it changes."""
    text, last = "", ""
    for above, below in zip(upper, lower, strict=True):
        colour = "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*above, *below)
        text += f"{colour if colour != last else ''}▀"
        last = colour
    return text + RESET


class Screen:
    """The place in a terminal where successive images are drawn over each other.

    Args:
        frames_per_second: largest number of images in a second.
    """

    def __init__(self, frames_per_second: float) -> None:
        self._seconds, self._lines = 1 / frames_per_second, 0
        self._due = time.monotonic()

    def __enter__(self) -> "Screen":
        sys.stdout.write(HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        sys.stdout.write(RESET + SHOW_CURSOR)
        sys.stdout.flush()

    def show(self, image: np.ndarray, text: str) -> None:
        """Draw an image, with a line of text below it, at the time when it is due."""
        size = shutil.get_terminal_size()
        drawn = [*cells(image, size.columns, max(size.lines - BELOW, 1)), text[: size.columns]]
        back = UP.format(self._lines) if self._lines else ""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = time.monotonic() + self._seconds
        sys.stdout.write(back + "".join(f"\r{line}{CLEAR_LINE}\n" for line in drawn))
        sys.stdout.flush()
        self._lines = len(drawn)
