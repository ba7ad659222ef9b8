"""Suite `jaxmarl`: games of several agents who share one policy.

Each agent is a row of the vector environment: N rows are N / A games of A agents, the agents of a
game side by side. An agent that is out before its game ends leaves steps that did not happen.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.gymnax import convert_space
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.envs.vectorize import VectorizedEnv
from ppo_jax.types import PyTree

# Resets drawn per rollout for each game; should more episodes end, some are used twice, which the
# metric reused_resets counts.
RESETS = 16


class AgentStep(NamedTuple):
    """What a step brings each agent of a game.

    Attributes:
        reward: [A].
        terminated: [A] bool, the agent is out, or the game is over.
        valid: [A] bool, False for those that were out before.
    """

    reward: jax.Array
    terminated: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """One game as an Env whose observations and actions are [A, ...] and whose reward is an
    AgentStep; its state is (jaxmarl's state, steps taken, who is still in [A]).

    Attributes:
        env: jaxmarl's MultiAgentEnv, whose own limit lies beyond `time_limit`.
        masked: it knows which actions are legal.
        observation_space, action_space: of all agents, leading axis A.
        time_limit: steps after which a game is truncated.
        params: ().
    """

    env: Any
    masked: bool
    observation_space: Any
    action_space: Any
    time_limit: float
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """(obs [A, ...], state) of a new game."""
        obs, state = self.env.reset(key)
        alive = jnp.ones(self.env.num_agents, bool)
        return self._observation(obs, state), (state, jnp.zeros((), jnp.int32), alive)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """One transition of all agents; terminated and truncated are the game's."""
        inner, time, alive = state
        agents = self.env.agents
        actions = {agent: action[i] for i, agent in enumerate(agents)}
        obs, inner, reward, done, _ = self.env.step_env(key, inner, actions)
        out = jnp.stack([done[a] for a in agents]).astype(bool) | done["__all__"]
        gained = jnp.stack([reward[a] for a in agents]).astype(jnp.float32)
        rows = AgentStep(gained, out & alive, alive)
        terminated, truncated = done["__all__"].astype(bool), time + 1 >= self.time_limit
        state = (inner, time + 1, alive & ~out)
        return self._observation(obs, inner), state, rows, terminated, truncated, {}  # type: ignore[return-value]

    def _observation(self, obs: dict[str, jax.Array], state: Any) -> PyTree:
        rows = jax.tree.map(lambda *x: jnp.stack(x), *(obs[a] for a in self.env.agents))
        if not self.masked:
            return rows
        legal = self.env.get_avail_actions(state)
        mask = jnp.stack([legal[a] for a in self.env.agents]).astype(bool)
        return {"obs": rows, "action_mask": mask}


@dataclasses.dataclass(frozen=True, eq=False)
class AgentRows:
    """A vector of games as a vector of agents.

    Attributes:
        games: restarted from their pool.
        observation_space, action_space: of one agent.
    """

    games: VectorizedEnv
    observation_space: Any
    action_space: Any

    @property
    def num_envs(self) -> int:
        return self.games.num_envs * self._agents

    @property
    def time_limit(self) -> float | None:
        return self.games.time_limit

    @property
    def _agents(self) -> int:
        return int(self.games.action_space.shape[0])

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """(obs [N, ...], state) with every game at its start."""
        obs, state = self.games.reset(key)
        return _rows(obs), state

    def refresh(self, key: jax.Array, state: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        """New resets for the games."""
        return self.games.refresh(key, state)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> StepResult:
        """One step of every agent; a game's limit truncates those that are still in."""
        obs, state, rows, _, cut, info = self.games.step(key, state, action)
        reward, terminated, valid = _rows(rows)
        truncated = jnp.repeat(cut, self._agents) & valid
        info = {"final_observation": _rows(info["final_observation"]), "valid": valid}
        return _rows(obs), state, reward, terminated, truncated, info


@dataclasses.dataclass(frozen=True, eq=False)
class JaxMarlEnv:
    """A game of which only vectors are made: `vector(num_envs)`.

    Attributes:
        game: one of it.
        name: id.
        observation_space, action_space: of one agent.
        resets: drawn per rollout and game.
    """

    game: Game
    name: str
    observation_space: Any
    action_space: Any
    resets: int = RESETS

    @property
    def time_limit(self) -> float:
        """Of a game."""
        return self.game.time_limit

    @property
    def num_agents(self) -> int:
        """A."""
        return int(self.game.env.num_agents)

    def vector(self, num_envs: int) -> AgentRows:
        """N rows.

        Args:
            num_envs: N, counted in agents.

        Raises:
            InvalidEnvironment: N is not a multiple of A.
        """
        games, rest = divmod(num_envs, self.num_agents)
        if rest or not games:
            raise InvalidEnvironment(
                f"num_envs is {num_envs}; each of the {self.num_agents} agents of {self.name} is "
                f"one of them: use a multiple of {self.num_agents}"
            )
        vector = VectorizedEnv(self.game, games, games * self.resets)
        return AgentRows(vector, self.observation_space, self.action_space)

    # What evaluation asks of an environment that has only vectors.
    def evaluation(self) -> "JaxMarlEnv":
        """What is evaluated: the same game."""
        return self

    def side_by_side(self, episodes: int) -> int:
        """Rows to be played at once for so many episodes of agents: whole games."""
        return self.num_agents * -(-episodes // self.num_agents)

    def picture(self) -> Any:
        """What is drawn.

        Raises:
            InvalidEnvironment: always.
        """
        raise InvalidEnvironment(f"environment {self.name} has no picture")


@functools.cache
def _jaxmarl() -> ModuleType:
    import jaxmarl

    return jaxmarl


def names() -> list[str]:
    """Ids of the suite, also of games whose agents differ, which cannot be made."""
    from jaxmarl.registration import registered_envs

    return list(registered_envs)


def make(env_id: str, *, resets: int = RESETS, **kwargs: Any) -> JaxMarlEnv:
    """The game jaxmarl registers under this id.

    Args:
        env_id: e.g. "MPE_simple_spread_v3".
        resets: drawn per rollout and game.
        **kwargs: of jaxmarl.make; max_steps is the time limit, kept by a clock of our own, because
            jaxmarl's `done` does not tell it from an end (and MPE's comes one step late). Where a
            game has none, every end counts as one.

    Raises:
        InvalidEnvironment: agents that observe or act differently; arguments that jaxmarl refuses.
    """
    env, limit = _unlimited(env_id, kwargs)
    seen = jax.eval_shape(env.reset, jax.random.key(0))[0]
    if {*seen} < {*env.agents} or not isinstance(seen, dict):
        raise InvalidEnvironment(f"jaxmarl:{env_id} does not observe by agent, but {[*seen]}")
    kinds = {a: _kind(seen[a], env.action_space(a)) for a in env.agents}
    if len({*kinds.values()}) > 1:
        raise InvalidEnvironment(
            f"the agents of jaxmarl:{env_id} cannot share a policy, they differ in observation "
            "shape or actions: " + "; ".join(f"{a}: {k}" for a, k in kinds.items())
        )
    actions = convert_space(env.action_space(env.agents[0]))
    if not isinstance(actions, spaces.Discrete | spaces.Box):
        raise InvalidEnvironment(f"jaxmarl:{env_id} has actions {actions}; Discrete and Box work")
    # Bounds are left out: what some games declare is not what they return.
    obs = jax.tree.map(spaces.box_of, seen[env.agents[0]])
    masked = False
    if isinstance(actions, spaces.Discrete) and _knows_legal(env):
        masked = True
        obs = {"obs": obs, "action_mask": spaces.Box(0, 1, (actions.n,), np.bool_)}
    shape = (env.num_agents, *actions.shape)
    game = Game(env, masked, obs, spaces.Box(-np.inf, np.inf, shape), limit)
    return JaxMarlEnv(game, env_id, obs, actions, resets)


def _made(env_id: str, kwargs: dict[str, Any]) -> Any:
    try:
        return _jaxmarl().make(env_id, **kwargs)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise InvalidEnvironment(f"jaxmarl:{env_id} cannot be made: {error}") from error


def _unlimited(env_id: str, kwargs: dict[str, Any]) -> tuple[Any, float]:
    """(a game whose own limit comes one step later, the limit).

    Raises:
        InvalidEnvironment: one that resets itself inside its step.
    """
    env = _made(env_id, kwargs)
    if hasattr(env, "episode_length"):
        raise InvalidEnvironment(
            f"jaxmarl:{env_id} resets itself and hides the last observation; there is suite brax"
        )
    limit = getattr(env, "max_steps", None)
    if limit is None:
        return env, jnp.inf
    try:
        return _jaxmarl().make(env_id, **{**kwargs, "max_steps": int(limit) + 1}), int(limit)
    except TypeError:  # known to the game, but no argument of its constructor
        env.max_steps = int(limit) + 1
        return env, int(limit)


def _kind(seen: PyTree, actions: Any) -> str:
    shapes = jax.tree.leaves(jax.tree.map(lambda x: str(x.shape), seen))
    return f"{' '.join(shapes)}, {getattr(actions, 'n', getattr(actions, 'shape', actions))}"


def _knows_legal(env: Any) -> bool:
    """Whether get_avail_actions says anything."""
    state = jax.eval_shape(env.reset, jax.random.key(0))[1]
    try:
        jax.eval_shape(env.get_avail_actions, state)
    except NotImplementedError:
        return False
    return True


def _rows(tree: PyTree) -> PyTree:
    """[games, A, ...] -> [N, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
