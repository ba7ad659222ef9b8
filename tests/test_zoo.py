"""The zoo: its agents match their cards, damage is found, and both comparisons can fail."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import ppo_jax
from benchmarks import zoo as benchmark
from benchmarks import zoo_animations as animations
from ppo_jax import config as configs
from ppo_jax import export
from ppo_jax.cli import flags
from ppo_jax.cli import main as front
from ppo_jax.cli import play as play_command
from ppo_jax.cli import train as train_command
from ppo_jax.cli import zoo as zoo_command
from ppo_jax.cli.screen import cells
from ppo_jax.config import ConfigError
from ppo_jax.experiment import RunOptions, train
from ppo_jax.runs import cards, terminal
from ppo_jax.runs.job import Result
from ppo_jax.zoo import origin, verify

NAMES = cards.names()
CARTPOLE = cards.read("cartpole")


def ends(capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    with pytest.raises(SystemExit) as end:
        front.main([*words])
    return end.value.code, *capsys.readouterr()


def copied(folder, **changes):
    """A copy of the agent "cartpole" with changed entries of its card, whose digest is correct."""
    shutil.copy(cards.FOLDER / "cartpole.safetensors", folder)
    card = dataclasses.replace(CARTPOLE, **changes)
    cards.write(card, folder)
    return card


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three short runs that differ in the seed."""
    folder, size = tmp_path_factory.mktemp("runs"), {"num_envs": 4, "num_steps": 16, "hidden": (8,)}
    for seed in range(3):
        config = configs.make(preset="none", total_timesteps=512, seed=seed, **size)
        train(config, RunOptions(run_dir=folder / f"seed{seed}", eval_episodes=0), quiet=True)
    return [folder / f"seed{seed}" for seed in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_describes_its_agent(name):
    card = cards.read(f"zoo:{name}")
    assert cards.weights_of(card).stat().st_size == card.weights["bytes"] <= 300_000
    assert np.mean(card.evaluation["returns"]) == card.evaluation["eval_return_mean"]
    assert card.seeds[str(card.config["seed"])] == card.evaluation["eval_return_mean"]
    words = card.command.split()
    assert words[:2] == ["ppo-jax", "train"]
    again, _ = train_command._parse(words[2:], flags.base_config(words[2:]), {})
    assert again == configs.from_saved(card.config)


def test_the_page_and_the_table_are_those_of_the_cards():
    assert {"cartpole", "acrobot", "pendulum", "mountain_car"} <= {*NAMES}
    rows = {row["name"]: row for row in benchmark.read(benchmark.TABLE)}
    found = {name: benchmark.row_of(cards.read(name)) for name in NAMES}
    assert rows == {name: {k: str(v) for k, v in row.items()} for name, row in found.items()}
    page = (benchmark.RESULTS.parents[1] / "docs/zoo.md").read_text()
    assert benchmark.markdown() in page


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_each_agent(name):
    page = (benchmark.RESULTS.parents[1] / "docs/zoo.md").read_text()
    assert f"(images/zoo/{name}.gif)" in page
    file = animations.FOLDER / f"{name}.gif"
    assert file.stat().st_size <= 60_000
    with Image.open(file) as image:
        assert image.width == animations.WIDTH
        shown = 0
        for k in range(image.n_frames):  # equal states are one image with a longer duration
            image.seek(k)
            shown += image.info["duration"]
    assert shown > 20 * animations.MILLISECONDS + animations.LAST


def test_an_animation_is_small_and_shows_an_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(animations, "STEPS", 9)
    path = animations.write("cartpole", tmp_path / "new")
    with Image.open(path) as image:
        durations = []
        for k in range(image.n_frames):
            image.seek(k)
            durations.append(image.info["duration"])
    # The first state, those after 2, 4, 6 and 8 steps, and the last; equal ones are one image.
    assert sum(durations) == 5 * animations.MILLISECONDS + animations.LAST
    assert durations[-1] >= animations.LAST
    monkeypatch.setattr(animations, "LARGEST", 99)
    with pytest.raises(SystemExit, match=r"cartpole.gif has [\d,]+ bytes, more than 99"):
        animations.write("cartpole", tmp_path)
    assert not (tmp_path / "cartpole.gif").exists()


def test_the_place_of_an_agent_is_its_name():
    agent = ppo_jax.load("zoo:cartpole")
    assert agent([0.0, 0.0, 0.1, 0.0]) in (0, 1)
    returns = ppo_jax.evaluate("zoo:cartpole", 4).episode_return
    assert returns.tolist() == ppo_jax.evaluate(agent, 4).episode_return.tolist()
    assert ppo_jax.load(cards.FOLDER / "cartpole.safetensors").config == agent.config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cartpol", "no agent 'cartpol'; did you mean cartpole.*? There are: acrobot, "),
        ("zebra", "no agent 'zebra'; there are: acrobot, .*cartpole"),
        ("../agents/cartpole", "no agent '../agents/cartpole'; .*There are: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name, message):
    with pytest.raises(ConfigError, match=message):
        ppo_jax.load(f"zoo:{name}")


def test_an_agent_without_a_folder_has_one_state_and_needs_a_file():
    with pytest.raises(ConfigError, match="checkpoint is 'best', but zoo:cartpole has the weights"):
        ppo_jax.load("zoo:cartpole", checkpoint="best")
    with pytest.raises(ConfigError, match="name the file with --out"):
        export.export("zoo:cartpole", "safetensors")


def flipped(content):
    return bytes([*content[:-9], content[-9] ^ 1, *content[-8:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, "does not match its digest; install ppo_jax again"),
        (lambda content: content[:-1], "bytes, but the card states"),
        (lambda content: content + bytes(cards.LARGEST), "more than 300,000 bytes"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, damage, message):
    card = copied(tmp_path)
    path = tmp_path / "cartpole.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        verify.stored(card, tmp_path)


def test_missing_weights_and_links_are_refused(tmp_path):
    card = copied(tmp_path)
    path = tmp_path / "cartpole.safetensors"
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        cards.weights_of(card, tmp_path)
    path.symlink_to(cards.FOLDER / "cartpole.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        cards.weights_of(card, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {**CARTPOLE.config, "gamma": 0.5}},
        {"weights": {**CARTPOLE.weights, "parameters": "0" * 64}},
    ],
)
def test_weights_of_another_agent_are_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match="is not the agent of its card"):
        verify.stored(copied(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"seeds": {"0": 500.0}},
        {"seeds": {"0": 500.0, "1": "500", "2": 500.0}},
        {"evaluation": {"returns": [], "seed": 0}},
        {"weights": {"bytes": "10", "sha256": "", "parameters": ""}},
        {"made_with": []},
    ],
)
def test_a_card_without_what_is_compared_is_refused(tmp_path, changes):
    copied(tmp_path, **changes)
    (tmp_path / f"{changes.get('name', 'cartpole')}.json").rename(tmp_path / "cartpole.json")
    with pytest.raises(ConfigError, match="the card .* is damaged"):
        cards.read("cartpole", tmp_path)


def test_a_changed_card_is_refused(tmp_path):
    copied(tmp_path)
    path = tmp_path / "cartpole.json"
    content = json.loads(path.read_text())
    content["env_steps"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="does not match its digest"):
        cards.read("cartpole", tmp_path)
    path.write_text("[" * 10_000)
    with pytest.raises(ConfigError, match="cannot be read"):
        cards.read("cartpole", tmp_path)


def test_the_stored_agent_is_compared_with_its_returns(tmp_path):
    passed = verify.verify(CARTPOLE, 16, seed=3)
    assert passed.passed and passed.exit_code == 0
    assert "zoo:cartpole verified: return 500.00 over 16 episodes" in passed.text
    other = {**CARTPOLE.evaluation, "returns": [400.0, 410.0] * 10}
    failed = verify.verify(copied(tmp_path, evaluation=other), 16, seed=3, folder=tmp_path)
    assert not failed.passed and failed.exit_code == 1
    assert "zoo:cartpole FAILED" in failed.text and "p = 0.0002 < 0.001" in failed.text


def test_the_permutation_test_counts_all_assignments():
    """Two of the 20 assignments of six numbers differ as much as 1, 2, 3 and 4, 5, 6."""
    assert verify.same_mean(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == pytest.approx(0.1)
    assert verify.same_mean(np.full(8, 500.0), np.full(8, 500.0)) == 1


def test_one_more_value_is_compared_with_student():
    """With two degrees of freedom, p = 1 - t / sqrt(t² + 2), and here t² = 64 / (1 + 1/3) = 48."""
    p = 1 - np.sqrt(48 / 50)
    assert verify.one_more(10, np.array([1.0, 2, 3])) == pytest.approx(p)
    same = np.full(5, 500.0)
    assert verify.one_more(500, same) == 1 and verify.one_more(499, same) == 0
    # With a standard error of 1, t = 1 and p = 0.374 (four degrees of freedom).
    assert verify.one_more(499, same, error=1.0) == pytest.approx(0.374, abs=1e-3)


def test_a_retrained_agent_has_equal_bits_or_is_tested(monkeypatch):
    parts = verify.stored(CARTPOLE).parts
    monkeypatch.setattr(verify, "run", lambda *_, **__: Result(None, {}, None, 0))
    monkeypatch.setattr(verify, "read_parts", lambda path: parts)
    assert "are equal to the bit" in verify.retrain(CARTPOLE, 8, 1).text
    other = {**CARTPOLE.weights, "parameters": "0" * 64}
    card = dataclasses.replace(CARTPOLE, weights=other, made_with=origin.record())
    failed = verify.retrain(card, 8, 1)
    assert failed.exit_code == 1 and "differ, with the same source" in failed.text
    card = dataclasses.replace(card, made_with={"versions": {}, "machine": {"cores": 512}})
    passed = verify.retrain(card, 8, 1)
    assert passed.passed and "cores 512 -> " in passed.text and "two-sample t test" in passed.text
    card = dataclasses.replace(card, seeds={"0": 20.0, "1": 21.0, "2": 22.0})
    assert verify.retrain(card, 8, 1).exit_code == 1


def test_a_stopped_training_run_ends_with_its_exit_code(monkeypatch):
    monkeypatch.setattr(verify, "run", lambda *_, **__: Result(None, {}, None, 130))
    assert verify.retrain(CARTPOLE, 8, 1).exit_code == 130


def test_a_record_names_what_differs():
    here = origin.record()
    assert origin.differences(here) == []
    before = {**here, "versions": {**here["versions"], "jax": "0.1"}, "source": ""}
    jax, source = origin.differences(before)
    assert jax.startswith("jax 0.1 -> ") and source == "the source code"


@pytest.mark.slow
def test_an_agent_is_added_from_runs(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "EPISODES", 8)
    benchmark.add("small", runs, tmp_path)
    card = cards.read("small", tmp_path)
    assert [*card.seeds] == ["0", "1", "2"] and card.env_steps == 512
    assert verify.verify(card, 8, benchmark.EVALUATION_SEED, tmp_path).passed
    assert ppo_jax.load(runs[0]).config == verify.stored(card, tmp_path).config
    with pytest.raises(SystemExit, match="two runs have the same seed"):
        benchmark.add("small", [runs[0], runs[1], runs[0]], tmp_path)
    with pytest.raises(SystemExit, match="at least 3 seeds"):
        benchmark.add("small", runs[:2], tmp_path)
    monkeypatch.setattr(cards, "LARGEST", 100)
    with pytest.raises(SystemExit, match="use a smaller network"):
        benchmark.add("large", runs, tmp_path)
    assert not (tmp_path / "large.safetensors").exists()


def test_the_zoo_is_listed(capsys):
    code, text, _ = ends(capsys, "zoo", "list")
    assert code == 0 and all(f"{name} " in text for name in NAMES)
    assert "return 500.00 [500.00, 500.00]" in text
    code, text, _ = ends(capsys, "zoo", "card", "cartpole")
    assert code == 0 and json.loads(text)["weights"] == CARTPOLE.weights
    assert ends(capsys, "zoo", "--help")[1] == ends(capsys, "zoo")[1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cartpole", "--episodes", "2"], ["zoo:cartpole", "--episodes", "2"]),
        (["--episodes", "2", "cartpole"], ["--episodes", "2", "zoo:cartpole"]),
        (["zoo:cartpole"], ["zoo:cartpole"]),
        (["cartpol"], ["zoo:cartpol"]),
    ],
)
def test_play_takes_the_names_of_agents_in_any_place(words, named):
    assert zoo_command._in_zoo(words) == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lst",), "unknown command 'lst'; did you mean list?"),
        (("card",), "name an agent: ppo-jax zoo card NAME; there are: acrobot"),
        (("verify", "cartpol"), "the zoo has no agent 'cartpol'"),
        (("verify", "cartpole", "--episodes", "1"), "--episodes is 1; it must be between 2 and"),
        (("verify", "cartpole", "--seed", "-1"), "--seed is -1; it must be >= 0"),
        (("verify", "cartpole", "--gif", "x"), "unknown option --gif"),
        (("play", "cartpole"), "the output goes to a file or a pipe"),
    ],
)
def test_a_wrong_command_is_answered_with_one_line(capsys, words, message):
    code, text, error = ends(capsys, "zoo", *words)
    assert (code, text) == (2, "") and message in error and error.count("\n") == 1


def test_verify_is_a_command(capsys):
    code, text, error = ends(capsys, "zoo", "verify", "cartpole", "--episodes", "8")
    assert code == 0 and text.startswith("zoo:cartpole verified: "), error


def test_an_image_is_drawn_with_two_pixels_per_character():
    image = np.array([[[1, 2, 3]], [[4, 5, 6]]], np.uint8)
    assert cells(image, 1, 1) == ["\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[0m"]
    wide = np.zeros((100, 300, 3), np.uint8)  # one colour is written once in each line
    assert cells(wide, 30, 40) == ["\x1b[38;2;0;0;0;48;2;0;0;0m" + "▀" * 30 + "\x1b[0m"] * 5


def test_an_episode_is_drawn_in_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "on_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "8")
    words = ("zoo", "play", "acrobot", "--frames-per-second", "1e6")
    code, text, _ = ends(capsys, *words)
    assert code == 0 and text.count("Acrobot-v1: return ") > 20
    last = text.splitlines()[-1]
    steps = int(last.rpartition(" ")[2])
    assert f"return -{steps - 1}, step {steps}" in last  # the last step has reward 0
    assert text.startswith("\x1b[?25l") and "\x1b[?25h" in last  # the cursor is shown again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "--episodes is 0"),
        ({"seed": 2**32}, "--seed is 4294967296"),
        ({"frames_per_second": 0.0}, "--frames-per-second is 0.0; it must be > 0"),
    ],
)
def test_play_refuses_wrong_values(options, message):
    with pytest.raises(ConfigError, match=message):
        play_command.prepared("zoo:cartpole", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_agent_is_verified(capsys, name):
    code, text, error = ends(capsys, "zoo", "verify", name, "--episodes", "64")
    assert code == 0, text + error


@pytest.mark.slow
def test_an_agent_is_trained_again(capsys):
    """On another machine than that of the card, or with other versions, the returns are tested."""
    code, text, error = ends(capsys, "zoo", "verify", "cartpole", "--episodes", "32", "--retrain")
    assert code == 0 and "trained again for" in text, text + error


@pytest.mark.slow
def test_an_agent_that_is_trained_again_has_the_same_bits(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "EPISODES", 8)
    card = benchmark.add("small", runs, tmp_path)
    assert "all parameters are equal to the bit" in verify.retrain(card, 8, 1).text
    seeded = dataclasses.replace(card, config={**card.config, "seed": 7})
    assert verify.retrain(seeded, 8, 1).exit_code == 1
