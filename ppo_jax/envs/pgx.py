"""Suite `pgx`: board and card games, 2048 and MinAtar, with action masks.

In games of several players the agent is one of them and a fixed opponent plays all others. Their
moves until the agent's next turn are part of the environment.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

Opponent = Callable[[jax.Array, Any], jax.Array]
SIDES = ("random", "first", "last")


@dataclasses.dataclass(frozen=True, eq=False)
class PgxEnv:
    """A pgx game; its state is (State of pgx, player id of the agent, number of agent moves).

    An observation is {"obs": observation of pgx, "action_mask": [A] bool}. The observation of a
    finished game may be that of another player, but no action follows it.

    Attributes:
        env: pgx.Env.
        name: id of the game.
        observation_space: spaces of the observation.
        action_space: Discrete(A).
        time_limit: number of agent moves after which a game is truncated; infinity for no limit.
        opponent: function (key, State of pgx) -> action, for all other players.
        side: position of the agent among the players, one of SIDES.
        params: () (no parameters).
    """

    env: Any
    name: str
    observation_space: Any
    action_space: spaces.Discrete
    time_limit: float
    opponent: Opponent
    side: str
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a game and play it to the agent's first move: (obs, state)."""
        init_key, side_key, others_key = jax.random.split(key, 3)
        state = self.env.init(init_key)
        players = self.env.num_players
        place = {"random": jax.random.randint(side_key, (), 0, players), "first": 0}
        offset = place.get(self.side, players - 1)
        agent = ((state.current_player + offset) % players).astype(jnp.int32)
        state, _ = self._others(others_key, state, agent, jnp.float32(0.0))
        return _observation(state), (state, agent, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one move and play to the agent's next one; the agent's rewards are summed."""
        move_key, others_key = jax.random.split(key)
        game, agent, moves = state
        game = self.env.step(game, action, move_key)
        reward = game.rewards[agent].astype(jnp.float32)
        game, reward = self._others(others_key, game, agent, reward)
        truncated = game.truncated | (moves + 1 >= self.time_limit)
        obs = _observation(game)
        return obs, (game, agent, moves + 1), reward, game.terminated, truncated, {}

    def _others(
        self, key: jax.Array, state: Any, agent: jax.Array, reward: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Play the moves of the others until the agent's turn or the end of the game."""
        if self.env.num_players == 1:
            return state, reward

        def theirs(carry: Any) -> jax.Array:
            _, state, _ = carry
            return ~(state.terminated | state.truncated) & (state.current_player != agent)

        def move(carry: Any) -> Any:
            key, state, reward = carry
            key, choice_key, step_key = jax.random.split(key, 3)
            state = self.env.step(state, self.opponent(choice_key, state), step_key)
            return key, state, reward + state.rewards[agent]

        _, state, reward = jax.lax.while_loop(theirs, move, (key, state, reward))
        return state, reward


def uniformly_legal(key: jax.Array, state: Any) -> jax.Array:
    """The opponent "random", which takes every legal action with the same probability."""
    return jax.random.categorical(key, jnp.where(state.legal_action_mask, 0.0, -jnp.inf))


@functools.cache
def _pgx() -> ModuleType:
    import pgx

    return pgx


def names() -> list[str]:
    """Ids of the suite."""
    return list(_pgx().available_envs())


def make(
    env_id: str,
    *,
    opponent: str | Opponent = "random",
    side: str = "random",
    time_limit: int | None = None,
) -> PgxEnv:
    """Make the game that pgx has under this id.

    Args:
        env_id: id, e.g. "connect_four".
        opponent: "random", or a policy (key, State of pgx) -> action, for the other players.
        side: whether the agent moves "first" or "last"; "random" draws its position for each game.
        time_limit: number of agent moves after which a game is truncated; None for no limit.

    Raises:
        InvalidEnvironment: if the opponent or the side is unknown.
    """
    if side not in SIDES:
        raise InvalidEnvironment(f"unknown side {side!r}; {did_you_mean(side, SIDES)}")
    if opponent != "random" and not callable(opponent):
        raise InvalidEnvironment(
            f"opponent is {opponent!r}; it must be 'random' or a function (key, state) -> action"
        )
    env = _pgx().make(env_id)
    state = jax.eval_shape(env.init, jax.random.key(0))
    return PgxEnv(
        env,
        env_id,
        jax.tree.map(spaces.box_of, _observation(state)),
        spaces.Discrete(state.legal_action_mask.shape[0]),
        jnp.inf if time_limit is None else time_limit,
        opponent if callable(opponent) else uniformly_legal,
        side,
    )


def _observation(state: Any) -> dict[str, Any]:
    return {"obs": state.observation, "action_mask": state.legal_action_mask}
