"""Small animations of the agents of the zoo, for docs/zoo.md: `python -m benchmarks.zoo --gifs`.

Each shows the first steps of one greedy episode. With few colours and without dithering, images
that differ little from each other need few bytes.
"""

import io
import itertools
from pathlib import Path

import jax
from PIL import Image

from ppo_jax.agent import read_player
from ppo_jax.evaluate import watch
from ppo_jax.runs import cards, files

FOLDER = Path(__file__).parent.parent / "docs/images/zoo"
LARGEST = 60_000  # bytes of one animation
WIDTH = 160  # pixels
COLOURS = 32
STEPS = 150  # largest number of steps that are shown
EVERY = 2  # steps between two images
MILLISECONDS = 60  # duration of an image, a multiple of 10
LAST = 1_000  # duration of the last image in milliseconds
SEED = 1


def images_of(name: str) -> list[Image.Image]:
    """Images of the first steps of an episode, in the same colours, and of the last step shown.

    Args:
        name: name of an agent.
    """
    agent = read_player(Path(cards.PREFIX + name))._asdict()
    agent.pop("config")
    frames = watch(jax.random.key(SEED), **agent, max_steps=STEPS)
    drawn = [frame.image for frame in frames if frame.image is not None]
    kept = [*itertools.islice(drawn, 0, len(drawn) - 1, EVERY), drawn[-1]]
    height = round(WIDTH * kept[0].shape[0] / kept[0].shape[1])
    small = [Image.fromarray(i).resize((WIDTH, height), Image.Resampling.BOX) for i in kept]
    together = Image.new("RGB", (WIDTH, height * len(small)))
    for row, image in enumerate(small):
        together.paste(image, (0, height * row))
    palette = together.quantize(COLOURS)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in small]


def encoded(images: list[Image.Image]) -> bytes:
    """An animated GIF that repeats forever, and shows its last image for longer."""
    durations = [MILLISECONDS] * (len(images) - 1) + [LAST]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return file.getvalue()


def write(name: str, folder: Path = FOLDER) -> Path:
    """Write the animation of an agent to NAME.gif.

    Args:
        name: name of the agent.
        folder: folder of the file, which is made if it is missing.

    Returns:
        The file.

    Raises:
        SystemExit: the animation has more than LARGEST bytes.
    """
    content = encoded(images_of(name))
    if len(content) > LARGEST:
        raise SystemExit(f"{name}.gif has {len(content):,} bytes, more than {LARGEST:,}")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / f"{name}.gif", content)
    return folder / f"{name}.gif"
