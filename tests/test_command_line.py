"""The command line as a new user meets it: quick answers, names of other libraries, lists, what to
do next."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppo_jax import suites
from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.cli import flags, listing
from ppo_jax.cli import main as front
from ppo_jax.cli import rlhf as language
from ppo_jax.cli import sweep as sweep_command
from ppo_jax.cli import train as train_command
from ppo_jax.cli import words as command_words
from ppo_jax.cli.groups import GROUPS, ORDER
from ppo_jax.config import (
    ConfigError,
    commands,
    fields,
    foreign,
    installation,
    make,
    standard,
)
from ppo_jax.config import rlhf as language_options
from ppo_jax.config.presets import PRESETS
from ppo_jax.config.toml import to_toml
from ppo_jax.runs import terminal

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    """The output of a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# Command lines that are answered without JAX, and the exit code of each.
QUICK = [
    (["--help"], 0),
    (["--version"], 0),
    (["envs"], 0),
    (["presets"], 0),
    (["algorithms"], 0),
    (["train", "--help"], 0),
    (["train", "--print-config"], 0),
    (["train", "--env", "LunarLander-v3"], 2),
    (["train", "--lr", "1e-3"], 2),
    (["train", "--gamma", "2"], 2),
    (["train", "--minibatches", "7"], 2),
    (["train", "--algorithm", "popo"], 2),
    (["train", "--resume", "/nowhere"], 2),
    (["evaluate", "--help"], 0),
    (["evaluate", "x", "--episodes", "0"], 2),
    (["sweep", "--help"], 0),
    (["sweep", "--env", "Ant-v5"], 2),
    (["sweep", "--vary", "gama=1"], 2),
    (["sweep", "--vary", "gamma=0.9,0.99", "--print-config"], 0),
    (["evaluate"], 2),
    (["train", "--policy", "MlpPolicy"], 2),
    (["train", "--gif", "x"], 2),
    (["help", "train"], 0),
    (["export", "--help"], 0),
    (["rlhf", "--help"], 0),
    (["rlhf", "ppo", "--help"], 0),
    (["rlhf", "sft", "--batch-size", "0"], 2),
    (["check-env", "--help"], 0),
    (["plot", "--help"], 0),
]


SLOW = ("jax", "flax", "optax", "orbax", "matplotlib", "scipy.stats", "gymnax", "gymnasium")


def test_help_and_refusals_do_not_import_jax():
    """In one process, for the time that starting Python takes; a module that one of the commands
    imports is seen after the last of them."""
    code = f"""
import contextlib, io, sys
from ppo_jax.cli.main import main
for words, expected in {QUICK!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    assert code == expected, (words, code, err.getvalue())
    loaded = {{*{SLOW!r}}} & {{*sys.modules}}
    assert not loaded, (words, loaded)
"""
    python(code)


@pytest.mark.parametrize("module", ["train", "evaluate", "sweep"])
@pytest.mark.slow
def test_the_old_names_of_commands_answer_without_jax(module):
    words = [sys.executable, "-X", "importtime", "-m", f"ppo_jax.{module}", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0 and "python -m ppo_jax" in result.stdout.replace("\n", " ")
    assert not re.search(r"\| +jax\n", result.stderr)


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "LunarLander-v3",
            "suite gymnasium has LunarLander-v3: use --env gymnasium:LunarLander-v3",
        ),
        ("LunarLander-v2", "use --env gymnasium:LunarLander-v3"),
        ("Ant-v5", "use --env gymnasium:Ant-v5"),
        ("HalfCheetah-v4", "use --env gymnasium:HalfCheetah-v4"),
        ("ant", "use --env brax:ant"),
        ("Breakout-v5", "use --env ale:ALE/Breakout-v5"),
        ("Breakout-v5", "use --env Breakout-MinAtar"),
        ("Snake-v1", "use --env jumanji:Snake-v1"),
        ("MiniGrid-Empty-8x8-v0", "use --env navix:Navix-Empty-8x8-v0"),
        ("CartPole-v2", "did you mean CartPole-v1?"),
        ("Cartpole-v1", "use --env CartPole-v1"),
        ("MountainCr-v0", "did you mean MountainCar-v0"),
        ("zzzzzz", "`ppo-jax envs` lists the suites and their environments"),
    ],
)
def test_a_name_is_found_in_every_suite(name, shown):
    for command in (train_command._prepared, sweep_command._prepared):
        with pytest.raises(suites.UnknownEnvironment) as error:
            command(["--env", name])
        assert shown in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    without = lambda *missing: monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in missing else object()
    )
    without("brax", "Box2D")
    assert re.search(r'\(install it first: .*\[brax\]"\)$', suites.how_to_use("brax", "ant"))
    assert suites.missing_requirement("gymnasium", "LunarLander-v3") == "[box2d]"
    without("gymnasium", "mujoco")
    assert suites.missing_requirement("gymnasium", "Ant-v5") == "gymnasium[mujoco]"
    assert suites.missing_requirement("gymnasium", "Taxi-v4") == "[gymnasium]"
    without()
    assert suites.missing_requirement("gymnasium", "Ant-v5") == ""


def test_the_catalog_is_that_of_the_installed_suites():
    for suite in suites.SUITES:
        listed = suites.catalog()[suite]
        assert len({*listed}) == len(listed) and (listed or suite == "envpool")
    for suite in ("ppo_jax", "gymnax"):
        assert suites._is_current(suite)
        assert suites.catalog()[suite] == tuple(suites.module(suite).names())
    for suite, installed in suites.suites().items():
        if installed:
            assert {*suites.catalog()[suite]} <= {*suites.module(suite).names()}, suite
    assert {*suites.SUITES} == {*suites.ABOUT}


OTHERS = [
    ("--lr", "--learning-rate"),
    ("--LR", "--learning-rate"),
    ("--clip-coef", "--clip-eps"),
    ("--clip_range", "--clip-eps"),
    ("--n-envs", "--num-envs"),
    ("--NUM_ENVS", "--num-envs"),
    ("--ent-coef", "--entropy-coef"),
    ("--vf_coef", "--value-coef"),
    ("--n-steps", "--num-steps"),
    ("--n_epochs", "--epochs"),
    ("--num-minibatches", "--minibatches"),
    ("--env-id", "--env"),
    ("--device", "JAX_PLATFORMS=cpu"),
    ("--cuda", "JAX_PLATFORMS=cpu"),
    ("--batch-size", "--minibatches"),
    ("--track", "--wandb"),
    ("--wandb-project-name", "WANDB_PROJECT"),
    ("--capture-video", "--gif"),
    ("--anneal-lr", "constant(3e-4)"),
    ("--unroll_length", "--num-steps"),
    ("--total-timestep", "did you mean --total-timesteps"),
    ("--max-kl", "--max-kl is an option of the algorithm trpo"),
]


@pytest.mark.parametrize(("theirs", "ours"), OTHERS)
def test_flags_of_other_libraries_name_ours(theirs, ours):
    for given in ([theirs, "1"], [f"{theirs}=1"]):
        with pytest.raises(ConfigError, match=f"unknown option {theirs}; ") as error:
            train_command._prepared(given)
        assert ours in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        (sweep_command._prepared, "--lr", "--learning-rate"),
        (sweep_command._prepared, "--num-seeds", "--seeds"),
        (language._prepared, "sft --model-name-or-path", "--model"),
        (language._prepared, "ppo --num-generations", "--group-size"),
        (language._prepared, "ppo --beta", "--kl-coef"),
        (language._prepared, "generate --max-length", "--"),
    ],
)
def test_the_other_commands_know_them_too(command, theirs, ours):
    with pytest.raises(ConfigError, match="unknown option --") as error:
        command([*theirs.split(), "1"])
    assert ours in str(error.value).partition(";")[2]


def test_files_with_their_names_are_refused_with_ours(tmp_path):
    (tmp_path / "a.toml").write_text("lr = 1e-3")
    with pytest.raises(ConfigError, match="unknown option 'lr'; here it is learning_rate"):
        flags.base_config(["--config", str(tmp_path / "a.toml")])


def test_every_name_of_ours_in_the_table_is_an_option():
    own = {n for algorithm in CONFIGS for n in fields(algorithm)} | {*flags.RUN_OPTIONS}
    own |= {f for kinds in language.KINDS.values() for k in kinds for f in k.__dataclass_fields__}
    own |= {*sweep_command.OPTIONS, "episodes", "out"}
    own |= {f for kinds in language.OTHERS.values() for k in kinds for f in k.__dataclass_fields__}
    own |= {*language.StageOptions.__dataclass_fields__}
    assert {name for names in foreign.SAME.values() for name in names} <= own
    assert all(name == foreign.plain(name) for name in (*foreign.SAME, *foreign.INSTEAD))


HINTS = [
    ("rlhf ppo --batch-size 8", "num_prompts x group_size / minibatches"),
    ("rlhf sft --max-steps 1", "--updates counts gradient steps"),
    ("rlhf ppo --bf16", "write --dtype bfloat16"),
    ("rlhf ppo --total-episodes 9", "here it is --updates; --updates counts rollouts"),
    ("rlhf generate --num-return-sequences 2", "here it is --repeat"),
    ("evaluate x --num-episodes 5", "here it is --episodes"),
    ("evaluate x --deterministic", "greedy actions are the default"),
    ("train --episodes 5", "here it is --eval-episodes; the length of a run is --total-timesteps"),
    ("train --num_evals 3", "an interval in updates, not a number of evaluations"),
    ("train --save-freq 3", "--checkpoint-seconds counts seconds"),
    ("train --reward-scaling 3", "--normalize-reward is a switch"),
    ("train --use-lstm", "write --memory lstm"),
    ("train --no-anneal-lr", "constant(3e-4)"),
    ("train --no-norm-adv", "here it is --no-normalize-advantage"),
    ("train --no-clip-vloss", "--value-clip-eps None"),
    ("train --no-torch-deterministic", "a run with the same seed"),
    ("train --no-normalize-observations", "here it is --no-normalize-obs"),
    ("train --num-iterations 4", "the number of updates x --num-envs x --num-steps"),
    ("train --gif x", "--gif is an option of ppo-jax evaluate"),
    ("train --seeds 4", "--seeds is an option of ppo-jax sweep"),
    ("train -lr 1e-3", "unknown option -lr; here it is --learning-rate"),
    ("sweep --trials 4", "here it is --sample"),
    ("check-env --env X", "write the env without a flag: ppo-jax check-env ENV"),
    ("evaluate --run R", "write the run without a flag: ppo-jax evaluate RUN"),
    ("check-env CartPole-v1 --n 5", "ppo-jax check-env --help lists all options"),
    ("evaluate", "RUN is missing: ppo-jax evaluate RUN"),
    ("export --trust", "RUN is missing"),
    ("evaluate a b", "unknown word 'b'"),
    ("evaluate x --episodes ten", "--episodes is 'ten'; it must be a whole number"),
    ("export x --format torch", "it must be one of stablehlo, onnx, safetensors"),
    ("train cartpole", "write --preset cartpole"),
    ("train Pendulum-v1", "write --env Pendulum-v1"),
    ("train --num-envs 8 9", "--num-envs takes one value"),
    ("train --normalize-obs true", "write --normalize-obs or --no-normalize-obs"),
    ("train --no-normalize-obs=true", "write --normalize-obs or --no-normalize-obs"),
    ("train --hidden 64,64", "write --hidden 64 64"),
    ("train --learning-rate linear", "a number or a schedule, such as linear(3e-4, 0)"),
    ("sweep --learning-rate 1e-3,1e-4", "--vary learning_rate=1e-3,1e-4"),
    ("sweep --seeds 0 1 2", "--seeds is a number of seeds"),
    ("sweep --compare a", "--compare needs 2 values"),
]


@pytest.mark.parametrize(("line", "shown"), HINTS)
def test_a_refused_command_line_is_one_line_that_says_what_to_write(line, shown, capsys):
    with pytest.raises(SystemExit) as end:
        front.main(line.split())
    found = capsys.readouterr().err
    assert end.value.code == 2 and found.startswith("error: ") and found.count("\n") == 1
    assert shown in found


def test_a_hint_names_only_flags_of_its_command():
    commands = command_words._commands("")
    commands |= {
        "train": {*flags.START, *flags.RUN_OPTIONS, *fields("ppo")},
        "rlhf ppo": commands["ppo-jax rlhf ppo"] | {*flags.RUN_OPTIONS} - {"eval_episodes"},
    }
    for known in commands.values():
        for name in (*foreign.SAME, *foreign.INSTEAD, *foreign.NOTES):
            for written in (name, f"no_{name}"):
                hint = foreign.hint(written, known, switches=known)
                named = {n.removeprefix("no_") for n in foreign.named(hint)}
                assert written in known or named <= known, (written, hint)
    text = "ppo-jax evaluate RUN --gif FILE records; set --num-envs"
    assert foreign.named(text) == {"num_envs"}


@pytest.mark.parametrize("line", ["--preset None --config none --resume NONE", "--no-trust"])
def test_none_is_an_option_that_is_not_given(line, capsys):
    with pytest.raises(SystemExit) as end:
        train_command._prepared([*line.split(), "--print-config"])
    assert end.value.code == 0 and 'env = "CartPole-v1"' in capsys.readouterr().out
    given = flags.given_of(["--trust", "--no-trust"])
    assert not given.trust and flags.given_of(["--no-trust", "--trust"]).trust
    assert not flags.is_on("print_config", ["--print-config", "--no_print-config"])


@pytest.mark.parametrize(
    "line", ["train --hidden 64 64 -h", "train -h --lr 3", "train --env -h", "sweep --vary -h"]
)
def test_help_is_shown_wherever_it_is_asked_for(line, capsys):
    with pytest.raises(SystemExit) as end:
        front.main(line.split())
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: ppo-jax ") and "{None}" not in text


# --- options -----------------------------------------------------------------------------------


def test_help_has_groups_and_says_where_defaults_come_from(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train_command._prepared(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    groups = ["--preset", "environment options", "network options", "algorithm options",
              "run options", "logging options"]  # fmt: skip
    places = [text.index(group) for group in groups]
    assert places == sorted(places)
    words = " ".join(text.replace("│", " ").split())
    assert "(default: 0.98, from preset cartpole)" in words
    assert "(default: 0.95)" in words  # gae_lambda is the algorithm's own
    assert "mountain_car_continuous" not in words  # presets have a command of their own


@pytest.mark.parametrize(
    "words",
    ["", "rlhf", "envs", "presets", "algorithms", "benchmark", "plot", "sweep", "export",
     "check-env", "evaluate", "rlhf generate", "rlhf sft"],
)  # fmt: skip
def test_help_fits_into_80_columns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv(commands.VARIABLE, "python3 some/where/run.py")
    with pytest.raises(SystemExit) as end:
        front.main([*words.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "some/where/run.py" in text
    assert max(map(len, text.splitlines())) <= 80 and "(default: )" not in text


def test_a_usage_line_is_broken_between_options_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    usage = "\x1b[1musage:\x1b[0m ppo-jax check-env [-h] STR [--env-args [STR [STR ...]]]"
    lines = ["usage: ppo-jax check-env [-h] STR", "    [--env-args [STR [STR ...]]]"]
    assert listing.folded(usage) == "\n".join(lines)


def test_help_names_what_is_required(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for words, needed in (("rlhf sft", 2), ("rlhf ppo", 3), ("rlhf generate", 1), ("plot", 1)):
        with pytest.raises(SystemExit):
            front.main([*words.split(), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert text.count("(required)") == needed, words
        assert ("[FOLDER]" in text) == (words == "rlhf generate")


def test_every_option_of_a_group_exists():
    own = {n for algorithm in CONFIGS for n in fields(algorithm)} | {*flags.START}
    own |= {
        *flags.RUN_OPTIONS,
        *train_command.CLUSTER_OPTIONS,
        *language.StageOptions.__match_args__,
    }
    own |= {f for kinds in language.KINDS.values() for k in kinds for f in k.__dataclass_fields__}
    assert {name for names in GROUPS.values() for name in names} <= own
    assert {*GROUPS} == {*ORDER} - {""}


def test_help_texts_are_phrases():
    """No text begins with a preposition or a pronoun, and none is a single word."""
    records = [*flags.RUN_OPTIONS.values(), *flags.START.values(), *sweep_command.OPTIONS.values()]
    records += [f for algorithm in CONFIGS for f in fields(algorithm).values()]
    records_of = [*language.KINDS.values(), *language.OTHERS.values()]
    kinds = {k for kinds in records_of for k in kinds} | {language.StageOptions}
    records += [f for k in kinds for f in k.__dataclass_fields__.values() if "doc" in f.metadata]
    for field in records:
        first, *rest = field.metadata["doc"].split()
        banned = {"of", "at", "that", "which", "what", "how", "where", "its", "per", "by", "if"}
        assert first not in banned and len(rest) >= 1, field.metadata["doc"]


def test_printed_configurations_are_read_again(tmp_path, capsys):
    cases = [
        make("cartpole"),
        make("pong", seed=3),
        make(env="Pendulum-v1", algorithm="trpo", max_grad_norm=float("inf"), hidden=(8,)),
        make(algorithm="ppo_kl", kl_target=None, learning_rate="cosine(3e-4, 0, warmup=0.05)"),
        make(preset="none", algorithm="reinforce", total_timesteps=10**12, anneal_timesteps=5e9),
    ]
    for config in cases:
        (tmp_path / "a.toml").write_text(to_toml(config))
        assert flags.base_config(["--config", str(tmp_path / "a.toml")]) == config
    with pytest.raises(SystemExit) as end:
        train_command._prepared(["--preset", "acrobot", "--gamma", "0.5", "--print-config"])
    (tmp_path / "a.toml").write_text(capsys.readouterr().out)
    assert end.value.code == 0
    config = flags.base_config(["--config", str(tmp_path / "a.toml")])
    assert config == make("acrobot", gamma=0.5)


def test_the_names_that_the_command_line_lists_are_those_of_the_parts():
    from ppo_jax import networks
    from ppo_jax.algorithms import ALGORITHMS, actor_critic, reinforce
    from ppo_jax.algorithms import configs as written
    from ppo_jax.rlhf import algorithms, rewards

    assert tuple(networks.ACTIVATIONS) == standard.ACTIVATIONS
    assert tuple(networks.CONVOLUTIONS) == standard.CONVOLUTIONS
    assert (standard.DTYPES, standard.MEMORIES) == (networks.DTYPES, networks.MEMORIES)
    assert tuple(networks.FRAME_MIXES) == standard.FRAME_MIXES
    assert tuple(reinforce.BASELINES) == written.BASELINES
    assert tuple(actor_critic.ACTOR_WEIGHTS) == written.ACTOR_WEIGHTS
    assert {n: m.Config for n, m in ALGORITHMS.items()} == CONFIGS
    assert tuple(algorithms.ALGORITHMS) == language_options.ALGORITHMS
    assert tuple(algorithms.ADAMS) == language_options.ADAMS
    assert tuple(rewards.KL_ESTIMATORS) == language_options.KL_ESTIMATORS


# --- lists ------------------------------------------------------------------------------------


def lines(capsys, *words: str) -> list[str]:
    with pytest.raises(SystemExit) as end:
        front.main([*words])
    assert not end.value.code
    return capsys.readouterr().out.splitlines()


def test_lists_have_a_line_for_each(capsys):
    found = lines(capsys, "envs")
    assert {line.split()[0] for line in found if line[:1].isalpha()} == {*suites.SUITES}
    assert "Pong                   preset pong" in lines(capsys, "envs", "ppo_jax")
    assert any("ale:ALE/Pong-v5" in line for line in lines(capsys, "envs", "ale"))
    found = lines(capsys, "presets")
    assert [line.split()[0] for line in found[: found.index("")]] == [*PRESETS]
    found = lines(capsys, "algorithms")
    assert [line.split()[0] for line in found[:-2]] == [*CONFIGS]
    assert all(len(line.split()) > 3 for line in found[:-2])


def test_lists_refuse_what_they_do_not_take(capsys):
    for words in (["presets", "x"], ["envs", "a", "b"], ["envs", "--lr"], ["envs", "gimnax"]):
        with pytest.raises(SystemExit) as end:
            front.main(words)
        assert end.value.code == 2 and capsys.readouterr().err.startswith("error: unknown ")


def test_benchmarks_are_listed_where_the_repository_is(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = lines(capsys, "benchmark")
    assert {"throughput", "language.families", "language.buckets"} <= {
        n.split()[0] for n in found if n
    }
    assert not any(word in " ".join(found) for word in ("language.worker", "soak.", "throughput.q"))
    with pytest.raises(SystemExit) as end:
        front.main(["benchmark", "throughputt"])
    assert end.value.code == 2 and "did you mean throughput" in capsys.readouterr().err


# --- what to do next --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "variable", "shown"),
    [
        ("/usr/bin/ppo-jax", None, "ppo-jax evaluate 'a b'"),
        ("/x/ppo_jax/__main__.py", None, "python -m ppo_jax evaluate 'a b'"),
        ("/x/ppo_jax/__main__.py", "python3 run.py", "python3 run.py evaluate 'a b'"),
    ],
)
def test_commands_can_be_pasted(monkeypatch, program, variable, shown):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.delenv(commands.VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(commands.VARIABLE, variable)
    assert commands.command("evaluate", Path("a b")) == shown


STARTS = [
    (["/v/bin/ppo-jax"], ["/v/bin/python3", "/v/bin/ppo-jax"], None, "ppo-jax"),
    (["m.py"], [".venv/bin/python", "-X", "dev", "-m", "ppo_jax.train"], None,
     ".venv/bin/python -m ppo_jax"),
    (["m.py"], ["/v/python", "-m", "ppo_jax"], "python3 run.py", "python3 run.py"),
    (["a.py"], ["python", "a.py"], None, ""),
    (["m.py"], ["python", "-m", "ppo_jaxy"], None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "original", "variable", "expected"), STARTS)
def test_texts_name_commands_as_the_user_started_them(
    monkeypatch, argv, original, variable, expected
):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.delenv(commands.VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(commands.VARIABLE, variable)
    text = "`ppo-jax envs` lists them; see ppo-jax evaluate RUN, not /x/ppo-jax y or ppo-jaxes z"
    words = expected or "ppo-jax"
    wanted = f"`{words} envs` lists them; see {words} evaluate RUN, not /x/ppo-jax y or ppo-jaxes z"
    assert commands.started() == expected and commands.shown(text) == wanted
    assert commands.shown("ppo-jax") == words


def test_a_program_that_no_shell_finds_is_named_with_its_path(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ppo-jax"
    program.parent.mkdir()
    program.write_text("")
    other = tmp_path / "ppo-jax"
    other.write_text("")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.chdir(tmp_path)
    assert commands.started() == "bin/ppo-jax"


def test_a_refusal_and_a_help_text_name_run_py(monkeypatch, capsys):
    monkeypatch.setenv(commands.VARIABLE, "python3 run.py")
    for words, expected in (
        (["train", "--gif", "x"], "--gif is an option of python3 run.py evaluate"),
        (["zzz"], "unknown command 'zzz'"),
        (["train", "--preset", "zzz"], "`python3 run.py presets` lists"),
        (["presets", "--help"], "`python3 run.py train --preset NAME` trains"),
        (["train", "--help"], "usage: python3 run.py train"),
        (["train", "--print-config"], "# Read by `python3 run.py train --config FILE`."),
        (["rlhf", "--help"], "usage: python3 run.py rlhf"),
        (["--help"], "python3 run.py evaluate runs/first --gif first.gif"),
    ):
        with pytest.raises(SystemExit):
            front.main(words)
        found = "".join(capsys.readouterr())
        assert expected in found and "ppo-jax " not in found, words


# --- what to install ----------------------------------------------------------------------------


def test_an_extra_is_installed_from_the_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "pip", lambda: "pip")
    monkeypatch.chdir(ROOT)
    assert installation.command("[brax]") == 'pip install -e ".[brax]"'
    assert installation.command("gymnasium[mujoco]") == 'pip install "gymnasium[mujoco]"'
    monkeypatch.chdir(tmp_path)  # a relative path of one word would be the name of a package
    assert installation.command("[brax]") == f'pip install -e "{ROOT}[brax]"'
    monkeypatch.setenv(commands.VARIABLE, "python3 run.py")
    assert installation.command("[brax]") == "python3 run.py install brax"
    assert installation.command("gymnasium[mujoco]") == 'pip install "gymnasium[mujoco]"'


def test_an_extra_of_an_installed_copy_is_installed_from_where_it_came(monkeypatch, tmp_path):
    clone, copy = tmp_path / "my clone", tmp_path / "lib" / "ppo_jax" / "config"
    clone.mkdir()
    (clone / "pyproject.toml").write_text("")
    url = SimpleNamespace(read_text=lambda name: json.dumps({"url": clone.as_uri()}))
    monkeypatch.setattr(installation, "__file__", str(copy / "installation.py"))
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: url)
    monkeypatch.setattr(installation, "pip", lambda: "pip")
    assert installation.command("[brax]") == f'pip install "{clone}[brax]"'
    (clone / "pyproject.toml").unlink()
    assert installation.command("[brax]") == 'pip install ".[brax]" in a clone of ppo_jax'


def test_pip_is_the_one_of_this_python(monkeypatch, tmp_path):
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("pip", "python"):
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(folder))
    assert installation.pip() == "pip"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installation.pip() == ".venv/bin/python -m pip"


# --- what to do next ----------------------------------------------------------------------------


def test_the_next_steps_are_a_line_each(capsys):
    terminal.print_next({"watch": "a", "continue": "b"})
    assert capsys.readouterr().out == "next:\n  watch     a\n  continue  b\n"
    terminal.print_next({})
    assert capsys.readouterr().out == ""


def test_run_py_passes_any_command_on(tmp_path, monkeypatch):
    import run

    started = []
    monkeypatch.setattr(run, "installed", lambda stamp, wanted: True)
    monkeypatch.setattr(run.os, "execv", lambda program, words: started.append(words))
    monkeypatch.setenv(commands.VARIABLE, "set again by run.py")
    monkeypatch.chdir(ROOT)
    for words in (["train", "--seed", "1"], ["envs"], ["test", "-k", "x"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        run.main()
    assert [w[1:] for w in started] == [
        ["-m", "ppo_jax", "train", "--seed", "1"],
        ["-m", "ppo_jax", "envs"],
        ["-m", "pytest", "-k", "x"],
    ]
    assert run.os.environ[commands.VARIABLE] == "python3 run.py"


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """run.py in a folder of its own, whose virtual environment works, with the commands it runs."""
    import run

    started = []

    def call(words, **_):
        started.append([str(word) for word in words])
        return 0

    python = tmp_path / "python"
    python.write_text("")
    monkeypatch.setattr(run, "PYTHON", str(python))
    monkeypatch.setattr(run.subprocess, "call", call)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    return run, str(tmp_path / "installed"), started


def test_run_py_keeps_an_environment_that_works(setup):
    run, stamp, started = setup
    run.install("requirements.lock", stamp, "first")
    assert "--clear" in started[0] and run.installed(stamp, "first")
    started.clear()
    run.install("requirements.lock", stamp, "second")  # after an update of the lock file
    assert not any("venv" in words for words in started) and run.installed(stamp, "second")
    assert [words for words in started if "--require-hashes" in words]


def test_run_py_makes_the_environment_again_where_it_was_moved(setup, monkeypatch):
    run, stamp, started = setup
    run.install("requirements.lock", stamp, "first")
    monkeypatch.setattr(run, "HERE", "/somewhere/else")
    assert not run.works(stamp)
    monkeypatch.undo()


def test_run_py_installs_extras(setup, monkeypatch, capsys):
    run, _, started = setup
    with pytest.raises(SystemExit) as end:
        run.add(["brax", "tensorboard"])
    assert end.value.code == 0 and started[-1][-1] == f"{run.HERE}[brax,tensorboard]"
    run.check_extras(["brax", "tensorboard"])
    started.clear()
    for words in ([], ["-U"], ["brax", "tensorbord"]):
        monkeypatch.setattr(sys, "argv", ["run.py", "install", *words])
        with pytest.raises(SystemExit) as end:
            run.main()
        assert end.value.code == 1 and not started
        assert "atari, box2d, brax, craftax" in capsys.readouterr().err


def test_help_of_run_py_may_be_cut_off():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-S", str(ROOT / "run.py"), "--help"]
    ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- names of the package -----------------------------------------------------------------------


def test_modules_of_the_package_are_imported_at_first_access():
    code = """
import sys, ppo_jax
assert "jax" not in sys.modules
assert {*ppo_jax.__all__, "envs", "rlhf"} <= {*dir(ppo_jax)}
assert "ALGORITHMS" in dir(ppo_jax.algorithms) and "make" in dir(ppo_jax.config)
assert ppo_jax.config.make().env == "CartPole-v1" and not hasattr(ppo_jax, "nothing")
import ppo_jax.export, ppo_jax.rlhf
assert "generate" in dir(ppo_jax.rlhf) and "export" in dir(ppo_jax.export)
assert "jax" not in sys.modules
"""
    python(code)


def test_a_reader_that_ends_is_no_error(tmp_path):
    """As `ppo-jax train --help | head -1`, whose pipe has no reader when the help is written."""
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], ["train", "--help"]):
        command = [sys.executable, "-m", "ppo_jax", *words]
        found = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
        )
        assert (found.returncode, found.stderr) == (0, b"")
    os.close(write)


# --- names of environments and algorithms, files, lists -----------------------------------------


ODD = [
    ("train --env brax", "`ppo-jax envs brax` lists its environments"),
    ("train --env gymnasium:", "names a suite and no environment"),
    ("train --env CartPole-v0", "use --env CartPole-v1; suite gymnasium has CartPole-v0"),
    ("train --env gym:CartPole-v1", "use --env gymnasium:CartPole-v1"),
    ("train --env mujoco:ant", "use --env gymnasium:Ant-v5"),
    ("train --env my_env.py:Env", "write my_env:Env"),
    ("train --policy nets/own.py:Net", "write nets.own:Net"),
    ("train --policy MlpPolicy", "--network and --hidden describe the network"),
    ("train --algorithm PPO-KL", "did you mean ppo_kl?"),
    ("train --algorithm sac", "has on-policy algorithms"),
    ("train --preset CartPole", "did you mean cartpole?"),
    ("train --config d.toml", "d.toml sets eval_every; give it on the command line"),
    ("train --config o.toml", "o.toml has a table [train]; options are given without tables"),
    ("train --config ppo.toml --algorithm a2c", "ppo.toml has options of ppo that a2c does not"),
    ("envs CartPole-v1", "suite gymnax has CartPole-v1"),
    ("--env X", "name a command first: ppo-jax train --env X"),
    ("sweep --vary gama=1", "did you mean gamma?"),
    ("sweep --vary gamma=1 seed=2", "give --vary again for 'seed=2'"),
]


@pytest.mark.parametrize(("line", "shown"), ODD)
def test_names_and_files_that_are_nearly_right(line, shown, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.toml").write_text("eval_every = 3")
    Path("o.toml").write_text("[train]\ngamma = 0.9")
    Path("ppo.toml").write_text(to_toml(make("cartpole")))
    with pytest.raises(SystemExit) as end:
        front.main(line.split())
    found = capsys.readouterr().err
    assert end.value.code == 2 and found.startswith("error: ") and found.count("\n") == 1
    assert shown in found


def test_suites_have_other_names_and_help_has_two_forms(capsys):
    for alias, suite in suites.ALIASES.items():
        assert lines(capsys, "envs", alias) == lines(capsys, "envs", suite)
    assert lines(capsys, "help") == lines(capsys, "--help")
    assert lines(capsys, "help", "train") == lines(capsys, "train", "--help")
    assert lines(capsys, "-V") == lines(capsys, "--version")


def test_what_varies_is_listed_with_the_configuration(capsys):
    found = lines(capsys, "sweep", "--vary", "gamma=0.9,0.99", "--print-config")
    assert found[-1] == "# --vary gamma=0.9,0.99" and '# target_kl = "none"' in found
    given = sweep_command._with_first(
        ["--env-args", "env=3", "--vary", "env=Pong", "--vary=gamma=1"]
    )
    assert given[-2:] == ["--env", "Pong"]


@pytest.mark.parametrize(
    "words", [["envs"], ["algorithms"], ["presets"], ["envs", "ale"], ["benchmark"]]
)
def test_lists_fit_into_a_terminal(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    full = " ".join(lines(capsys, *words)).split()
    monkeypatch.setattr(terminal, "on_terminal", lambda stream: True)
    wrapped = lines(capsys, *words)
    assert max(map(len, wrapped)) <= 80 and " ".join(wrapped).split() == full
