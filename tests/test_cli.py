"""The command line: precedence, integers, help, and errors in one line with exit code 2."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ppo_jax.algorithms import ppo
from ppo_jax.cli import flags
from ppo_jax.cli import train as train_command
from ppo_jax.cli.evaluate import main as evaluate
from ppo_jax.cli.train import main as train
from ppo_jax.config import ConfigError, fields, to_json
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.train import build


def parse(*arguments: str):
    return train_command._parse(list(arguments), flags.base_config(list(arguments)), {})


def test_flags_are_the_fields_of_the_dataclasses():
    config, run = parse(
        "--env", "Pendulum-v1", "--preset", "none", "--num-envs", "16", "--gamma", "0.9",
        "--hidden", "32", "16", "--no-normalize-advantage", "--target-kl", "0.01", "--seed", "7",
        "--run-dir", "x", "--value-clip-eps", "None",
    )  # fmt: skip
    assert (config.env, config.num_envs, config.hidden, config.seed) == (
        "Pendulum-v1",
        16,
        (32, 16),
        7,
    )
    assert config.hyper == ppo.Config(gamma=0.9, normalize_advantage=False, target_kl=0.01)
    assert str(run.run_dir) == "x"


def test_arguments_of_the_environment_reach_it(capsys):
    config, _ = parse("--env", "Pong", "--env-args", "size=20", "frames=3", "difficulty=hard")
    assert config.env_args == ("size=20", "frames=3", "difficulty=hard")  # not the preset's
    env = build(config).env
    assert env.observation_space.shape == (20, 20, 3) and env.params.opponent_speed == 2.0
    for words, message in (
        (("--env", "Pong", "--env-args", "sise=20"), "no argument 'sise'; did you mean size"),
        (("--env-args", "gravit=1"), "CartPole-v1 has no parameter 'gravit'; did you mean gravity"),
    ):
        with pytest.raises(SystemExit) as stop:
            train([*words])
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["500000", "5e5", "500_000", "5E5"])
def test_integers_may_be_written_like_people_write_them(text):
    assert parse("--total-timesteps", text)[0].total_timesteps == 500_000


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many", "inf"])
def test_what_is_no_integer_is_refused(text):
    message = f"--num-envs is '{text}'; it must be a whole number >= 1"
    for words in (("--num-envs", text), (f"--num-envs={text}",), ("--num_envs", text)):
        with pytest.raises(ConfigError, match=message):
            parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gamma", "high"), "--gamma is 'high'; it must be a number >= 0 and <= 1"),
        (("--activation", "tahn"), "--activation is 'tahn'; it must be one of tanh, relu, silu"),
        (("--hidden", "64", "x"), "--hidden is 'x'; it must be a whole number >= 1"),
        (("--seed",), "--seed needs a value"),
        (("--target-kl", "some"), "--target-kl is 'some'; it must be a number > 0"),
    ],
)
def test_values_of_another_kind_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(*words)
    parse()
    parse("--target-kl", "None", "--hidden", "8", "8", "--activation", "relu")  # these are


def test_defaults_preset_file_flags_in_this_order(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text(
        'env = "Pendulum-v1"\nnum-envs = 32\ngamma = 0.5\nhidden = [8]\nanneal_timesteps = inf\n'
    )
    config, _ = parse("--config", str(file), "--gamma", "0.6")
    tuned, _ = parse("--env", "Pendulum-v1")
    assert config.hyper.gamma == 0.6  # flag over file
    assert (config.num_envs, config.hidden) == (32, (8,))  # file over preset
    assert config.hyper.epochs == tuned.hyper.epochs != ppo.Config().epochs  # preset over default
    assert config.hyper.anneal_timesteps == float("inf")


def test_numbers_in_files_are_what_they_look_like(tmp_path):
    (tmp_path / "a.toml").write_text("total_timesteps = 5e5\nanneal_timesteps = 5000000000")
    config, _ = parse("--config", str(tmp_path / "a.toml"))
    assert config.total_timesteps == 500_000 and config.hyper.anneal_timesteps == 5e9
    assert type(config.hyper.anneal_timesteps) is float


def test_a_flag_names_the_preset_before_a_file_does(tmp_path):
    (tmp_path / "a.toml").write_text('preset = "acrobot"')
    assert parse("--config", str(tmp_path / "a.toml"))[0].env == "Acrobot-v1"
    assert parse("--config", str(tmp_path / "a.toml"), "--preset", "pendulum")[0].env == (
        "Pendulum-v1"
    )


def test_the_configuration_of_a_run_is_a_file_too(tmp_path):
    config, _ = parse("--env", "Pendulum-v1", "--gamma", "0.123", "--anneal-timesteps", "inf")
    (tmp_path / "config.json").write_text(json.dumps({"config": to_json(config)}))
    assert parse("--config", str(tmp_path / "config.json"))[0] == config


def test_a_preset_brings_its_environment():
    assert parse("--preset", "pendulum")[0].env == "Pendulum-v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma = \nseed = 1", "is not valid TOML.*line 1"),
        ("gama = 0.5", "unknown option 'gama'; did you mean gamma"),
        ("gamma = 2.0", "gamma is 2.0; it must be"),
        ("gamma = 'x'", "gamma is 'x'; it must be of type float"),
        ("total_timesteps = 1.5", "total_timesteps is 1.5; it must be of type int"),
        ("hidden = 64", "hidden is 64; it must be of type tuple"),
        ("activation = ['tanh']", "activation is .'tanh'.; it must be of type str"),
        ("preset = 3", "preset is 3; it must be of type str"),
        ("algorithm = ['ppo']", "algorithm is .'ppo'.; it must be of type str"),
        ("env = 5", "env is 5; it must be of type str"),
        ("num-envs = 8\nnum_envs = 4", "sets num_envs twice"),
        ("run_dir = 'x'", "sets run_dir; give it on the command line, as --run-dir"),
        ("learning_rate = 1" + "0" * 400, "learning_rate is 1000*; it must be finite"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(tmp_path / "a.toml"))


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"cannot read nowhere.toml"):
        parse("--config", "nowhere.toml")


def test_help_documents_every_option_with_range_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--preset", "none", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in fields("ppo").items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.metadata["doc"].split()[0] in text
    assert ">= 0 and <= 1" in text  # gamma's range
    assert "(default: 0.99)" in text


def test_a_mistyped_flag_gets_a_hint():
    with pytest.raises(ConfigError, match="did you mean --total-timesteps"):
        parse("--total-timestep", "5")


def command(*arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env", "CartPole-v9"), "unknown environment 'CartPole-v9'; did you mean CartPole-v1"),
        (("--preset", "cartpool"), "unknown preset 'cartpool'; did you mean cartpole"),
        (("--algorithm", "popo"), "unknown algorithm 'popo'; there are: a2c"),
        (("--gamma", "nan"), "gamma is nan; it must be >= 0 and <= 1"),
        (("--minibatches", "3"), "does not divide into 3 minibatches"),
        (("--total-timesteps", "10"), "less than one rollout"),
        (("--resume", "/nowhere"), "is not a run directory"),
        (("--log-every", "0"), "log_every is 0; it must be >= 1"),
        (("--resume", "/dev/null"), "is not a run directory"),
        (("--config", "/nowhere/config.json"), "cannot read /nowhere/config.json"),
        (("--config",), "expected one argument; see --help"),
        (("--preset", ""), "unknown preset ''"),
        (("--total-timesteps", "1e30"), "1.95e+27 rollouts; it must be at most"),
        (("--seed", "4294967296"), "seed is 4294967296; it must be >= 0 and <= 4294967295"),
        (("--num-envs", "1e6", "--total-timesteps", "1e12", "--minibatches", "7"), "[4, 5, 8]"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train([*arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing was written


SMALL = ("--preset", "none", "--num-envs", 4, "--num-steps", 16, "--total-timesteps", 640,
         "--hidden", 8)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    result = command("ppo_jax.train", *SMALL, "--run-dir", path, "--eval-episodes", 8)
    assert result.returncode == 0, result.stderr
    assert "greedy" in result.stdout and "640" in result.stdout
    return path


def test_evaluate_reloads_the_agent(trained, tmp_path, capsys):
    gif = tmp_path / "a.gif"
    with pytest.raises(SystemExit) as stop:
        evaluate([str(trained), "--episodes", "16", "--gif", str(gif)])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "16 greedy episodes" in printed
    from PIL import Image

    with Image.open(gif) as image:
        assert image.n_frames > 5
    with pytest.raises(SystemExit) as stop:
        evaluate([str(trained), "--episodes", "16", "--stochastic", "--checkpoint", "best"])
    assert not stop.value.code
    assert "16 sampled episodes" in capsys.readouterr().out


def fails(capsys, entry, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        entry([str(a) for a in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_evaluate_refuses_what_is_not_there(trained, tmp_path, capsys):
    assert "is not a run directory" in fails(capsys, evaluate, tmp_path)
    assert "available: latest, best, 10" in fails(capsys, evaluate, trained, "--checkpoint", "99")
    assert "no directory" in fails(capsys, evaluate, trained, "--gif", "/nowhere/a.gif")
    assert "must end in .gif" in fails(capsys, evaluate, trained, "--gif", "a.foo")
    assert "--seed is -1" in fails(capsys, evaluate, trained, "--seed", -1)
    assert "--episodes is 0" in fails(capsys, evaluate, trained, "--episodes", 0)


def test_resume_refuses_another_configuration(trained, capsys):
    error = fails(capsys, train, "--resume", trained, "--gamma", 0.5, "--num-envs", 8)
    assert "num_envs (was 4, given 8)" in error and "gamma (was 0.99, given 0.5)" in error
    error = fails(capsys, train, "--resume", trained, "--run-dir", "elsewhere")
    assert "omit --run-dir" in error
    error = fails(capsys, train, "--resume", trained, "--preset", "pendulum")
    assert "no --preset, no --config" in error
    saved = (trained / "config.json").read_text()
    error = fails(capsys, train, "--resume", trained, "--total-timesteps", 128)
    assert "already made 640 environment steps" in error
    assert (trained / "config.json").read_text() == saved


@pytest.mark.slow
def test_resume_to_a_larger_total_stretches_the_annealing(trained):
    result = command(
        "ppo_jax.train", "--resume", trained, "--total-timesteps", 1280, "--eval-episodes", 0
    )
    assert result.returncode == 0, result.stderr
    saved = json.loads((trained / "config.json").read_text())
    assert saved["config"]["total_timesteps"] == 1280 and len(saved["sessions"]) == 2
    assert saved["config"]["anneal_timesteps"] is None and saved["run"]["eval_episodes"] == 0
    rates = [r["learning_rate"] for r in read_metrics(trained / "metrics.jsonl")]
    # Ten updates of a run of 640 steps, then ten of a run of 1280.
    expected = [*np.linspace(1, 0, 11)[:10], *np.linspace(1, 0, 21)[10:20]]
    np.testing.assert_allclose(
        rates, saved["config"]["learning_rate"] * np.array(expected), rtol=1e-5
    )
    kept = command("ppo_jax.train", "--resume", trained)
    assert kept.returncode == 0 and "greedy" not in kept.stdout


def test_damaged_configurations_are_named(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in fails(capsys, train, "--resume", tmp_path)
