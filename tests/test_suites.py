"""All optional suites that are installed, described by one table.

The default tests make a few steps and updates;
`python -m pytest -m suites tests/test_suites.py -n 0` trains on each suite.
"""

import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import learning, suites
from benchmarks.table import RESULTS, read
from ppo_jax import config as configs
from ppo_jax import envs
from ppo_jax.envs import jaxmarl, registry, spaces
from ppo_jax.evaluate import evaluate
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.sweep import run_sweep
from ppo_jax.train import build, make_train

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
ENVS, STEPS = 4, 60


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        name: full name of the environment.
        kwargs: arguments of make.
        shapes: shapes of an observation's leaves, in jax.tree's order.
        actions: the action space as text.
        time_limit: number of steps.
        terminates, truncates: whether episodes of random legal actions end this way within STEPS.
    """

    name: str
    kwargs: dict[str, Any]
    shapes: list[tuple[int, ...]]
    actions: str
    time_limit: float
    terminates: bool
    truncates: bool


INF = float("inf")
TABLE = [
    Case("brax:inverted_pendulum", {}, [(4,)], "Box(1,)", 1000, True, False),
    Case("brax:reacher", {"episode_length": 7}, [(11,)], "Box(2,)", 7, False, True),
    Case("playground:CartpoleBalance", {"episode_length": 9}, [(5,)], "Box(1,)", 9, False, True),
    Case("navix:Navix-Empty-5x5-v0", {"max_steps": 20}, [(5, 5, 3)], "Discrete 7", 20, True, True),
    Case(
        "navix:Navix-DoorKey-6x6-v0",
        {"observation": "rgb_first_person", "max_steps": 20},
        [(56, 56, 3)],
        "Discrete 7",
        20,
        False,
        True,
    ),
    Case("xminigrid:MiniGrid-Empty-5x5", {"max_steps": 20}, [(7, 7, 2)], "Discrete 6", 20, 0, 1),
    Case(
        "xminigrid:XLand-MiniGrid-R1-9x9",
        {"direction": True, "rules": True, "max_steps": 20},
        [(4,), (5,), (5, 5, 2), (1, 7)],
        "Discrete 6",
        20,
        False,
        True,
    ),
    Case("pgx:tic_tac_toe", {}, [(9,), (3, 3, 2)], "Discrete 9", INF, True, False),
    Case("pgx:connect_four", {"side": "last"}, [(7,), (6, 7, 2)], "Discrete 7", INF, True, False),
    Case("pgx:2048", {"time_limit": 15}, [(4,), (4, 4, 31)], "Discrete 4", 15, False, True),
    Case("jumanji:Snake-v1", {"time_limit": 20}, [(12, 12, 5), (), (4,)], "Discrete 4", 20, 0, 1),
    Case("jumanji:Game2048-v1", {}, [(4, 4), (4,)], "Discrete 4", INF, False, False),
    Case("jumanji:RubiksCube-v0", {"time_limit": 9}, [(6, 3, 3), ()], "Multi(6, 1, 3)", 9, 0, 1),
    Case(
        "jumanji:Cleaner-v0",
        {"time_limit": 30},
        [(10, 10), (3, 2), (3, 4), ()],
        "Multi(4, 4, 4)",
        30,
        False,
        True,
    ),
    Case(
        "jumanji:Tetris-v0",
        {"time_limit": 25},
        [(10, 10), (4, 4), (4, 10), ()],
        "Joint(4, 10)",
        25,
        True,
        False,
    ),
    Case(
        "craftax:Craftax-Classic-Symbolic-v1",
        {"max_timesteps": 20},
        [(1345,)],
        "Discrete 17",
        20,
        False,
        True,
    ),
    Case("jaxmarl:MPE_simple_spread_v3", {"max_steps": 10}, [(18,)], "Discrete 5", 10, False, True),
    Case("jaxmarl:HeuristicEnemySMAX", {}, [(10,), (127,)], "Discrete 10", 100, True, False),
]
IDS = [case.name for case in TABLE]


def make(case):
    """The environment of a case; the test is skipped if its suite is not installed."""
    package = registry.OPTIONAL[case.name.split(":")[0]][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return envs.make(case.name, **case.kwargs)


def as_text(space):
    """The kind of an action space, as text."""
    if isinstance(space, spaces.MultiDiscrete):
        return f"{'Joint' if space.joint else 'Multi'}{space.sizes}"
    return f"Discrete {space.n}" if isinstance(space, spaces.Discrete) else f"Box{space.shape}"


def mask_of(obs):
    return obs.get("action_mask") if isinstance(obs, dict) else getattr(obs, "action_mask", None)


def legal(space, key, obs):
    """A random legal action."""
    mask = mask_of(obs)
    if isinstance(space, spaces.Box):
        return jax.random.uniform(key, space.shape, minval=space.low, maxval=space.high)
    sizes = jnp.asarray(getattr(space, "sizes", getattr(space, "n", None)))
    if mask is None:
        return jax.random.randint(key, space.shape, 0, sizes)
    logits = jnp.where(mask, 0.0, -jnp.inf)
    if getattr(space, "joint", False):
        flat = jax.random.categorical(key, logits.ravel())
        return jnp.stack(jnp.unravel_index(flat, mask.shape))
    return jax.random.categorical(key, logits)


def copies(env):
    """(vector, N): four environments, or rows of agents."""
    count = ENVS * getattr(env, "num_agents", 1)
    return envs.vectorize(env, count, STEPS), count


def play(env):
    """The results of STEPS random legal steps of a vector environment, [STEPS, N, ...]."""
    vector, count = copies(env)
    space = env.action_space

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def run(key):
        reset_key, key = jax.random.split(key)
        obs, state = vector.reset(reset_key)

        def step(carry, key):
            obs, state = carry
            action_key, step_key = jax.random.split(key)
            keys = jax.random.split(action_key, count)
            action = jax.vmap(lambda key, obs: legal(space, key, obs))(keys, obs)
            before = (step_key, getattr(state, "env_state", ()))
            new, state, reward, terminated, truncated, info = vector.step(step_key, state, action)
            row = {
                "before": before,
                "obs": obs,
                "action": action,
                "next": new,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                **info,
            }
            return (new, state), row

        return jax.lax.scan(step, (obs, state), jax.random.split(key, STEPS))[1]

    return run(KEY), run(KEY), run(jax.random.key(1))


def lengths(done, valid):
    """For each step, the length of its episode so far."""
    length = np.zeros(done.shape, int)
    for t in range(len(done)):
        before = np.where(done[t - 1], 0, length[t - 1]) if t else 0
        length[t] = before + valid[t]
    return length


def different(a, b):
    """[...] whether two batches of observations differ anywhere, per row of [T, N, ...]."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.any(
        [(np.asarray(x) != np.asarray(y)).reshape(*x.shape[:2], -1).any(-1) for x, y in pairs],
        axis=0,
    )


@pytest.mark.parametrize("case", TABLE, ids=IDS)
def test_spaces_and_limits_are_as_stated(case):
    env = make(case)
    if not hasattr(env, "vector"):
        envs.check_env(env)
    leaves = jax.tree.leaves(env.observation_space)
    assert [space.shape for space in leaves] == case.shapes
    assert as_text(env.action_space) == case.actions
    assert env.time_limit == case.time_limit
    assert env.name == case.name.split(":")[1]
    assert envs.canonical(case.name) == case.name in envs.names(case.name.split(":")[0])


@pytest.mark.parametrize("case", TABLE, ids=IDS)
def test_episodes_end_as_they_should(case):
    """Numbers are finite, equal keys give equal numbers, terminations and truncations are
    distinguished, and the final observation is the last of the episode, not the first of the
    next."""
    env = make(case)
    rows, again, other = play(env)
    before, *_ = (r.pop("before") for r in (rows, again, other))
    rows, again, other = jax.tree.map(np.asarray, (rows, again, other))
    jax.tree.map(np.testing.assert_array_equal, rows, again)
    assert different(rows["obs"], other["obs"]).any()
    for x in jax.tree.leaves(rows):
        assert np.isfinite(x).all()
    for x, space in zip(
        jax.tree.leaves(rows["obs"]), jax.tree.leaves(env.observation_space), strict=True
    ):
        assert x.shape[2:] == space.shape and x.dtype == space.dtype
        if isinstance(space, spaces.Box):
            assert (x >= space.low).all() and (x <= space.high).all()
    terminated, truncated, valid = rows["terminated"], rows["truncated"], rows["valid"]
    assert terminated.any() == case.terminates and truncated.any() == case.truncates
    done = terminated | truncated
    length = lengths(done, valid)
    assert (length <= case.time_limit).all()
    at_limit = (length == case.time_limit) & valid
    assert not (truncated & ~at_limit).any() and not (at_limit & ~done).any()
    finals = different(rows["final_observation"], rows["next"])
    assert finals[done & valid].any() or not done.any()
    assert not finals[~done & valid].any()
    if not hasattr(env, "vector"):
        compare_with_step(env, before, rows, done)


def compare_with_step(env, before, rows, done):
    """At the first end and at the step before it, the final observation is that of `env.step`."""
    step = jax.jit(env.step)
    end, n = (int(x[0]) for x in np.nonzero(done)) if done.any() else (STEPS - 1, 0)
    for t in {max(end - 1, 0), end}:
        key, state, action = jax.tree.map(lambda x, t=t: x[t], (*before, rows["action"]))
        state, action = jax.tree.map(lambda x: x[n], (state, action))
        obs = step(jax.random.split(key, ENVS)[n], state, jnp.asarray(action), env.params)[0]
        for a, b in zip(
            jax.tree.leaves(obs), jax.tree.leaves(rows["final_observation"]), strict=True
        ):
            np.testing.assert_allclose(a, b[t, n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", TABLE, ids=IDS)
def test_ppo_takes_a_few_updates_and_saves_its_state(case, tmp_path):
    env = make(case)
    # Up to 16 environments, one loop iteration makes two steps, and the physics is compiled twice.
    count = 20 * getattr(env, "num_agents", 1)
    config = configs.make(
        preset="none",
        num_envs=count,
        num_steps=4,
        total_timesteps=2 * 4 * count,
        hidden=(8,),
        epochs=1,
        minibatches=2,
    )
    state, metrics = jax.jit(make_train(config, env), compiler_options=compiler_options())(KEY)
    assert int(state.update) == 2
    for name in ("policy_loss", "value_loss", "entropy"):
        assert np.isfinite(metrics[name]).all(), name
    Checkpoints(tmp_path, {}).save(2, state)  # reads the state back and compares it


@pytest.mark.parametrize(
    "name",
    ["jumanji:Snake-v1", "navix:Navix-DoorKey-6x6-v0"],
)
def test_sweeps_make_the_environment_by_name(name):
    """Before the program is traced: constructors of jumanji compare arrays."""
    make(next(case for case in TABLE if case.name == name))
    values = {
        "num_envs": 4,
        "num_steps": 4,
        "total_timesteps": 32,
        "hidden": (8,),
        "minibatches": 2,
    }
    config = configs.make(env=name, preset="none", **values)
    _, metrics = run_sweep(config, [{}], 2)
    assert metrics["loss"].shape == (1, 2, 2) and np.isfinite(metrics["loss"]).all()


def lowest(key, state):
    """An opponent that takes the first free cell."""
    return jnp.argmax(state.legal_action_mask)


@pytest.mark.parametrize(
    ("moves", "reward", "stones"),
    [
        ([4, 8, 2, 6], 1.0, 7),  # wins; the opponent makes no further move
        ([3, 4, 8], -1.0, 6),  # loses by the opponent's third move, in the same step
        ([4, 4], -1.0, None),  # an illegal move loses
    ],
)
def test_an_opponent_moves_within_the_agents_step(moves, reward, stones):
    pytest.importorskip("pgx")
    env = envs.make("pgx:tic_tac_toe", opponent=lowest, side="first")
    obs, state = env.reset(KEY, ())
    step = jax.jit(env.step)
    for i, move in enumerate(moves):
        assert i == 0 or not terminated  # noqa: F821
        obs, state, gained, terminated, truncated, _ = step(KEY, state, jnp.int32(move), ())
        assert gained == (reward if i == len(moves) - 1 else 0.0)
    assert terminated and not truncated
    if stones is not None:
        assert int(state[0]._step_count) == stones


def test_the_agents_side():
    pytest.importorskip("pgx")
    for side, stones in (("first", {0}), ("last", {1}), ("random", {0, 1})):
        env = envs.make("pgx:tic_tac_toe", side=side)
        obs, _ = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(KEY, 16), ())
        assert {*np.asarray(obs["obs"].sum((1, 2, 3))).tolist()} == stones
        assert (obs["action_mask"].sum(-1) == 9 - obs["obs"].sum((1, 2, 3))).all()


@pytest.mark.parametrize(
    ("name", "forward", "turn_right"),
    [("navix:Navix-Empty-5x5-v0", 2, 1), ("xminigrid:MiniGrid-Empty-5x5", 0, 1)],
)
def test_the_straight_way_to_the_goal_is_the_shortest_episode(name, forward, turn_right):
    pytest.importorskip(name.split(":")[0])
    env = envs.make(name)
    _, state = env.reset(KEY, env.params)
    step = jax.jit(env.step)
    way = [forward, forward, turn_right, forward, forward]
    for i, action in enumerate(way):
        _, state, reward, terminated, truncated, _ = step(KEY, state, jnp.int32(action), env.params)
        assert terminated == (i == len(way) - 1) == (reward > 0) and not truncated
    assert env.shortest_episode == len(way)


def test_rows_of_agents():
    """The three agents of a game are adjacent rows, and end together."""
    pytest.importorskip("jaxmarl")
    env = envs.make("jaxmarl:MPE_simple_spread_v3", max_steps=5)
    vector = env.vector(6)
    assert vector.num_envs == 6 and vector.time_limit == 5
    obs, state = vector.reset(KEY)
    step = jax.jit(vector.step)
    for i in range(5):
        obs, state, reward, terminated, truncated, info = step(KEY, state, jnp.zeros(6, int))
        assert truncated.tolist() == [i == 4] * 6 and not terminated.any()
        assert info["valid"].all() and reward.shape == (6,)
    with pytest.raises(envs.InvalidEnvironment, match="num_envs is 4.* use a multiple of 3"):
        env.vector(4)


class Leaving:
    """A game with jaxmarl's interface for two agents: b leaves after two steps, a after four."""

    agents, num_agents = ("a", "b"), 2

    def reset(self, key):
        return self._obs(0), 0

    def step_env(self, key, time, actions):
        time = time + 1
        ends = time >= 4
        done = {"a": ends, "b": time >= 2, "__all__": ends}
        reward = {"a": 1.0 + actions["a"], "b": 10.0 * time}
        return self._obs(time), time, reward, done, {}

    def _obs(self, time):
        return {name: jnp.full(2, time, jnp.float32) for name in self.agents}


def test_agents_that_are_out_leave_steps_that_do_not_count():
    """Valid until an agent leaves, and again in the next game; requires no suite."""
    actions = spaces.Box(-np.inf, np.inf, (2,))
    game = jaxmarl.Game(Leaving(), False, spaces.Box(-9, 9, (2,)), actions, 10)
    env = jaxmarl.JaxMarlEnv(game, "Leaving", spaces.Box(-9, 9, (2,)), spaces.Discrete(3))
    vector = env.vector(4)
    obs, state = vector.reset(KEY)
    step, rows = jax.jit(vector.step), []
    for _ in range(6):
        obs, state, *row, info = step(KEY, state, jnp.ones(4))
        rows.append((*row, info["valid"], info["final_observation"][:, 0], obs[:, 0]))
    reward, terminated, truncated, valid, final, shown = (
        np.stack(x) for x in zip(*rows, strict=True)
    )
    # Rows: a and b of the first game, a and b of the second.
    np.testing.assert_array_equal(valid.T, [[1] * 6, [1, 1, 0, 0, 1, 1]] * 2)
    np.testing.assert_array_equal(terminated.T, [[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(final.T, [[1, 2, 3, 4, 1, 2]] * 4)
    np.testing.assert_array_equal(shown.T, [[1, 2, 3, 0, 1, 2]] * 4)
    np.testing.assert_array_equal(reward.T[:2, :2], [[2, 2], [10, 20]])
    assert not truncated.any()
    # Training uses this: weights, and episodes with the length of each agent.
    config = configs.make(
        preset="none", num_envs=4, num_steps=8, total_timesteps=32, hidden=(8,), epochs=1,
        minibatches=1,
    )  # fmt: skip
    program = build(config, env)
    state, metrics = jax.jit(program.step)(jax.jit(program.init)(KEY))
    assert metrics["episodes"] == 8 and metrics["episode_length"] == 3  # four of 4 and of 2 steps
    assert np.isfinite(metrics["policy_loss"])


def test_agents_are_evaluated():
    """Four episodes of agents are two games of three agents, of which four rows count."""
    pytest.importorskip("jaxmarl")
    env = envs.make("jaxmarl:MPE_simple_spread_v3", max_steps=5)
    program = build(configs.make(preset="none", num_envs=6, hidden=(8,)), env)
    state = program.init(KEY)
    params, moments = state.learner.params, state.rollout.moments
    result = evaluate(KEY, params, moments, env=env, policy=program.policy, episodes=4)
    assert result.finished.all() and result.episode_length.tolist() == [5] * 4


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("brax:inverted_pendulum", {"backend": "sprung"}, "did you mean spring"),
        ("brax:ant", {"legs": 5}, "brax:ant cannot be made: .*legs"),
        ("navix:Navix-Empty-5x5-v0", {"observation": "rbg"}, "did you mean rgb"),
        ("xminigrid:MiniGrid-Empty-5x5", {"rules": True}, "no ruleset"),
        ("xminigrid:MiniGrid-Empty-5x5", {"size": 3}, "cannot be made: .*size"),
        ("craftax:Craftax-Symbolic-v1", {"max_timestep": 3}, "did you mean max_timesteps"),
        ("jumanji:Snake-v1", {"rows": 3}, "jumanji:Snake-v1 cannot be made: .*rows"),
        ("pgx:chess", {"side": "white"}, "unknown side 'white'"),
        ("pgx:chess", {"opponent": "strong"}, "it must be 'random' or a function"),
        ("jaxmarl:MPE_simple_tag_v3", {}, "cannot share a policy, because they differ"),
        ("jaxmarl:switch_riddle", {"wings": 2}, "cannot be made: .*wings"),
        ("pgx:ches", {}, "did you mean chess"),
    ],
)
def test_what_cannot_be_made_says_why(name, kwargs, message):
    pytest.importorskip(registry.OPTIONAL[name.split(":")[0]][0])
    with pytest.raises((envs.InvalidEnvironment, envs.UnknownEnvironment), match=message):
        envs.make(name, **kwargs)


@pytest.mark.suites
@pytest.mark.parametrize("suite", suites.EXAMPLES)
def test_the_example_of_a_suite_trains(suite):
    """The benchmark's function with fewer steps."""
    if not envs.suites()[suite]:
        pytest.skip(f"{suite} is not installed")
    row = suites.measure(suite, 4_000)
    assert row["steps_per_second"] > 0 and row["compile_seconds"] > 0


def test_the_connect_four_example_trains_rates_and_writes_its_table(tmp_path, monkeypatch, capsys):
    """A tiny configuration of self-play: two generations of one update each."""
    pytest.importorskip("pgx")
    monkeypatch.syspath_prepend(ROOT / "examples")
    connect_four = importlib.import_module("connect_four")
    monkeypatch.setattr(connect_four, "DEPTHS", (2,))
    file = tmp_path / "new" / "league.csv"  # a folder that does not exist
    words = "--generations 2 --updates 1 --num-envs 8 --games 12 --minimax-games 4 --csv"
    monkeypatch.setattr("sys.argv", ["connect_four.py", *words.split(), str(file)])
    connect_four.main()
    rows, printed = read(file), capsys.readouterr().out
    assert connect_four.show(rows) in printed and "minimax of depth 2" in printed
    assert [int(r["env_steps"]) for r in rows] == [0, 256, 512]
    assert int(rows[0]["elo"]) == 0 and all(np.isfinite(float(r["elo"])) for r in rows)
    wins = [r["wins_against_random"] for r in rows]
    assert wins[0] == "" and all(0 <= float(share) <= 1 for share in wins[1:])
    assert float(rows[2]["wins_against_minimax_2"]) <= 1 and not rows[1]["wins_against_minimax_2"]


@pytest.mark.parametrize("player", [0, 1])
def test_minimax_wins_connect_four_at_once_and_defends(player, monkeypatch):
    """Three stones of the first player in column 3: it wins there, and the second defends."""
    pytest.importorskip("pgx")
    monkeypatch.syspath_prepend(ROOT / "examples")
    league = importlib.import_module("league")
    game = envs.make("pgx:connect_four").env
    state, step = game.init(KEY), jax.jit(game.step)
    for column in (3, 0, 3, 1, 3, *([6] if player == 0 else [])):
        state = step(state, column)
    act = jax.jit(league.minimax(game, 2))
    assert {int(act(key, state)) for key in jax.random.split(KEY, 8)} == {3}


# Preset -> minimum return of a greedy episode.
SOLVED = {"navix_empty": 0.99, "inverted_pendulum": 1000.0}


@pytest.mark.learning
@pytest.mark.parametrize("preset", SOLVED)
def test_the_preset_of_a_suite_solves_it(preset):
    """Four seeds, trained by the function of benchmarks/learning.py."""
    config = configs.make(preset=preset)
    if not envs.suites()[config.env.split(":")[0]]:
        pytest.skip(f"the suite of {config.env} is not installed")
    task = learning.Task(preset, config.total_timesteps, SOLVED[preset], "mean", "none")
    returns = learning.swept_returns(task, 4)
    assert (returns >= task.threshold).all(), returns


def test_the_table_of_the_suites_is_that_of_the_results():
    text = (ROOT / "docs/environments.md").read_text()
    assert suites.markdown(read(RESULTS / "suites.csv")) in text


def test_the_example_of_an_own_environment_runs(capsys):
    text = (ROOT / "docs/environments.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(block, "environments.md", "exec"), {})
    (printed,) = re.findall(r"print\(.*\)  # (.*)", block)
    assert capsys.readouterr().out == printed + "\n"


def test_every_example_is_in_the_document():
    text = (ROOT / "docs/environments.md").read_text()
    for suite, example in suites.EXAMPLES.items():
        assert f"| `{suite}` |" in text and example.env.startswith(f"{suite}:")
