"""Suite `jaxmarl`: games of several agents that share one policy.

Each agent is a row of the vector environment: N rows are N / A games of A agents, with the agents
of a game in successive rows. For an agent that leaves a game before its end, the remaining steps
are invalid.
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

# Number of initial states drawn per rollout for each game. If more episodes end, some are used
# twice, and the metric reused_resets counts them.
RESETS = 16


class AgentStep(NamedTuple):
    """The result of a step for each agent of a game.

    Attributes:
        reward: [A] rewards.
        terminated: [A] bool, whether the agent has left the game, or the game is over.
        valid: [A] bool, False for an agent that had left the game earlier.
    """

    reward: jax.Array
    terminated: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """One game as an Env with observations and actions [A, ...] and an AgentStep as reward; its
    state is (state of jaxmarl, number of steps, whether each agent is still active [A]).

    Attributes:
        env: MultiAgentEnv of jaxmarl, whose own time limit is later than `time_limit`.
        masked: whether the game has action masks.
        observation_space, action_space: spaces of all agents, with leading axis A.
        time_limit: number of steps after which a game is truncated.
        params: () (no parameters).
    """

    env: Any
    masked: bool
    observation_space: Any
    action_space: Any
    time_limit: float
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new game: (obs [A, ...], state)."""
        obs, state = self.env.reset(key)
        alive = jnp.ones(self.env.num_agents, bool)
        return self._observation(obs, state), (state, jnp.zeros((), jnp.int32), alive)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step of all agents; terminated and truncated refer to the game."""
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
    """A vector environment of games as a vector environment of agents.

    Attributes:
        games: vector environment of games, reset from its pool.
        observation_space, action_space: spaces of one agent.
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
        """Start every game anew: (obs [N, ...], state)."""
        obs, state = self.games.reset(key)
        return _rows(obs), state

    def refresh(self, key: jax.Array, state: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        """Draw new initial states for the games."""
        return self.games.refresh(key, state)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> StepResult:
        """Take one step of every agent; the time limit of a game truncates its active agents."""
        obs, state, rows, _, cut, info = self.games.step(key, state, action)
        reward, terminated, valid = _rows(rows)
        truncated = jnp.repeat(cut, self._agents) & valid
        info = {"final_observation": _rows(info["final_observation"]), "valid": valid}
        return _rows(obs), state, reward, terminated, truncated, info


@dataclasses.dataclass(frozen=True, eq=False)
class JaxMarlEnv:
    """A game that only exists as a vector environment: `vector(num_envs)`.

    Attributes:
        game: a single game.
        name: id of the game.
        observation_space, action_space: spaces of one agent.
        resets: number of initial states drawn per rollout and game.
    """

    game: Game
    name: str
    observation_space: Any
    action_space: Any
    resets: int = RESETS

    @property
    def time_limit(self) -> float:
        """Time limit of a game."""
        return self.game.time_limit

    @property
    def num_agents(self) -> int:
        """Number A of agents per game."""
        return int(self.game.env.num_agents)

    def vector(self, num_envs: int) -> AgentRows:
        """A vector environment of N agents.

        Args:
            num_envs: number N of agents.

        Raises:
            InvalidEnvironment: if N is not a multiple of A.
        """
        games, rest = divmod(num_envs, self.num_agents)
        if rest or not games:
            raise InvalidEnvironment(
                f"num_envs is {num_envs}; it counts agents, and each game of {self.name} has "
                f"{self.num_agents} of them: use a multiple of {self.num_agents}"
            )
        vector = VectorizedEnv(self.game, games, games * self.resets)
        return AgentRows(vector, self.observation_space, self.action_space)

    # Methods of VectorMaker for evaluation and rendering.
    def evaluation(self) -> "JaxMarlEnv":
        """The environment for evaluation: the same game."""
        return self

    def side_by_side(self, episodes: int) -> int:
        """The number of agents that run in parallel to evaluate this number: whole games."""
        return self.num_agents * -(-episodes // self.num_agents)

    def picture(self) -> Any:
        """Reject rendering.

        Raises:
            InvalidEnvironment: always.
        """
        raise InvalidEnvironment(f"environment {self.name} cannot be rendered")


@functools.cache
def _jaxmarl() -> ModuleType:
    import jaxmarl

    return jaxmarl


def names() -> list[str]:
    """Ids of the suite, including games with unequal agents, which are not supported."""
    from jaxmarl.registration import registered_envs

    return list(registered_envs)


def make(env_id: str, *, resets: int = RESETS, **kwargs: Any) -> JaxMarlEnv:
    """Make the game that jaxmarl registers under this id.

    Args:
        env_id: id, e.g. "MPE_simple_spread_v3".
        resets: number of initial states drawn per rollout and game.
        **kwargs: arguments of jaxmarl.make; max_steps is the time limit. It is counted by this
            package, because `done` of jaxmarl does not distinguish it from a termination (and is
            one step late in MPE). If a game has no time limit, every end is a termination.

    Raises:
        InvalidEnvironment: if agents have different observations or actions, or jaxmarl rejects the
            arguments.
    """
    env, limit = _unlimited(env_id, kwargs)
    seen = jax.eval_shape(env.reset, jax.random.key(0))[0]
    if {*seen} < {*env.agents} or not isinstance(seen, dict):
        raise InvalidEnvironment(
            f"jaxmarl:{env_id} must observe a dictionary by agent, but has {[*seen]}"
        )
    kinds = {a: _kind(seen[a], env.action_space(a)) for a in env.agents}
    if len({*kinds.values()}) > 1:
        raise InvalidEnvironment(
            f"the agents of jaxmarl:{env_id} cannot share a policy, because they differ in "
            "observation shape or actions: " + "; ".join(f"{a}: {k}" for a, k in kinds.items())
        )
    actions = convert_space(env.action_space(env.agents[0]))
    if not isinstance(actions, spaces.Discrete | spaces.Box):
        raise InvalidEnvironment(
            f"jaxmarl:{env_id} has actions {actions}; only Discrete and Box are supported"
        )
    # Bounds are left out, because observations of some games violate their declared bounds.
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
    """(game whose own time limit is one step later, time limit).

    Raises:
        InvalidEnvironment: if the game resets itself inside its step.
    """
    env = _made(env_id, kwargs)
    if hasattr(env, "episode_length"):
        raise InvalidEnvironment(
            f"jaxmarl:{env_id} resets itself and hides the final observation; use suite brax"
        )
    limit = getattr(env, "max_steps", None)
    if limit is None:
        return env, jnp.inf
    try:
        return _jaxmarl().make(env_id, **{**kwargs, "max_steps": int(limit) + 1}), int(limit)
    except TypeError:  # an attribute of the game, but not an argument of its constructor
        env.max_steps = int(limit) + 1
        return env, int(limit)


def _kind(seen: PyTree, actions: Any) -> str:
    shapes = jax.tree.leaves(jax.tree.map(lambda x: str(x.shape), seen))
    return f"{' '.join(shapes)}, {getattr(actions, 'n', getattr(actions, 'shape', actions))}"


def _knows_legal(env: Any) -> bool:
    """Whether get_avail_actions is implemented."""
    state = jax.eval_shape(env.reset, jax.random.key(0))[1]
    try:
        jax.eval_shape(env.get_avail_actions, state)
    except NotImplementedError:
        return False
    return True


def _rows(tree: PyTree) -> PyTree:
    """[games, A, ...] -> [N, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
