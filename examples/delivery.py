"""An environment of one's own for the first hour."""

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces

MOVES = jnp.array([[-1, 0], [1, 0], [0, -1], [0, 1]])


class Delivery:
    """Fetch a parcel on a 5x5 grid and bring it to the door, which is in the corner (0, 0)."""

    name, params, time_limit = "Delivery", (), 40
    observation_space = spaces.Box(0.0, 1.0, (5,))
    action_space = spaces.Discrete(4)

    def reset(self, key, params):
        place, parcel = jax.random.randint(key, (2, 2), 0, 5)
        state = (place, parcel, jnp.bool_(False), jnp.int32(0))
        return self.observe(state), state

    def step(self, key, state, action, params):
        place, parcel, carried, time = state
        place, time = jnp.clip(place + MOVES[action], 0, 4), time + 1
        carried = carried | (place == parcel).all()
        state = (place, parcel, carried, time)
        terminated = carried & (place == 0).all()
        truncated = (time >= 40) & ~terminated
        return self.observe(state), state, terminated - 0.01, terminated, truncated, {}

    def observe(self, state):
        place, parcel, carried, _ = state
        return jnp.concatenate([place / 4, parcel / 4, jnp.float32(carried)[None]])
