"""Many agents in one program: the same results as alone, for any devices and memory."""

import dataclasses
import logging
import os
import subprocess
import sys
import types

import gymnax
import jax
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.sweep import program, run_seeds, run_sweep
from ppo_jax.sweep import schedule as schedules
from ppo_jax.sweep.program import even_width, fit
from ppo_jax.sweep.schedule import Schedule, group_agents
from ppo_jax.train import build


def small(**changes):
    """One size for all tests, so that few programs are compiled."""
    values = {"num_envs": 4, "num_steps": 32, "total_timesteps": 640, "hidden": (16, 16)}
    return configs.make(preset="none", **values | changes)


def changed(config, **floats):
    return dataclasses.replace(config, hyper=dataclasses.replace(config.hyper, **floats))


def alone(config, seed, updates):
    """The metrics of a single agent's first updates."""
    static, floats = program.structure(config)
    step = jax.jit(lambda state, floats: build(configs.merge(static, floats)).step(state))
    state, rows = jax.jit(build(config).init)(jax.random.key(seed)), []
    for _ in range(updates):
        state, metrics = step(state, floats)
        rows.append(metrics)
    return {name: np.array([r[name] for r in rows]) for name in rows[0]}


def assert_close(found, expected, at, tolerance=1e-5):
    for name, x in expected.items():
        got = np.asarray(found[name])[at][: len(x)]
        np.testing.assert_allclose(got, x, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_eight_learning_rates_of_sixteen_seeds_are_one_program(caplog):
    """Compiled once; four of its agents equal agents that are trained alone."""
    rates = [*np.geomspace(1e-4, 1e-2, 8)]
    config = small()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        points, metrics = run_sweep(config, {"learning_rate": rates}, 16, agents_per_device=128)
    compiled = [m for m in caplog.messages if "Finished XLA compilation of jit(chunk)" in m]
    assert len(compiled) == 1, caplog.messages
    assert metrics["loss"].shape == (8, 16, 5)
    assert len({metrics["loss"][p, 0, 4] for p in range(8)}) == 8
    for p, s in ((0, 0), (2, 15), (5, 7), (7, 3)):
        assert_close(metrics, alone(changed(config, learning_rate=rates[p]), s, 5), (p, s))


@pytest.mark.slow
def test_a_seed_is_that_of_train():
    """run_seeds counts from the configuration's own seed, which is `--seed` of the command."""
    config = small(seed=5)
    state, metrics = run_seeds(config, 3)
    for s in range(3):
        assert_close(metrics, alone(config, 5 + s, 5), s)
    assert metrics["episodes"].shape == (3, 5)
    assert state.update.tolist() == [5, 5, 5]
    assert state.learner.step.shape == (3,)


def test_an_agent_at_the_same_width_is_the_same_bits():
    """The same chunk again, and among other chunks: width 3 of 3 seeds, and of 6."""
    first, metrics = run_seeds(small(), 3, agents_per_device=3)
    again, repeated = run_seeds(small(), [0, 1, 2, 9, 10, 11], agents_per_device=3)
    for name, x in metrics.items():
        np.testing.assert_array_equal(x, repeated[name][:3], err_msg=name)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b[:3]), first.learner, again.learner)
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_other_widths_round_differently_and_begin_alike():
    _, wide = run_seeds(small(), 5, agents_per_device=4)
    _, narrow = run_seeds(small(), 5, agents_per_device=3)  # the last chunk of both is padded
    for name, x in wide.items():
        np.testing.assert_allclose(x[:, :2], narrow[name][:, :2], rtol=1e-4, atol=1e-5)


def test_structure_is_compiled_once_per_value_and_floats_ride_along():
    config = small()
    points = {"num_steps": [16, 32], "clip_eps": [0.1, 0.2], "total_timesteps": [640]}
    groups = group_agents([*settings(config, points)], [0, 1])
    assert [len(g.agents) for g in groups] == [4, 4]
    assert groups[0].agents == (0, 1, 2, 3)
    assert groups[0].floats[2]["clip_eps"] == 0.2
    with pytest.raises(ConfigError, match="10 or 5 updates|5 or 10 updates"):
        run_sweep(config, {"num_steps": [16, 32]}, 1)


def settings(config, points):
    from ppo_jax.sweep.points import configure, grid

    return (configure(config, p) for p in grid(points))


@pytest.mark.slow
def test_another_algorithm_sweeps_what_is_its_own():
    config = small(algorithm="actor_critic")
    _, metrics = run_sweep(config, {"actor_rate": [0.1, 1.0]}, 2, episodes=3)
    assert metrics["eval_return"].shape == (2, 2, 3)
    assert not np.array_equal(metrics["policy_loss"][0], metrics["policy_loss"][1])
    assert_close(metrics, alone(changed(config, actor_rate=1.0), 1, 2), (1, 1), 1e-4)


def test_one_agent_that_diverges_leaves_the_others_alone():
    config = changed(small(), learning_rate=1e-3)
    _, metrics = run_sweep(config, {"learning_rate": [1e-3, 1e30]}, 2, agents_per_device=4)
    assert not np.isfinite(metrics["loss"][1]).all()
    assert np.isfinite(metrics["loss"][0]).all()
    assert_close(metrics, alone(config, 1, 3), (0, 1))


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        (0, "must be >= 1"),
        ([], "at least one"),
        ([1, 1], "without repetitions"),
        ([-1], "out of range"),
    ],
)
def test_seeds_that_cannot_be_are_refused(seeds, says):
    with pytest.raises(ConfigError, match=says):
        run_seeds(small(), seeds)


def test_the_algorithm_may_vary_from_its_own_defaults():
    from ppo_jax.sweep.points import configure

    config = configure(small(), {"algorithm": "a2c", "learning_rate": 1e-2})
    assert (config.algorithm, config.num_steps, config.hyper.learning_rate) == ("a2c", 32, 1e-2)
    with pytest.raises(ConfigError, match="unknown option 'clip_eps'"):
        configure(small(), {"algorithm": "a2c", "clip_eps": 0.1})


class Counted(gymnax.environments.classic_control.CartPole):
    """An environment that counts how often one is made."""

    made = 0

    def __init__(self):
        super().__init__()
        Counted.made += 1


def test_an_environment_is_made_before_its_program_is_traced_and_not_again():
    """Constructors that read the values of arrays fail while a program is traced."""
    config = small(env=f"{__name__}:Counted")
    _, metrics = run_sweep(config, [{}], 2, episodes=2)
    assert metrics["eval_return"].shape == (1, 2, 2) and (metrics["eval_return"] > 0).all()
    assert Counted.made == 2  # for the check of the configuration, and for the program


def test_points_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="is given and also varies"):
        run_sweep(small(), {"env": ["CartPole-v1"]}, 2, env="Acrobot-v1")
    with pytest.raises(ConfigError, match="did you mean clip_eps"):
        run_sweep(small(), {"clip_ep": [0.1]}, 2)
    with pytest.raises(ConfigError, match="clip_eps"):
        run_sweep(small(), {"clip_eps": [-1.0]}, 2)
    with (
        pytest.warns(DeprecationWarning, match="batch_size= is now agents_per_device="),
        pytest.raises(ConfigError, match="agents_per_device is 0"),
    ):
        run_seeds(small(), 2, batch_size=0)
    with pytest.raises(ConfigError, match="agents_per_device"):
        run_seeds(small(), 2, agents_per_device=0)


def test_chunks_are_equal_and_hardly_padded():
    assert even_width(128, 8, 2) == 8
    assert even_width(20, 8, 2) == 5  # two rounds of 2 x 5
    assert even_width(1, 8, 2) == 1
    assert even_width(17, 8, 1) == 6  # three chunks of 6, one place empty


def test_a_device_alone_takes_more_agents_than_one_of_several():
    """Which is fastest where; fewer agents than that are trained as everywhere, in few widths."""
    cpu = types.SimpleNamespace(platform="cpu")
    gpu = types.SimpleNamespace(platform="gpu")
    widths = []
    for agents, devices in ((15, [cpu]), (48, [cpu]), (100, [cpu]), (96, [cpu] * 2), (96, [gpu])):
        fast = program._fast_width(agents, devices)
        widths.append(even_width(agents, fast, len(devices)))
    assert widths == [4, 16, 4, 4, 96]


def test_memory_decides_the_width(monkeypatch):
    """The compiler's memory estimate of the program is used before it runs."""
    compiled = []

    def compile_at(width):
        compiled.append(width)
        return program.AgentsProgram(width, (device,), None, None, None, bytes_needed=width * 100)

    (device,) = jax.devices()[:1]
    monkeypatch.setattr(program, "CPU_WIDTH_ALONE", 64)
    monkeypatch.setattr(program, "memory_of", lambda devices: 3000)
    assert fit(64, compile_at, [device]).width == 22  # three chunks in 2,550 bytes
    assert compiled == [64, 22]
    monkeypatch.setattr(program, "memory_of", lambda devices: 50)
    assert fit(64, compile_at, [device]).width == 1


@pytest.mark.slow
def test_the_compilers_account_grows_with_the_width():
    static, _ = program.structure(small())
    needs = [
        program.compile_program(static, None, width, jax.devices()[:1], episodes=0).bytes_needed
        for width in (4, 16)
    ]
    assert 2 * needs[0] < needs[1] < 5 * needs[0]
    # An evaluation of many episodes needs more than a chunk of updates.
    played = program.compile_program(static, None, 4, jax.devices()[:1], episodes=4096).bytes_needed
    assert played > 2 * needs[0]


@pytest.mark.slow
def test_running_out_of_memory_halves_the_chunks_and_goes_on(monkeypatch):
    """The failed round is repeated with a smaller width; finished rounds are not."""
    config = small()
    job_of, widths = schedules.job_of, []

    def out_of_memory_at_four(program, seeds, *rest):
        widths.append(program.width)
        if program.width == 4 and len(widths) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return job_of(program, seeds, *rest)

    monkeypatch.setattr(schedules, "job_of", out_of_memory_at_four)
    plans = []
    made = Schedule(
        group_agents([config], range(8)), jax.devices()[:1], 4, on_plan=lambda c: plans.append([*c])
    )
    finished = [*made.run()]
    assert [f.state().update.tolist() for f in finished] == [[5] * 4, [5] * 2, [5] * 2]
    assert widths == [4, 4, 2, 2]
    assert [f.chunk.agents for f in finished] == [(0, 1, 2, 3), (4, 5), (6, 7)]
    assert [c.number for c in plans[-1]] == [0, 2, 3] and made.programs == 2
    expected = run_seeds(config, range(4, 8), agents_per_device=2)[1]["loss"]
    np.testing.assert_array_equal(
        np.concatenate([f.metrics["loss"] for f in finished[1:]]), expected
    )


def test_the_last_chunk_may_run_out_of_memory_too(monkeypatch):
    """Three agents in a program of width four: halved, padded, and compiled at the given width."""
    job_of, widths = schedules.job_of, []

    def out_of_memory_at_four(program, seeds, *rest):
        widths.append((program.width, len(seeds)))
        if program.width == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return job_of(program, seeds, *rest)

    monkeypatch.setattr(schedules, "job_of", out_of_memory_at_four)
    chunks = [schedules.Chunk(0, 0, (0, 1, 2), 4)]
    made = Schedule(group_agents([small()], range(3)), jax.devices()[:1], chunks=chunks)
    assert [f.chunk.agents for f in made.run()] == [(0, 1), (2,)]
    assert widths == [(4, 4), (2, 2), (2, 2)]


def test_running_out_of_memory_while_compiling_is_the_same(monkeypatch):
    compile_program = schedules.compile_program

    def only_narrow(static, env, width, *rest, **named):
        if width > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return compile_program(static, env, width, *rest, **named)

    monkeypatch.setattr(schedules, "compile_program", only_narrow)
    _, metrics = run_seeds(small(), 4, agents_per_device=4)
    np.testing.assert_array_equal(
        metrics["loss"], run_seeds(small(), 4, agents_per_device=2)[1]["loss"]
    )
    monkeypatch.setattr(schedules, "compile_program", lambda *_, **__: only_narrow(0, 0, 3))
    with pytest.raises(ConfigError, match="one agent alone does not fit"):
        run_seeds(small(), 4)


def test_no_device_is_left_to_repeat_another(monkeypatch):
    """A batch size above a device's share would leave only padding for the other devices."""
    made = []

    def compile_program(static, env, width, devices, episodes):
        made.append(width)
        raise KeyboardInterrupt

    monkeypatch.setattr(schedules, "compile_program", compile_program)
    two = jax.devices()[:1] * 2
    with pytest.raises(KeyboardInterrupt):
        next(Schedule(group_agents([small()], range(9)), two, 100).run())
    assert made == [5]


def test_a_single_agent_that_does_not_fit_is_an_error_that_says_so(monkeypatch):
    def never(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(schedules, "job_of", never)
    with pytest.raises(
        ConfigError, match="one agent alone does not fit .*num_envs x num_steps = 128"
    ):
        run_seeds(small(), 2, agents_per_device=2)


SHARDED = """
import sys
import jax, numpy as np
from ppo_jax import config
from ppo_jax.sweep import run_seeds
small = config.make(preset="none", num_envs=4, num_steps=32, total_timesteps=640, hidden=(16, 16))
_, metrics = run_seeds(small, 16, agents_per_device=int(sys.argv[1]))
np.savez(sys.argv[2], devices=len(jax.devices()), **metrics)
"""


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(tmp_path):
    """Two devices agree bit for bit at equal width; one device agrees up to rounding in first
    updates."""
    found = {}
    for devices in (8, 2):
        file = tmp_path / f"{devices}.npz"
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "-c", SHARDED, "2", str(file)],
            env={n: v for n, v in os.environ.items() if n != "JAX_NUM_CPU_DEVICES"}
            | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"},
            check=True,
            timeout=300,
        )
        found[devices] = dict(np.load(file))
        assert found[devices].pop("devices") == devices
    _, one = run_seeds(small(), 16, agents_per_device=2, devices=jax.devices()[:1])
    for name, x in found[8].items():
        np.testing.assert_array_equal(x, found[2][name], err_msg=name)
        np.testing.assert_allclose(x[:, :2], one[name][:, :2], rtol=1e-4, atol=1e-5, err_msg=name)
