"""Schedules: values, parsing from all sources, and effects in runs."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import documents
from ppo_jax import config as configs
from ppo_jax import sgd
from ppo_jax.algorithms import ALGORITHMS, ppo
from ppo_jax.cli import flags
from ppo_jax.cli import rlhf as language_command
from ppo_jax.cli import sweep as sweep_command
from ppo_jax.cli import train as train_command
from ppo_jax.config import ConfigError
from ppo_jax.config import schedules as forms
from ppo_jax.config.options import check, parse, show, to_json
from ppo_jax.config.schedules import Schedule, adaptive, constant, cosine, linear
from ppo_jax.envs import spaces
from ppo_jax.experiment import MAY_BE_NAN, RunOptions, step_of
from ppo_jax.experiment import train as train_run
from ppo_jax.networks import make_policy
from ppo_jax.optimizer import adapt
from ppo_jax.rlhf import supervised
from ppo_jax.rlhf.folder import flat as as_json
from ppo_jax.runs.chunk import make_chunk
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.runs.restore import load
from ppo_jax.sweep import run_sweep
from ppo_jax.sweep.points import label, parse_vary
from ppo_jax.sweep.schedule import group_agents
from ppo_jax.train import build, make_train
from ppo_jax.types import Batch

# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        (constant(0.3), {0: 0.3, 0.5: 0.3, 1: 0.3}),
        (constant(0.3, warmup=0.5), {0: 0, 0.25: 0.15, 0.5: 0.3, 1: 0.3}),
        (linear(0.4, 0.2), {0: 0.4, 0.25: 0.35, 0.5: 0.3, 1: 0.2, 2: 0.2, -1: 0.4}),
        (linear(0.4, 0, warmup=0.2), {0: 0, 0.1: 0.2, 0.2: 0.4, 0.6: 0.2, 1: 0}),
        (linear(0.1, 0.3), {0: 0.1, 0.5: 0.2, 1: 0.3}),
        (cosine(0.4, 0), {0: 0.4, 0.25: 0.2 + 0.2 * math.sqrt(0.5), 0.5: 0.2, 1: 0, 2: 0}),
        (cosine(0.4, 0.2, warmup=0.5), {0: 0, 0.25: 0.2, 0.5: 0.4, 0.75: 0.3, 1: 0.2}),
        (adaptive(1e-3), {0: 1e-3, 0.5: 1e-3, 1: 1e-3}),
    ],
)
def test_values_by_hand(schedule, at):
    for progress, value in at.items():
        np.testing.assert_allclose(schedule.at(progress), value, rtol=1e-6, atol=1e-8)
    shares = jnp.array([*at])
    np.testing.assert_allclose(schedule.at(shares), [*at.values()], rtol=1e-6, atol=1e-8)


def test_the_ends_are_exact():
    for make in (linear, cosine):
        schedule = make(0.3, 0.1)
        assert schedule.at(0) == np.float32(0.3) and schedule.at(1) == np.float32(0.1)


def test_a_schedule_is_a_value():
    assert linear(1, 0) == linear(1.0, 0.0) != cosine(1, 0)
    assert len({linear(1, 0), linear(1, 0), linear(1, 0.5)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        linear(1, 0).kind = "cosine"


def test_the_numbers_may_be_traced():
    def value(start, end, warmup, progress):
        return cosine(start, end, warmup=warmup).at(progress)

    numbers = jnp.array([[0.4, 0.2, 0.0], [1.0, 0.0, 0.5]])
    found = jax.jit(jax.vmap(value, (0, 0, 0, None)))(*numbers.T, 0.25)
    expected = [cosine(*map(float, x[:2]), warmup=float(x[2])).at(0.25) for x in numbers]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- text -----------------------------------------------------------------------------------

FIELDS = {f.name: f for f in dataclasses.fields(ppo.Config)}
REAL = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*forms.FORMS]), st.tuples(REAL, REAL, REAL, REAL))
def test_text_is_the_schedule(kind, numbers):
    schedule = Schedule(kind, numbers[: len(forms.FORMS[kind].parameters)])
    assert forms.parse(str(schedule)) == schedule
    assert parse(FIELDS["learning_rate"], show(schedule)) == schedule
    assert to_json(schedule) == str(schedule) == repr(schedule)


@pytest.mark.parametrize(
    ("text", "schedule", "shown"),
    [
        ("cosine(3e-4, 0, warmup=0.05)", cosine(3e-4, 0, warmup=0.05), None),
        (" linear( 3E-4,0 ) ", linear(3e-4, 0), "linear(0.0003, 0.0)"),
        ("linear(end=0, start=1)", linear(1, 0), "linear(1.0, 0.0)"),
        ("linear(1, 0, 0.5)", linear(1, 0, warmup=0.5), "linear(1.0, 0.0, warmup=0.5)"),
        ("constant(2)", constant(2), "constant(2.0)"),
        ("adaptive(1e-3, 0.02)", adaptive(1e-3, 0.02), "adaptive(0.001, target_kl=0.02)"),
    ],
)
def test_text_as_people_write_it(text, schedule, shown):
    assert forms.parse(text) == schedule
    assert str(schedule) == (shown or "cosine(0.0003, 0.0, warmup=0.05)")


def test_numbers_of_numpy_are_shown_as_numbers():
    assert str(linear(np.float32(0.5), np.float64(0.1))) == "linear(0.5, 0.1)"


REFUSED = [
    ("learning_rate", "linaer(3e-4, 0)", "there is no schedule 'linaer'; did you mean linear"),
    ("learning_rate", "step(3e-4, 0)", "there are: constant, linear, cosine, adaptive"),
    ("learning_rate", "linear(3e-4)", "it takes linear.start, end, warmup=0.0.; end is missing"),
    ("learning_rate", "constant()", "value is missing"),
    ("learning_rate", "linear(1, 0, 0, 0)", "it takes linear.start, end, warmup=0.0."),
    ("learning_rate", "linear(1, 0, warm=0.1)", "linear has no 'warm'; did you mean warmup"),
    ("learning_rate", "linear(1, start=2)", "start is given twice"),
    ("learning_rate", "linear(fast, 0)", "'fast' is not a number"),
    ("learning_rate", "linear(1, 0", "write linear.3e-4, 0., cosine"),
    ("learning_rate", "linear(nan, 0)", "its start must be a finite number"),
    ("learning_rate", "linear(1, inf)", "its end must be a finite number"),
    ("learning_rate", "linear(-1, 0)", "its start must be >= 0"),
    ("learning_rate", "cosine(1, -0.1)", "its end must be >= 0"),
    ("learning_rate", "constant(-1)", "its value must be >= 0"),
    ("learning_rate", "linear(1, 0, warmup=1)", "its warmup must be >= 0 and < 1"),
    ("learning_rate", "linear(1, 0, warmup=-0.1)", "its warmup must be >= 0 and < 1"),
    ("learning_rate", "adaptive(1e-3, 0)", "its target_kl must be > 0"),
    ("learning_rate", "adaptive(1e-3, low=-1)", "its low must be >= 0"),
    ("learning_rate", "adaptive(1)", "its start must be >= low = 1e-05 and <= high = 0.01"),
    ("learning_rate", "adaptive(1e-6)", "its start must be >= low = 1e-05 and <= high = 0.01"),
    ("clip_eps", "linear(0.2, 0)", "its end must be > 0"),
    ("clip_eps", "constant(0.2, warmup=0.1)", "a warm-up begins at 0, but clip_eps must be > 0"),
    ("clip_eps", "adaptive(0.2)", "only the learning rate of an algorithm that reports approx_kl"),
    ("entropy_coef", "adaptive(0.01)", "only the learning rate"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_line(name, text, message, capsys):
    """From Python, JSON and --vary, and on the command line with exit code 2."""
    with pytest.raises(ConfigError, match=f"^{name} is .*{message}") as error:
        configs.make(preset="none", **{name: text})
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        parsed = parse_vary([f"{name}={text}"], FIELDS)
        check(FIELDS[name], parsed[name][0])
    with pytest.raises(SystemExit) as stop:
        train_command.main(["--preset", "none", f"--{name.replace('_', '-')}", text])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said.startswith(f"error: {name} is") and "\n" not in said


@pytest.mark.parametrize("value", ["fast", "linear", [1.0], True])
def test_what_is_neither_a_number_nor_a_schedule_is_refused(value, capsys):
    with pytest.raises(ConfigError, match="it must be a number or a schedule"):
        configs.make(preset="none", learning_rate=value)
    if isinstance(value, str):
        with pytest.raises(SystemExit) as stop:
            train_command.main(["--learning-rate", value])
        assert stop.value.code == 2 and "a number or a schedule" in capsys.readouterr().err


def test_numbers_of_python_are_checked_too():
    with pytest.raises(ConfigError, match="its end must be a finite number"):
        configs.make(preset="none", learning_rate=linear(1e-3, "0"))
    with pytest.raises(ConfigError, match="its start must be a finite number"):
        configs.make(preset="none", learning_rate=linear(True, 0))


def test_options_without_schedules_refuse_them():
    for value in ("linear(0.9, 1)", linear(0.9, 1), lambda progress: progress):
        with pytest.raises(ConfigError, match="gamma is .*; it must be of type float"):
            configs.make(preset="none", gamma=value)


@pytest.mark.parametrize("algorithm", ["a2c", "actor_critic", "trpo"])
def test_a_rate_adapts_only_where_the_divergence_is_measured(algorithm):
    with pytest.raises(ConfigError, match="adaptive.*an algorithm that reports approx_kl"):
        configs.make(preset="none", algorithm=algorithm, learning_rate=adaptive(1e-3))
    with pytest.raises(ConfigError, match="adaptive.*an algorithm that reports approx_kl"):
        sgd.from_config(ALGORITHMS[algorithm].Config(learning_rate=adaptive(1e-3)))


@pytest.mark.parametrize("value", [linear(1e-3, 0), constant(1e-3, warmup=0.1), lambda p: 1e-3])
def test_a_schedule_that_could_never_move_is_refused(value):
    with pytest.raises(ConfigError, match="learning_rate is .*varies over anneal_timesteps"):
        configs.make(preset="none", learning_rate=value, anneal_timesteps=math.inf)
    with pytest.raises(ConfigError, match="infinite or unknown"):
        ppo.make(POLICY, ppo.Config(learning_rate=value))


def test_what_does_not_move_needs_no_horizon():
    for value in (constant(1e-3), adaptive(1e-3), 1e-3):
        configs.make(preset="none", learning_rate=value, anneal_timesteps=math.inf)
        ppo.make(POLICY, ppo.Config(learning_rate=value))


def test_an_optimiser_of_ones_own_counts_no_updates():
    with pytest.raises(
        ConfigError, match="clip_eps is a schedule, .*custom optimizer are not counted"
    ):
        ppo.make(POLICY, ppo.Config(clip_eps=linear(0.2, 0.1)), optax.sgd(0.1))
    ppo.make(POLICY, ppo.Config(learning_rate=linear(0.2, 0.1)), optax.sgd(0.1))


# --- where options come from ----------------------------------------------------------------


def from_command_line(*arguments):
    return train_command._parse([*arguments], flags.base_config([*arguments]), {})[0]


def test_python_json_toml_and_the_command_line_mean_the_same(tmp_path):
    text = "cosine(3e-4, 0, warmup=0.05)"
    values = {"learning_rate": text, "clip_eps": "linear(0.2, 0.1)", "entropy_coef": "0.01"}
    python = configs.make(
        preset="none",
        learning_rate=cosine(3e-4, 0, warmup=0.05),
        clip_eps=linear(0.2, 0.1),
        entropy_coef=0.01,
    )
    assert configs.make(preset="none", **values | {"entropy_coef": 0.01}) == python
    stored = configs.to_json(python)
    assert stored["learning_rate"] == "cosine(0.0003, 0.0, warmup=0.05)"
    assert configs.from_json(json.loads(json.dumps(stored))) == python
    file = tmp_path / "a.toml"
    file.write_text(f'learning-rate = "{text}"\nclip_eps = "linear(0.2, 0.1)"\nentropy_coef = 0.01')
    assert from_command_line("--preset", "none", "--config", str(file)) == python
    words = [w for n, v in values.items() for w in (f"--{n.replace('_', '-')}", v)]
    assert from_command_line("--preset", "none", *words) == python
    assert from_command_line("--config", str(file), "--preset", "none", "--seed", "1") == (
        dataclasses.replace(python, seed=1)
    )


def test_help_says_that_a_schedule_is_a_value(capsys):
    with pytest.raises(SystemExit):
        from_command_line("--learning-rate", "linear(3e-4, 0)", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "--learning-rate FLOAT|SCHEDULE" in said and "--gamma FLOAT " in said


def test_parentheses_protect_the_commas_of_a_list():
    text = "learning_rate=1e-3, linear(3e-4, 0) ,cosine(1e-3,1e-4,warmup=0.1)"
    varied = parse_vary([text], FIELDS)
    assert varied == {
        "learning_rate": [1e-3, linear(3e-4, 0), cosine(1e-3, 1e-4, warmup=0.1)],
    }
    assert label({"learning_rate": linear(3e-4, 0)}) == "learning_rate=linear(0.0003, 0.0)"
    with pytest.raises(ConfigError, match="repeats a value"):
        parse_vary(["learning_rate=linear(3e-4, 0),linear(0.0003,0)"], FIELDS)


def test_language_models_have_them_too():
    values, _ = language_command._values(
        "ppo",
        ["--learning-rate", "cosine(1e-5, 0, warmup=0.1)", "--clip-eps", "linear(0.2, 0.1)"],
        language_command.KINDS["ppo"],
    )
    assert values["learning_rate"] == cosine(1e-5, 0, warmup=0.1)
    assert values["clip_eps"] == linear(0.2, 0.1)
    flat = as_json(values)
    assert json.loads(json.dumps(flat))["clip_eps"] == "linear(0.2, 0.1)"
    assert language_command.restored(flat, language_command.KINDS["ppo"]) == values
    sft = language_command.KINDS["sft"]
    with pytest.raises(ConfigError, match="an algorithm that reports approx_kl"):
        language_command._values("sft", ["--learning-rate", "adaptive(1e-3)"], sft)


# --- in an update ---------------------------------------------------------------------------

POLICY = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))


@functools.cache
def case():
    """(parameters, rows) whose ratios leave the clip range during the epochs."""
    key = jax.random.key(0)
    obs = jax.random.normal(key, (64, 3))
    params = POLICY.init(key, obs)
    dist, value = POLICY.apply(params, obs)
    action = dist.sample(key)
    rows = Batch(
        obs, action, dist.log_prob(action), value, obs[:, 0], value + obs[:, 1], jnp.ones(64)
    )
    return params, rows


def updated(updates, config, method=ppo):
    """(LearnerState, metrics) of one update after a given number of updates."""
    algorithm, (params, rows) = method.make(POLICY, config), case()
    learner = algorithm.init(jax.random.key(0), rows.obs)
    state = learner.opt_state._replace(updates=jnp.int32(updates))
    learner = dataclasses.replace(learner, params=params, opt_state=state)
    return jax.jit(algorithm.update)(jax.random.key(1), learner, rows)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_scheduled_clip_range_is_that_of_the_update():
    """After half of 8 updates of 64 steps, the loss uses the schedule's current value, which
    differs from the initial one."""
    options = {"learning_rate": constant(0.05), "epochs": 8, "anneal_timesteps": 8 * 64.0}
    config = ppo.Config(clip_eps=linear(0.3, 0.1), **options)
    learner, metrics = updated(4, config)
    expected, plain = updated(4, ppo.Config(clip_eps=np.float32(0.2), **options))
    assert metrics["clip_eps"] == np.float32(0.2) and "clip_eps" not in plain
    assert_same(learner.params, expected.params)
    assert_same({n: metrics[n] for n in plain}, plain)
    first, beginning = updated(0, config)
    assert beginning["clip_eps"] == np.float32(0.3)
    assert beginning["loss"] != metrics["loss"]
    assert beginning["clip_fraction"] < metrics["clip_fraction"]
    assert metrics["learning_rate"] == beginning["learning_rate"] == np.float32(0.05)


def test_a_function_of_the_progress_is_a_schedule():
    options = {"learning_rate": 1e-2, "anneal_timesteps": 4 * 64.0}
    function = ppo.Config(entropy_coef=lambda p: 0.5 - 0.4 * p, **options)
    learner, metrics = updated(2, function)
    expected, _ = updated(2, ppo.Config(entropy_coef=linear(0.5, 0.1), **options))
    np.testing.assert_allclose(metrics["entropy_coef"], 0.3, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), learner.params, expected.params
    )
    # After the horizon, the schedule keeps its final value.
    np.testing.assert_allclose(updated(9, function)[1]["entropy_coef"], 0.1, rtol=1e-6)


def test_functions_are_checked_and_cannot_be_stored():
    for function, message in (
        (lambda p: 0.5 - p, r"gives -0.5 at 1.0; it must give one number >= 0"),
        (lambda p: "x", "gives 'x' at 0.0"),
        (lambda p: jnp.ones(2), "at 0.0; it must give one number"),
    ):
        with pytest.raises(ConfigError, match=f"learning_rate is a function.*{message}"):
            configs.make(preset="none", learning_rate=function)
    config = configs.make(preset="none", learning_rate=lambda progress: 1e-3 * (1 - progress))
    with pytest.raises(ConfigError, match="a function of the progress, which no file can hold"):
        configs.to_json(config)
    static, floats = configs.split(config)
    assert "learning_rate" not in floats and configs.merge(static, floats) == (
        configs.resolve(config)
    )


def small(**changes):
    values = {"num_envs": 4, "num_steps": 16, "total_timesteps": 640, "hidden": (8,)}
    return configs.make(**{"preset": "none"} | values | changes)


@functools.cache
def middle_of(static):
    """A function floats -> metrics of the update after half of a run of ten updates."""

    @jax.jit
    def middle(floats):
        program = build(configs.merge(static, floats))
        state = program.init(jax.random.key(0))
        opt_state = state.learner.opt_state._replace(updates=jnp.int32(5))
        learner = dataclasses.replace(state.learner, opt_state=opt_state)
        return program.step(dataclasses.replace(state, learner=learner))[1]

    return middle


def middle(config):
    static, floats = configs.split(config)
    return middle_of(static)(floats)


OF_EACH = {
    "reinforce": {"env": "Pendulum-v1", "num_steps": 200, "total_timesteps": 8000},
    "actor_critic": {},
    "a2c": {},
    "ppo_kl": {},
    "ppo": {},
}


@pytest.mark.parametrize("algorithm", [*OF_EACH])
def test_every_algorithm_follows_the_schedule_of_its_entropy(algorithm):
    """An update in the middle of a run equals the update with the schedule's current value."""
    make = functools.partial(small, algorithm=algorithm, **OF_EACH[algorithm])
    metrics = middle(make(entropy_coef=linear(0.5, 0.1)))
    same, other = middle(make(entropy_coef=0.3)), middle(make(entropy_coef=0.5))
    assert metrics["entropy_coef"] == np.float32(0.3) and "entropy_coef" not in same
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5, atol=1e-5)
    assert abs(metrics["loss"] - other["loss"]) > 0.05  # 0.2 nats of an entropy of 0.6 and more


def test_the_rate_of_trpos_critic_follows_its_schedule():
    metrics = middle(small(algorithm="trpo", learning_rate=cosine(1e-3, 0)))
    np.testing.assert_allclose(metrics["learning_rate"], 5e-4, rtol=1e-6)


def test_language_models_follow_schedules_over_their_updates():
    """The horizon is the number of updates, whether a constant rate is annealed or not."""
    from test_rlhf_train import build as build_language

    hyper = {"clip_eps": linear(0.3, 0.1), "learning_rate": 1e-3}
    for anneal, rate in ((True, linear(1e-3, 1e-4)), (False, linear(1e-3, 1e-4)), (False, None)):
        options = hyper | {"anneal": anneal} | ({"learning_rate": rate} if rate else {})
        program = build_language({"updates": 4}, options)
        state, step = program.init(jax.random.key(0)), jax.jit(program.step)
        for _ in range(3):
            state, metrics = step(state, program.frozen)
        np.testing.assert_allclose(metrics["clip_eps"], 0.2, rtol=1e-6)
        wanted = rate.at(0.5) if rate else 1e-3
        np.testing.assert_allclose(metrics["learning_rate"], wanted, rtol=1e-6)


def test_supervised_steps_follow_a_schedule():
    learner = supervised.init(
        jax.random.key(0), {"w": jnp.ones(3)}, supervised.Config(learning_rate=cosine(1e-2, 0))
    ).learner
    rates = []
    for _ in range(4):
        learner = sgd.anneal(learner, cosine(1e-2, 0), 4, 1)
        rates.append(float(learner.opt_state.learning_rate))
    np.testing.assert_allclose(rates, cosine(1e-2, 0).at(jnp.arange(4) / 4), rtol=1e-6)


# --- over a run -----------------------------------------------------------------------------


@functools.cache
def program_of(static):
    return jax.jit(lambda floats, key: make_train(configs.merge(static, floats))(key))


def trained(**changes):
    """The floats are arguments of the program, as in runs and sweeps."""
    static, floats = configs.split(small(**changes))
    return program_of(static)(floats, jax.random.key(3))


def trained_with_constants(**changes):
    return jax.jit(make_train(small(**changes)))(jax.random.key(3))


def run(config, options):
    """The exit code of a run."""
    return train_run(config, options).exit_code


@pytest.mark.parametrize("train", [trained, trained_with_constants])
@pytest.mark.parametrize(
    ("schedule", "horizon"), [(linear(3e-4, 0), None), (constant(3e-4), math.inf)]
)
def test_a_number_is_a_schedule_too(schedule, horizon, train):
    """linear(x, 0) over the run, or constant(x) with an infinite horizon.

    Learning rates have the same bits if they are computed from arguments, and so do all results of
    the program of a run; for constants, XLA folds and fuses operations differently.
    """
    state, metrics = train(learning_rate=3e-4, anneal_timesteps=horizon)
    scheduled, same = train(learning_rate=schedule)
    assert metrics.keys() == same.keys()
    if train is trained:
        np.testing.assert_array_equal(same["learning_rate"], metrics["learning_rate"])
    for name in ("learning_rate", "loss", "entropy", "value_loss"):
        np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5, atol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        scheduled.learner.params,
        state.learner.params,
    )


def test_the_rate_of_a_run_is_the_schedule_before_each_update():
    _, metrics = trained(learning_rate=cosine(1e-2, 1e-3, warmup=0.2), entropy_coef=linear(0.1, 0))
    before = np.arange(10) / 10
    expected = cosine(1e-2, 1e-3, warmup=0.2).at(before)
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy_coef"], linear(0.1, 0).at(before), rtol=1e-5)
    _, short = trained(learning_rate=linear(1e-2, 1e-3), anneal_timesteps=320.0)
    expected = linear(1e-2, 1e-3).at(before * 2)
    np.testing.assert_allclose(short["learning_rate"], expected, rtol=1e-5)


# --- the adaptive learning rate -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "kl", "following"),
    [
        (3e-3, 0.021, 2e-3),
        (3e-3, 0.02, 3e-3),
        (3e-3, 0.01, 3e-3),
        (3e-3, 0.005, 3e-3),
        (3e-3, 0.0049, 4.5e-3),
        (3e-3, 0.0, 3e-3),
        (3e-3, -1e-4, 3e-3),
        (3e-3, math.nan, 3e-3),
        (1.2e-5, 1.0, 1e-5),
        (8e-3, 0.001, 1e-2),
    ],
)
def test_the_rule_by_hand(rate, kl, following):
    found = adapt(jnp.float32(rate), jnp.float32(kl), 0.01, low=1e-5, high=1e-2)
    np.testing.assert_allclose(found, following, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["ppo", "ppo_kl"])
def test_an_adaptive_rate_is_the_rule_after_each_update(algorithm):
    schedule = adaptive(1e-3, 0.005, low=1e-4, high=5e-3)
    state, metrics = trained(algorithm=algorithm, learning_rate=schedule)
    rates, kls = metrics["learning_rate"], metrics["approx_kl"]
    assert rates[0] == np.float32(1e-3)
    following = adapt(rates, kls, 0.005, low=1e-4, high=5e-3)
    np.testing.assert_allclose(rates[1:], following[:-1], rtol=1e-6)
    np.testing.assert_allclose(state.learner.opt_state.learning_rate, following[-1], rtol=1e-6)
    assert len(set(rates.tolist())) > 3


def test_the_numbers_of_the_rule_are_those_of_the_schedule():
    _, metrics = trained(learning_rate=adaptive(1e-3, 1e6, high=2e-3))
    np.testing.assert_allclose(metrics["learning_rate"][:3], [1e-3, 1.5e-3, 2e-3], rtol=1e-6)
    _, metrics = trained(learning_rate=adaptive(1e-3, 1e-9, low=5e-4))
    np.testing.assert_allclose(metrics["learning_rate"][:3], [1e-3, 1e-3 / 1.5, 5e-4], rtol=1e-6)


def test_an_update_that_measures_no_divergence_says_so():
    _, _, end = sgd.from_config(ppo.Config(learning_rate=adaptive(1e-3)))
    config = ppo.Config()
    learner, rows = sgd.init(case()[0], sgd.make_optimizer()), case()[1]
    with pytest.raises(ConfigError, match="requires the metric approx_kl .* reports .*loss"):
        end(learner, rows, config, {"loss": jnp.zeros(())})


# --- one program for all numbers, checkpoints -----------------------------------------------

POINTS = [
    {"learning_rate": linear(1e-2, 0), "clip_eps": linear(0.3, 0.1)},
    {"learning_rate": linear(3e-3, 1e-3, warmup=0.3), "clip_eps": linear(0.2, 0.2)},
]


def test_schedules_that_differ_in_numbers_share_a_program():
    config = small(**POINTS[0])
    static, floats = configs.split(config)
    assert floats["learning_rate.start"] == 1e-2 and floats["clip_eps.end"] == 0.1
    assert floats["learning_rate.warmup"] == 0 and "learning_rate" not in floats
    assert hash(static) == hash(configs.split(small(**POINTS[1]))[0])
    assert {*configs.float_names(static)} == floats.keys()
    assert configs.merge(static, floats) == configs.resolve(config)
    kinds = (linear(1e-2, 0), cosine(1e-2, 0), 1e-2, adaptive(1e-2), linear(1e-3, 0))
    groups = group_agents([small(learning_rate=value) for value in kinds], [0])
    assert [g.agents for g in groups] == [(0, 4), (1,), (2,), (3,)]


def test_a_vmapped_sweep_is_its_runs():
    """The program is traced once; each agent equals a run with its own values."""
    traces = []

    def train(floats, key):
        traces.append(floats)
        return make_train(configs.merge(static, floats))(key)

    split = [configs.split(small(**point)) for point in POINTS]
    static = split[0][0]
    stacked = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *(floats for _, floats in split))
    keys = jnp.stack([jax.random.key(3)] * 2)
    _, together = jax.jit(jax.vmap(train))(stacked, keys)
    assert len(traces) == 1
    for i, point in enumerate(POINTS):
        _, alone = trained(**point)
        for name in ("learning_rate", "clip_eps"):
            np.testing.assert_allclose(together[name][i], alone[name], rtol=1e-6)
        for name in ("loss", "entropy", "approx_kl"):  # widths round differently
            np.testing.assert_allclose(together[name][i], alone[name], rtol=1e-3, atol=1e-4)


def test_a_sweep_of_adaptive_rates():
    values = [adaptive(1e-3), adaptive(1e-3, 1e-9), "adaptive(1e-3, 1e6)"]
    _, metrics = run_sweep(small(), {"learning_rate": values}, 1)
    rates = metrics["learning_rate"][:, 0]
    np.testing.assert_allclose(rates[1][:3], [1e-3, 1e-3 / 1.5, 1e-3 / 2.25], rtol=1e-6)
    np.testing.assert_allclose(rates[2][:3], [1e-3, 1.5e-3, 2.25e-3], rtol=1e-6)
    _, alone = trained(learning_rate=adaptive(1e-3))
    np.testing.assert_allclose(rates[0][:3], alone["learning_rate"][:3], rtol=1e-6)


def test_a_sweep_on_disk_has_schedules(tmp_path):
    path = tmp_path / "a"
    words = [
        "--preset", "none", "--num-envs", "4", "--num-steps", "16", "--total-timesteps", "128",
        "--hidden", "8", "--vary", "learning_rate=linear(1e-3, 0),linear(1e-2,0)",
        "--eval-episodes", "2", "--seeds", "1", "--run-dir", str(path),
    ]  # fmt: skip
    assert sweep_command.run_command(words) == 0
    assert "linear(0.01, 0.0)" in (path / "table.md").read_text()
    before = (path / "agents.csv").read_text()
    assert '"linear(0.001, 0.0)"' in before
    assert sweep_command.run_command([*words, "--resume"]) == 0
    assert (path / "agents.csv").read_text() == before
    with pytest.raises(ConfigError, match="these differ: learning_rate"):
        other = [w.replace("linear(1e-2,0)", "linear(1e-2,1e-3)") for w in words]
        sweep_command.run_command([*other, "--resume"])


@pytest.mark.parametrize("rate", ["adaptive(1e-3, target_kl=0.005)", "cosine(0.01, 0.0)"])
def test_a_run_is_resumed_where_its_rate_was(rate, tmp_path):
    """Stopped after half of the updates, as a shorter run with the same horizon."""
    options = {"eval_episodes": 0, "checkpoint_seconds": 0.0}
    make = functools.partial(small, learning_rate=rate, anneal_timesteps=640.0)
    assert run(make(), RunOptions(run_dir=tmp_path / "whole", **options)) == 0
    assert run(make(total_timesteps=320), RunOptions(run_dir=tmp_path / "half", **options)) == 0
    saved = json.loads((tmp_path / "half" / "config.json").read_text())["config"]
    assert saved["learning_rate"] == rate.replace("1e-3", "0.001")
    assert run(make(), RunOptions(resume=tmp_path / "half", **options)) == 0
    rates = [
        [row["learning_rate"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "half")
    ]
    assert rates[0] == rates[1] and len({*rates[0]}) > 3
    states = [load(tmp_path / name)[2].learner for name in ("whole", "half")]
    assert_same(*states)


def test_other_numbers_are_another_run(tmp_path):
    options = {"eval_episodes": 0}
    path = tmp_path / "a"
    assert run(small(learning_rate="linear(1e-3, 0)"), RunOptions(run_dir=path, **options)) == 0
    words = ["--resume", str(path), "--learning-rate", "linear(1e-3, 1e-4)"]
    with pytest.raises(SystemExit) as stop:
        train_command.main(words)
    assert stop.value.code == 2


def test_chunks_take_the_numbers_as_arguments():
    """The compiled program of a run also serves other values of the same schedule."""
    config = small(learning_rate=linear(1e-2, 0))
    static, floats = configs.split(config)
    chunk, state = (
        jax.jit(make_chunk(step_of(static), may_be_nan=MAY_BE_NAN)),
        jax.jit(build(config).init)(jax.random.key(0)),
    )
    for end in (0.0, 5e-3):
        _, metrics, _ = chunk(state, floats | {"learning_rate.end": end}, jnp.int32(10))
        expected = linear(1e-2, end).at(np.arange(10) / 10)
        np.testing.assert_allclose(metrics["learning_rate"][:10], expected, rtol=1e-5)
    assert chunk._cache_size() == 1


# --- the page -------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(capsys, tmp_path):
    page = documents.ROOT / "docs/configuration.md"
    printed = documents.run_python(page)
    assert capsys.readouterr().out.split() == printed == ["0.0015", "0.0025"]
    (toml,) = re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)
    (tmp_path / "a.toml").write_text(toml)
    config = from_command_line("--config", str(tmp_path / "a.toml"))
    assert config.hyper.learning_rate == cosine(3e-3, 0, warmup=0.05)
    assert config.hyper.clip_eps == linear(0.2, 0.1)
