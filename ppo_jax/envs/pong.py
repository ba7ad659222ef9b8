"""Pong with pixel observations, to 21 points, as pure functions.

The court is 160 × 160 pixels as on the Atari 2600, and an action lasts four frames. The agent is
the right paddle. Coordinates refer to centres, y points downwards, speeds are in pixels per frame.
"""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import spaces
from ppo_jax.envs.frame_stack import FrameStack
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

COURT = 160.0
FRAMES_PER_STEP = 4
POINTS_TO_WIN = 21
# Half widths and half heights in pixels.
BALL = 2.0
PADDLE_WIDTH, PADDLE_HEIGHT = 2.0, 8.0
OPPONENT_X, AGENT_X = 18.0, 142.0

BALL_SPEED = 2.0  # horizontal speed of a serve
SERVE_SPREAD = 0.5  # maximum vertical speed of a serve
SPIN = 3.0  # vertical speed after a hit with the end of a paddle
DRIVE = 0.5  # increase of the horizontal speed by such a hit, as a fraction of BALL_SPEED
PADDLE_SPEED = 2.5  # speed of the agent
REST = 0.125  # probability that the opponent does not move in a step
AIM = 4.0  # maximum distance from its middle at which the opponent tries to hit the ball
DIFFICULTIES = {"easy": 1.5, "hard": 2.0}
# Rewards credited to an action: all later points of the game, or only the current point.
CREDITS = ("game", "point")
# Vertical directions of the actions stay, up and down.
DIRECTIONS = (0.0, -1.0, 1.0)


@struct.dataclass
class Params:
    """The parameters that a sweep may vary.

    Attributes:
        opponent_speed: [] maximum speed of the opponent in pixels per frame; the agent's is 2.5.
    """

    opponent_speed: Any = DIFFICULTIES["easy"]


@struct.dataclass
class State:
    """The state of a game.

    Attributes:
        ball: [2] position x, y of the ball.
        velocity: [2] velocity of the ball.
        agent, opponent: [] vertical positions of the paddles.
        aim: [] distance from the middle of its paddle at which the opponent tries to hit the ball.
        score: [2] int32 points of agent and opponent.
        time: [] int32 number of steps since the start of the game.
    """

    ball: jax.Array
    velocity: jax.Array
    agent: jax.Array
    opponent: jax.Array
    aim: jax.Array
    score: jax.Array
    time: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Pong:
    """A game to 21 points with reward +1 for a point of the agent and −1 for one of the opponent.

    Each serve starts in the middle with random height, angle and direction. The opponent follows
    the ball with limited speed, does not move in a random eighth of all steps, and tries to hit the
    ball at a random position of its paddle. Angle and speed of a hit depend only on that position:
    the end of a paddle returns the ball at a steep angle and too fast for the opponent.

    Attributes:
        height, width: size of a frame in pixels.
        time_limit: number of steps after which a game is truncated.
        credit: "point" ends credit assignment at each point, which `settled` reports to the
            learner. With "game", discounting favours risky shots: losing the current point also
            brings the next one nearer.
        params: parameters with the opponent's speed, which may be traced.
        name: name for messages.
    """

    height: int = 84
    width: int = 84
    time_limit: int = 4000
    credit: str = "game"
    params: Params = dataclasses.field(default_factory=Params)
    name: str = "Pong"

    @property
    def observation_space(self) -> spaces.Space:
        return spaces.Box(0, 255, (self.height, self.width, 1), np.uint8)

    @property
    def action_space(self) -> spaces.Space:
        return spaces.Discrete(len(DIRECTIONS))

    @property
    def shortest_episode(self) -> int:
        """The number of steps of 21 serves without a return."""
        serve = int(COURT / 2 / (BALL_SPEED * FRAMES_PER_STEP))
        return min(POINTS_TO_WIN * serve, self.time_limit)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[jax.Array, State]:
        """Start a new game: (frame [H, W, 1], state)."""
        ball, velocity = _serve(jax.random.uniform(key, (3,)))
        middle = jnp.asarray(COURT / 2)
        points, time = jnp.zeros(2, jnp.int32), jnp.zeros((), jnp.int32)
        state = State(ball, velocity, middle, middle, jnp.zeros(()), points, time)
        return self.draw(state), state

    def step(self, key: jax.Array, state: State, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step of four frames with one action: 0 stay, 1 up, 2 down."""
        chance = jax.random.uniform(key, (5,))
        speed = jnp.where(chance[3] < REST, 0.0, params.opponent_speed)
        # The opponent chooses its next target while the ball moves away from it.
        away = state.velocity[0] > 0
        state = dataclasses.replace(
            state, aim=jnp.where(away, AIM * (2 * chance[4] - 1), state.aim)
        )
        for _ in range(FRAMES_PER_STEP):
            state = _advance(state, jnp.asarray(DIRECTIONS)[action], speed)

        # A serve takes ten steps to leave the court, so that a step has at most one point.
        won, lost = state.ball[0] <= 0, state.ball[0] >= COURT
        ball, velocity = _serve(chance[:3])
        state = dataclasses.replace(
            state,
            ball=jnp.where(won | lost, ball, state.ball),
            velocity=jnp.where(won | lost, velocity, state.velocity),
            score=state.score + jnp.stack([won, lost]),
            time=state.time + 1,
        )
        reward = won.astype(jnp.float32) - lost.astype(jnp.float32)
        terminated = jnp.any(state.score >= POINTS_TO_WIN)
        truncated = state.time >= self.time_limit
        info = {"settled": won | lost} if self.credit == "point" else {}
        return self.draw(state), state, reward, terminated, truncated, info

    def draw(self, state: State) -> jax.Array:
        """Draw a frame: the fraction of each pixel that the three rectangles cover.

        frame = 255 min(1, Yᵀ X),   Y_ij, X_ij = fraction of row or column j that rectangle i covers

        Returns:
            [H, W, 1] uint8 frame.
        """
        x = jnp.stack([jnp.asarray(OPPONENT_X), jnp.asarray(AGENT_X), state.ball[0]])
        y = jnp.stack([state.opponent, state.agent, state.ball[1]])
        columns = coverage(x, jnp.asarray([PADDLE_WIDTH, PADDLE_WIDTH, BALL]), self.width)
        rows = coverage(y, jnp.asarray([PADDLE_HEIGHT, PADDLE_HEIGHT, BALL]), self.height)
        covered = jnp.minimum(rows.T @ columns, 1.0)
        return jnp.round(255.0 * covered).astype(jnp.uint8)[..., None]

    def render(self, state: State) -> np.ndarray:
        """Draw the court in colour, below a strip that shows the points.

        Returns:
            [172, 160, 3] uint8 image with five colours.
        """
        picture = np.full((172, 160, 3), (24, 28, 36), np.uint8)
        court, green, orange = picture[12:], (110, 190, 110), (221, 132, 60)
        court[4::12, 79:81] = court[5::12, 79:81] = (70, 78, 90)
        points = [int(p) for p in np.asarray(state.score)]
        for i in range(points[1]):
            picture[3:8, 4 + 3 * i : 6 + 3 * i] = orange
        for i in range(points[0]):
            picture[3:8, 154 - 3 * i : 156 - 3 * i] = green
        size = (PADDLE_WIDTH, PADDLE_HEIGHT)
        _fill(court, (OPPONENT_X, float(state.opponent)), size, orange)
        _fill(court, (AGENT_X, float(state.agent)), size, green)
        _fill(court, (float(state.ball[0]), float(state.ball[1])), (BALL, BALL), (235, 235, 235))
        return picture


def coverage(centre: jax.Array, half: jax.Array, pixels: int) -> jax.Array:
    """The fraction that intervals cover of each of `pixels` equal parts of the court.

    Args:
        centre: [...] centres of the intervals.
        half: [...] half lengths of the intervals.
        pixels: number of parts.

    Returns:
        [..., pixels] fractions between 0 and 1. Their sum times the size of a part is the length of
        the interval.
    """
    edge = jnp.linspace(0.0, COURT, pixels + 1)
    low, high = (centre - half)[..., None], (centre + half)[..., None]
    inside = jnp.minimum(high, edge[1:]) - jnp.maximum(low, edge[:-1])
    return jnp.maximum(inside, 0.0) * (pixels / COURT)


def make(
    *,
    size: int = 84,
    height: int | None = None,
    width: int | None = None,
    frames: int = 4,
    difficulty: str = "easy",
    opponent_speed: float | None = None,
    time_limit: int = 4000,
    credit: str = "game",
    **unknown: Any,
) -> FrameStack:
    """Make Pong with stacked frames.

    Args:
        size: height and width of a frame in pixels.
        height, width: size of frames that are not square.
        frames: number of stacked frames, the newest last.
        difficulty: easy or hard, for an opponent with a speed of 1.5 or 2 pixels per frame.
        opponent_speed: speed of the opponent that overrides the difficulty.
        time_limit: maximum number of steps of a game.
        credit: game or point, the range of credit assignment.
        **unknown: unknown arguments, which are rejected.

    Raises:
        InvalidEnvironment: if an argument is unknown or outside its range.
    """
    known = [n for n in inspect.signature(make).parameters if n != "unknown"]
    for name in unknown:
        raise InvalidEnvironment(f"Pong has no argument {name!r}; {did_you_mean(name, known)}")
    height, width = height if height is not None else size, width if width is not None else size
    counts = {"height": height, "width": width, "frames": frames, "time_limit": time_limit}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidEnvironment(f"{name} of Pong is {value!r}; it must be an integer >= 1")
    if difficulty not in DIFFICULTIES:
        hint = did_you_mean(str(difficulty), DIFFICULTIES)
        raise InvalidEnvironment(f"Pong has no difficulty {difficulty!r}; {hint}")
    if credit not in CREDITS:
        hint = did_you_mean(str(credit), CREDITS)
        raise InvalidEnvironment(f"Pong has no credit {credit!r}; {hint}")
    speed = DIFFICULTIES[difficulty] if opponent_speed is None else opponent_speed
    if not isinstance(speed, jax.core.Tracer) and (isinstance(speed, str) or not speed >= 0):
        raise InvalidEnvironment(f"opponent_speed of Pong is {speed!r}; it must be >= 0")
    return FrameStack(Pong(height, width, time_limit, credit, Params(speed)), frames)


def _serve(chance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ball [2], velocity [2]) from three uniform numbers: height, angle and direction."""
    ball = jnp.stack([jnp.asarray(COURT / 2), COURT * (0.25 + 0.5 * chance[0])])
    across = jnp.where(chance[2] < 0.5, -BALL_SPEED, BALL_SPEED)
    return ball, jnp.stack([across, SERVE_SPREAD * (2 * chance[1] - 1)])


def _advance(state: State, direction: jax.Array, opponent_speed: jax.Array) -> State:
    """Advance one frame: the paddles move, then the ball, which walls and paddles reflect."""
    low, high = PADDLE_HEIGHT, COURT - PADDLE_HEIGHT
    agent = jnp.clip(state.agent + direction * PADDLE_SPEED, low, high)
    wish = state.ball[1] - state.aim - state.opponent
    opponent = state.opponent + jnp.clip(wish, -opponent_speed, opponent_speed)
    opponent = jnp.clip(opponent, low, high)

    (x, y), (across, down) = state.ball + state.velocity, state.velocity
    down = jnp.where((y < BALL) | (y > COURT - BALL), -down, down)
    y = jnp.where(y < BALL, 2 * BALL - y, y)
    y = jnp.where(y > COURT - BALL, 2 * (COURT - BALL) - y, y)

    # The ball is hit in the frame in which it passes the face of a paddle.
    faces = (OPPONENT_X + PADDLE_WIDTH + BALL, AGENT_X - PADDLE_WIDTH - BALL)
    left = (x <= faces[0]) & (state.ball[0] > faces[0])
    right = (x >= faces[1]) & (state.ball[0] < faces[1])
    offset = (y - jnp.where(left, opponent, agent)) / (PADDLE_HEIGHT + BALL)
    hit = (left | right) & (jnp.abs(offset) <= 1)
    x = jnp.where(hit, 2 * jnp.where(left, *faces) - x, x)
    hard = BALL_SPEED * (1 + DRIVE * jnp.abs(offset))
    across = jnp.where(hit, jnp.where(left, hard, -hard), across)
    down = jnp.where(hit, SPIN * offset, down)
    ball, velocity = jnp.stack([x, y]), jnp.stack([across, down])
    return dataclasses.replace(state, ball=ball, velocity=velocity, agent=agent, opponent=opponent)


def _fill(
    picture: np.ndarray,
    centre: tuple[float, float],
    half: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:
    """Fill a rectangle, rounded to whole pixels and clipped to the image."""
    left, top = (max(0, round(c - h)) for c, h in zip(centre, half, strict=True))
    right, bottom = (max(0, round(c + h)) for c, h in zip(centre, half, strict=True))
    picture[top:bottom, left:right] = colour
