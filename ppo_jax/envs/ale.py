"""Suite `ale`: the original Atari games, in the emulator of ale-py.

ale-py has the licence GPL-2.0. It is an optional dependency that only this module imports, and only
when an environment of this suite is made.

The emulator itself does the preprocessing, in C++: random no-op actions, fire on reset, 4 frames
per action, the maximum of the last two frames, 84x84 greyscale, 4 stacked frames as channels.

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

# Cartridges for two players, without a game for one player.
TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
# Time limit of half an hour at 60 frames per second.
MAX_FRAMES = 108_000
SCREEN = (210, 160)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a game.

    Attributes:
        frames: number of frames stacked as channels, the newest last; frames before the episode
            are 0.
        size: height and width of the image in pixels.
        frame_skip: number of frames per action, whose rewards are summed.
        sticky: probability that the emulator repeats the previous action.
        clip_reward: whether rewards are clipped to [-1, 1] for training; returns are not clipped.
        end_on_life_loss: whether the loss of a life ends the episode for the learner, while the
            game continues.
        noop_max: maximum number of no-op actions before an episode begins.
        fire_reset: whether fire is pressed to start games that require it.
        all_actions: whether all 18 joystick actions are used, rather than those of the game.
        max_frames: number of frames after which an episode is truncated.
        threads: number of threads of all emulators together; 0 for the number of cores.
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


# Options implied by an id. v5 repeats actions randomly, as in Machado et al., with whole games as
# episodes. NoFrameskip-v4 is the deterministic protocol of Mnih et al., with lives as episodes.
RECIPES: dict[str, dict[str, Any]] = {
    "v5": {"sticky": 0.25},
    "v4": {"end_on_life_loss": True},
}


def names() -> list[str]:
    """Ids of the suite, two for each game."""
    return [i for game in _games() for i in (f"ALE/{game}-v5", f"{game}NoFrameskip-v4")]


def has(env_id: str) -> bool:
    """Whether there is such a game; the name of a game without a version stands for v5."""
    return env_id in names() or env_id in _games()


def make(env_id: str, **options: Any) -> HostEnv:
    """Make a game with the standard preprocessing, with observations [84, 84, 4] uint8.

    Evaluation uses whole games and unclipped rewards. Rendering uses a second emulator in colour,
    which executes the same actions from the same seed.

    Args:
        env_id: id, "ALE/Pong-v5", "PongNoFrameskip-v4", or "Pong".
        **options: fields of Options, which override those implied by the id.

    Raises:
        InvalidEnvironment: if there is no such option; the message suggests similar names.
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
    """N emulators of one game with Gymnasium's vector API."""
    from ale_py.vector_env import AtariVectorEnv

    arguments = {
        "autoreset_mode": "SameStep",
        "stack_num": options.frames,
        "img_height": options.size,
        "img_width": options.size,
        "frameskip": options.frame_skip,
        "repeat_action_probability": options.sticky,
        # Clipping is done in HostVectorEnv, which also reports the unclipped score.
        "reward_clipping": False,
        # The emulator's `episodic_life` restarts the game, so that the agent would never play its
        # later lives. This option only reports the loss of a life.
        "life_loss_info": options.end_on_life_loss,
        "noop_max": options.noop_max,
        "use_fire_reset": options.fire_reset,
        "full_action_space": options.all_actions,
        "max_num_frames_per_episode": options.max_frames,
        "num_threads": options.threads,
    }
    return AtariVectorEnv(rom, num_envs, **(arguments | overrides))


class _InColour:
    """Emulators that are acted in, and an equal number of emulators that are rendered.

    Both receive the same seed and the same actions, so that their games are identical.
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
    """Name of a game -> name of its cartridge: "SpaceInvaders" -> "space_invaders"."""
    import ale_py
    from ale_py.registration import rom_id_to_name

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    roms = [rom for rom in ale_py.roms.get_all_rom_ids() if rom not in TWO_PLAYERS]
    return {rom_id_to_name(rom): rom for rom in sorted(roms)}
