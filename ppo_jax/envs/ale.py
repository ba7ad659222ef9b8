"""Suite `ale`: Atari games, the cartridges themselves in the emulator of ale-py.

ale-py is licensed under GPL-2.0, ppo_jax is not: it is an extra, imported here alone, and only
when it is asked for.

The preprocessing, frames to observations, is the emulator's own, in C++: no-op starts, fire on
reset, 4 frames per action, the maximum of the last two, 84x84 in grey, 4 of them as channels.

Sources: Mnih et al. 2015, Human-level control through deep reinforcement learning (Methods);
Machado et al. 2018, Revisiting the Arcade Learning Environment.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs.host import HostEnv
from ppo_jax.envs.protocol import InvalidEnvironment

# Cartridges for two players: the emulator has no game for one in them.
TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
# Half an hour of play at 60 frames per second.
MAX_FRAMES = 108_000
SCREEN = (210, 160)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a game is played and seen.

    Attributes:
        frames: stacked as channels, newest last; those before the episode are 0.
        size: [size, size] of the image.
        frame_skip: frames per action, whose rewards are added up.
        sticky: probability that the emulator repeats the last action instead.
        clip_reward: learn from rewards clipped to [-1, 1]; returns are reported as they are.
        end_on_life_loss: a lost life ends the episode for the learner; the game goes on.
        noop_max: at most so many actions without effect before an episode begins.
        fire_reset: press fire to begin, in games that wait for it.
        all_actions: the joystick's 18 instead of those that the game uses.
        max_frames: an episode is truncated here.
        threads: of all emulators together; 0: as many as there are cores.
    """

    frames: int = 4
    size: int = 84
    frame_skip: int = 4
    sticky: float = 0.0
    clip_reward: bool = True
    end_on_life_loss: bool = False
    noop_max: int = 30
    fire_reset: bool = True
    all_actions: bool = False
    max_frames: int = MAX_FRAMES
    threads: int = 0


# What an id means. v5: with the random repeats of Machado et al. and whole games;
# NoFrameskip-v4: the older protocol of Mnih et al., deterministic, where a life is an episode.
RECIPES: dict[str, dict[str, Any]] = {
    "v5": {"sticky": 0.25},
    "v4": {"end_on_life_loss": True},
}


def names() -> list[str]:
    """Ids of the suite: two of each game."""
    return [i for game in _games() for i in (f"ALE/{game}-v5", f"{game}NoFrameskip-v4")]


def has(env_id: str) -> bool:
    """Whether there is such a game; its name alone is that of v5."""
    return env_id in names() or env_id in _games()


def make(env_id: str, **options: Any) -> HostEnv:
    """A game with the standard preprocessing, uint8 [84, 84, 4].

    Its evaluation is by whole games and rewards as they are; it is drawn in colour by an emulator
    beside it that plays the same actions from the same seed.

    Args:
        env_id: "ALE/Pong-v5", "PongNoFrameskip-v4", or "Pong".
        **options: fields of Options, over what the id means.

    Raises:
        InvalidEnvironment: no such option, with the nearest.
    """
    fields = [f.name for f in dataclasses.fields(Options)]
    for name in options:
        if name not in fields:
            raise InvalidEnvironment(
                f"{env_id} has no option {name!r}; {did_you_mean(name, fields)}"
            )
    game = env_id.removeprefix("ALE/").removesuffix("-v5").removesuffix("NoFrameskip-v4")
    recipe = RECIPES["v4" if env_id.endswith("-v4") else "v5"]
    chosen = Options(**(recipe | options))
    whole = dataclasses.replace(chosen, end_on_life_loss=False, clip_reward=False)
    return dataclasses.replace(
        _game(env_id, game, chosen, _emulators),
        evaluated_as=functools.partial(_game, env_id, game, whole, _emulators),
        drawn_as=functools.partial(_game, env_id, game, whole, _in_colour),
    )


def _game(env_id: str, game: str, options: Options, start: Callable[..., Any]) -> HostEnv:
    rom = _games()[game]
    first = _emulators(rom, options, 1)
    return HostEnv(
        f"ale:{env_id}",
        (first.single_observation_space, first.single_action_space),
        lambda num_envs: functools.partial(start, rom, options, num_envs),
        time_limit=-(-options.max_frames // options.frame_skip),
        transform_reward=_clip if options.clip_reward else None,
    )


def _emulators(rom: str, options: Options, num_envs: int, **overrides: Any) -> Any:
    """N emulators of one game behind Gymnasium's vector API."""
    from ale_py.vector_env import AtariVectorEnv

    arguments = {
        "autoreset_mode": "SameStep",
        "stack_num": options.frames,
        "img_height": options.size,
        "img_width": options.size,
        "frameskip": options.frame_skip,
        "repeat_action_probability": options.sticky,
        # Clipped on our side, where the game's own score is still known.
        "reward_clipping": False,
        # The emulator's `episodic_life` restarts the game, so that nothing after the first life
        # would ever be seen; this one only reports the end.
        "life_loss_info": options.end_on_life_loss,
        "noop_max": options.noop_max,
        "use_fire_reset": options.fire_reset,
        "full_action_space": options.all_actions,
        "max_num_frames_per_episode": options.max_frames,
        "num_threads": options.threads,
    }
    return AtariVectorEnv(rom, num_envs, **(arguments | overrides))


class _InColour:
    """Emulators that are acted in, and as many beside them that are looked at.

    Both get the same seed and the same actions, and therefore play the same game.
    """

    def __init__(self, played: Any, shown: Any) -> None:
        self.played, self.shown = played, shown
        self.metadata, self.num_envs = played.metadata, played.num_envs

    def reset(self, *, seed: int) -> Any:
        self.frames = self.shown.reset(seed=seed)[0]
        return self.played.reset(seed=seed)

    def step(self, actions: np.ndarray) -> Any:
        self.frames = self.shown.step(actions)[0]
        return self.played.step(actions)

    def render(self) -> np.ndarray:
        return self.frames[:, -1]

    def close(self) -> None:
        self.played.close()
        self.shown.close()


def _in_colour(rom: str, options: Options, num_envs: int) -> _InColour:
    height, width = SCREEN
    screen = {"grayscale": False, "img_height": height, "img_width": width, "stack_num": 1}
    played = _emulators(rom, options, num_envs)
    return _InColour(played, _emulators(rom, options, num_envs, **screen))


def _clip(reward: np.ndarray) -> np.ndarray:
    return np.clip(reward, -1.0, 1.0)


@functools.cache
def _games() -> dict[str, str]:
    """Name of a game -> its cartridge: "SpaceInvaders" -> "space_invaders"."""
    import ale_py
    from ale_py.registration import rom_id_to_name

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    roms = [rom for rom in ale_py.roms.get_all_rom_ids() if rom not in TWO_PLAYERS]
    return {rom_id_to_name(rom): rom for rom in sorted(roms)}
