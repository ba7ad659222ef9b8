"""Suite `envpool`: vector environments in C++, which reset one step after the end of an episode."""

import functools
from typing import Any

import numpy as np

from ppo_jax.envs.host import HostEnv
from ppo_jax.envs.protocol import InvalidEnvironment


def names() -> list[str]:
    """Ids of the suite."""
    import envpool

    return sorted(envpool.list_all_envs())


def make(env_id: str, **options: Any) -> HostEnv:
    """Make an environment of envpool.

    For Atari games, training uses the signs of rewards unless reward_clip=False. Scores are
    reported, and evaluation uses whole games. The documentation of envpool lists all options.

    Args:
        env_id: id, e.g. "Pong-v5".
        **options: options of the environment, e.g. episodic_life=True.

    Raises:
        InvalidEnvironment: if envpool cannot make the environment.
    """
    import envpool

    clip = options.pop("reward_clip", True)
    try:
        spec = envpool.make_spec(env_id, **options)
    except Exception as error:
        raise InvalidEnvironment(f"envpool:{env_id} cannot be made: {error}") from error
    atari = hasattr(spec.config, "reward_clip")
    whole_games = {**options, "episodic_life": False} if atari else options
    return HostEnv(
        f"envpool:{env_id}",
        (spec.observation_space, spec.action_space),
        lambda num_envs: functools.partial(_Pool, env_id, num_envs, options),
        time_limit=getattr(spec.config, "max_episode_steps", None),
        transform_reward=np.sign if atari and clip else None,
        evaluated_as=functools.partial(make, env_id, reward_clip=clip, **whole_games),
    )


class _Pool:
    """A pool that every reset makes anew, because envpool takes its seed only at construction."""

    def __init__(self, env_id: str, num_envs: int, options: dict[str, Any]) -> None:
        self.env_id, self.num_envs, self.options = env_id, num_envs, options
        self.metadata = {"autoreset_mode": "NextStep"}
        self.pool: Any = None

    def reset(self, *, seed: int) -> Any:
        import envpool

        self.close()
        self.pool = envpool.make(
            self.env_id, env_type="gymnasium", num_envs=self.num_envs, seed=seed, **self.options
        )
        return self.pool.reset()

    def step(self, actions: Any) -> Any:
        return self.pool.step(actions)

    def render(self) -> None:
        return None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
        self.pool = None
