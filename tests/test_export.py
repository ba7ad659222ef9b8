"""Exported policies: as Python functions and as files, with the same actions as the agent."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import ppo_jax
from ppo_jax import agent, export, normalization, rollout
from ppo_jax import config as configs
from ppo_jax.cli import export as export_command
from ppo_jax.config import ConfigError
from ppo_jax.envs import codec, spaces
from ppo_jax.experiment import RunOptions, train
from ppo_jax.export import interface, safetensors, verify
from ppo_jax.runs import weights
from ppo_jax.train import build

KEY = jax.random.key(0)
SMALL = {"num_envs": 4, "num_steps": 16, "hidden": (8,)}


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """The folder of a short run with normalised observations."""
    path = tmp_path_factory.mktemp("home") / "runs" / "cartpole"
    config = configs.make(preset="none", total_timesteps=2048, normalize_obs=True, **SMALL)
    assert train(config, RunOptions(run_dir=path, eval_episodes=0)).exit_code == 0
    return path


def untrained(**options):
    """Parts of an agent whose weights are far enough from 0 to produce different actions."""
    config = configs.make(preset="none", **SMALL | options)
    program = build(config)
    parts = agent.parts_of(config, program, jax.jit(program.init)(KEY))
    head = {"head": jax.tree.map(lambda x: x * 300, parts.params["actor"]["head"])}
    return parts._replace(params=parts.params | {"actor": parts.params["actor"] | head})


@pytest.fixture(scope="module")
def pendulum():
    return untrained(env="Pendulum-v1")


def states(count, size=4):
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)


def test_the_agent_is_the_policy_behind_its_normaliser(cartpole):
    parts, act = agent.read_parts(cartpole), ppo_jax.load(cartpole)
    obs, moments = states(64), parts.moments.obs
    assert moments.count > 2000
    seen = np.clip((obs - moments.mean) / np.sqrt(moments.var + 1e-8), -10, 10)
    _, dist, _ = parts.policy.act(parts.params, (), seen, None)
    np.testing.assert_array_equal(act(obs), np.argmax(dist.logits, axis=-1))
    assert {*act(obs).tolist()} == {0, 1}


def test_one_observation_or_many(cartpole):
    act, obs = ppo_jax.load(str(cartpole)), states(5)
    assert act(obs).shape == (5,) and act(obs).dtype == np.int32
    assert act(obs[0]).shape == () and act(obs[0]) == act(obs)[0]
    assert act(obs[1].tolist()) == act(obs)[1] == act(obs[1].astype(float))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(3), r"has shape \(3,\); it must be \(4,\), or \(N, 4\)"),
        (np.zeros((2, 2, 4)), r"has shape \(2, 2, 4\)"),
        (np.zeros((0, 4)), r"has shape \(0, 4\)"),
    ],
)
def test_what_is_no_observation_is_refused(cartpole, obs, message):
    with pytest.raises(ValueError, match=message):
        ppo_jax.load(cartpole)(obs)


def test_numbers_that_the_type_does_not_hold_are_refused():
    example = {"image": jnp.zeros((1, 2, 2), jnp.uint8), "speed": jnp.zeros((1,))}
    spoken = codec.plain(example, spaces.Discrete(2), jax.tree.map(spaces.box_of, example))
    good = {"image": np.array([[1, 255], [0, 3]]), "speed": 1}
    (image, speed), single = agent.as_batch(spoken.arrays(good), spoken.ports)
    assert single and image.dtype == np.uint8 and speed.shape == (1,)
    for wrong in (0.5, 256, -1, np.nan):
        with pytest.raises(ValueError, match=r"observation\['image'\] has type .* and values"):
            bad = good | {"image": np.full((2, 2), wrong)}
            agent.as_batch(spoken.arrays(bad), spoken.ports)
    with pytest.raises(ValueError, match=r"must have the entries obs.image, obs.speed"):
        spoken.arrays({"image": good["image"]})
    with pytest.raises(ValueError, match="takes no mask separate from its observation"):
        spoken.arrays(good, action_mask=[1, 1])


def test_samples_follow_the_distribution_and_their_seed(cartpole):
    obs = np.repeat(states(1), 4000, axis=0)
    draw = [ppo_jax.load(cartpole, greedy=False, seed=s)(obs) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).any()
    parts = agent.read_parts(cartpole)
    seen = rollout.normalize_obs(parts.moments, obs[:1])
    logits = parts.policy.act(parts.params, (), seen, None)[1].logits
    assert draw[0].mean() == pytest.approx(float(jax.nn.softmax(logits)[0, 1]), abs=0.04)


def test_actions_are_what_the_environment_takes(pendulum):
    obs = states(200, 3)
    clipped = agent.Agent(pendulum)(obs)
    assert clipped.shape == (200, 1) and np.abs(clipped).max() == 2.0
    squashed = agent.Agent(untrained(env="Pendulum-v1", squash=True))(obs)
    mean = pendulum.policy.act(pendulum.params, (), obs, None)[1].mean
    np.testing.assert_allclose(squashed, 2 * np.tanh(mean), atol=1e-5)


@pytest.mark.parametrize("memory", ["gru", pytest.param("gtrxl", marks=pytest.mark.slow)])
def test_memory_is_kept_until_an_episode_begins(memory, tmp_path):
    parts = untrained(memory=memory, memory_size=8)
    act, obs = agent.Agent(parts), states(6).reshape(3, 2, 4)
    core, expected = parts.policy.init_core(2), []
    for step, x in enumerate(obs):
        core, dist, _ = parts.policy.act(parts.params, core, x, np.full(2, step == 0))
        expected.append(dist.logits)
    found = []
    for x in obs:
        act(x)
        found.append(act._core)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), found[-1], core))
    act(obs[0], start=[True, False])  # the first episode starts again, the second continues
    first, second = (jax.tree.map(lambda x, i=i: x[i], act._core) for i in (0, 1))
    fresh = jax.tree.map(lambda x: x[0], found[0])
    same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), first, fresh)
    assert jax.tree.all(same) and not np.allclose(jax.tree.leaves(second)[0], 0)
    with pytest.raises(
        ValueError, match=r"3 observations were given to .* that has states for 2.*reset"
    ):
        act(states(3))
    act.reset()
    assert act(states(3)).shape == (3,)
    safetensors.write(parts, tmp_path / "a.safetensors")
    assert verify.compare(parts, "safetensors", tmp_path / "a.safetensors") == (256, 0.0)


def test_weights_have_names_and_their_configuration(cartpole, capsys):
    with pytest.raises(SystemExit) as stop:
        export_command.main([str(cartpole), "--format", "safetensors"])
    assert stop.value.code == 0
    assert "verified: 256 observations, max difference 0 (reloaded in a fresh process)" in (
        capsys.readouterr().out
    )
    file = cartpole / "policy.safetensors"
    with safe_open(file, "numpy") as opened:
        names, header = {*opened.keys()}, opened.metadata()
    assert {"params.actor.body.Dense_0.kernel", "params.actor.head.bias", "obs.mean"} <= names
    assert json.loads(header["config"])["env"] == json.loads(header["env"]) == "CartPole-v1"
    assert json.loads(header["inputs"]) == [
        {"name": "obs", "shape": ["N", 4], "dtype": "float32", "env_dtype": "float32"}
    ]
    np.testing.assert_array_equal(
        ppo_jax.load(file)(states(99)), ppo_jax.load(cartpole)(states(99))
    )


def test_files_that_are_no_policies_are_refused(tmp_path):
    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="does not contain a ppo_jax policy"):
        ppo_jax.load(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(ConfigError, match="cannot read"):
        ppo_jax.load(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match="not a run directory"):
        ppo_jax.load(tmp_path / "nothing")
    shapes = {"a": np.zeros((2, 3))}
    with pytest.raises(ConfigError, match=r"a is \(3, 2\), not \(2, 3\)"):
        weights.fill(shapes, {"a": np.zeros((3, 2))})
    with pytest.raises(ConfigError, match="a is missing"):
        weights.fill(shapes, {})


def test_a_file_that_acts_otherwise_is_found_out(tmp_path, pendulum):
    other = pendulum._replace(params=jax.tree.map(lambda x: x + 0.01, pendulum.params))
    safetensors.write(other, tmp_path / "a.safetensors")
    with pytest.raises(verify.NotTheSame, match="differ from those of the run"):
        verify.compare(pendulum, "safetensors", tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(verify.NotTheSame, match="cannot be reloaded in a new process"):
        verify.compare(pendulum, "safetensors", tmp_path / "b.safetensors")


def test_observations_to_compare_on_are_of_their_space():
    parts = untrained(env="Breakout-MinAtar", network="minatar")
    obs = verify.observations(parts.observation_space, parts.obs, 50)
    assert obs.shape == (50, 10, 10, 4) and obs.dtype == parts.obs.dtype
    np.testing.assert_array_equal(obs[:4], parts.obs)
    assert len({x.tobytes() for x in obs[4:]}) == 46


def test_stablehlo_needs_jax_alone(tmp_path, cartpole):
    pytest.importorskip("flatbuffers")
    file, obs = tmp_path / "agent.stablehlo", states(7)
    found = export.export(cartpole, "stablehlo", file)
    assert found.max_difference == 0 and found.observations == 256
    header = json.loads((tmp_path / "agent.stablehlo.json").read_text())
    assert header["platforms"] == ["cpu", "cuda"]
    assert header["outputs"] == [
        {"name": "action", "shape": ["N"], "dtype": "int32", "env_dtype": "int32"}
    ]
    code = (
        "import sys, jax, numpy as np; "
        "f = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read())); "
        f"x = np.array({obs.tolist()}, np.float32); "
        "assert f.call(x[:3]).shape == (3,) and 'ppo_jax' not in sys.modules; "
        "print(*f.call(x).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(a) for a in ppo_jax.load(cartpole)(obs)]


def test_the_python_of_the_page_runs(cartpole, monkeypatch):
    pytest.importorskip("flatbuffers")
    text = (Path(__file__).parent.parent / "docs/export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(cartpole.parent.parent)
    export.export("runs/cartpole", "stablehlo", Path("agent.stablehlo"))
    space = {}
    for block in blocks:
        exec(compile(block, "export.md", "exec"), space)
    assert space["policy"].call(np.zeros((32, 4), np.float32)).shape == (32,)


NETWORKS = {
    "squashed": {"env": "Pendulum-v1", "squash": True},
    "convolutions": {"env": "Breakout-MinAtar", "network": "minatar", "activation": "relu"},
    "shared torso": {"env": "Pendulum-v1", "shared_torso": True, "activation": "gelu"},
    "pixels": {"env": "Pong", "network": "small", "activation": "silu", "num_steps": 2},
}


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_acts_like_the_run(tmp_path, name):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    parts = untrained(**NETWORKS[name])
    export.onnx.write(parts, tmp_path / "a.onnx")
    count, difference = verify.compare(parts, "onnx", tmp_path / "a.onnx")
    assert count == 256 and difference < 1e-5


@pytest.mark.peers
def test_onnx_has_names_and_statistics(tmp_path, cartpole):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    assert export.export(cartpole, "onnx", tmp_path / "a.onnx").max_difference == 0
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    (port,), (out,) = session.get_inputs(), session.get_outputs()
    assert (port.name, port.shape[1:], out.name) == ("obs", [4], "action")
    assert session.get_modelmeta().custom_metadata_map["env"] == "CartPole-v1"


def test_every_entry_of_an_observation_is_an_input(pendulum):
    tree = {"image": jnp.zeros((2, 5, 5, 1), jnp.uint8), "wind": {"speed": jnp.zeros((2, 3))}}
    spoken = codec.plain(tree, pendulum.action_space, jax.tree.map(spaces.box_of, tree))
    found = interface.inputs(pendulum._replace(codec=spoken))
    assert [p.name for p in found] == ["obs.image", "obs.wind.speed"]
    assert found[0][:3] == ("obs.image", (5, 5, 1), np.uint8)


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_memory_is_refused_where_it_cannot_be_kept(format):
    writer = export.FORMATS[format]
    with pytest.raises(ConfigError, match=r"recurrent \(gru\).*use --format safetensors"):
        writer.check(untrained(memory="gru", memory_size=8))


def test_what_is_missing_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs jax2onnx: .*pip install -e .*\[onnx\]"):
        export.export(tmp_path, "onnx")
    with pytest.raises(ConfigError, match=r"needs flatbuffers.*\[stablehlo\]"):
        export.export(tmp_path, "stablehlo")
    with pytest.raises(ConfigError, match=r"unknown format 'onxx'; did you mean onnx"):
        export.export(tmp_path, "onxx")


def test_places_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no directory"):
        export.export(tmp_path, "safetensors", tmp_path / "no" / "a")
    with pytest.raises(ConfigError, match="which is a directory"):
        export.export(tmp_path, "safetensors", tmp_path)


def test_a_changed_converter_is_no_traceback(tmp_path, monkeypatch, pendulum):
    def broken(*_):
        raise NotImplementedError("no counterpart of erf_inv\nand more")

    monkeypatch.setattr(export.onnx, "_convert", broken)
    with pytest.raises(ConfigError, match="cannot convert this policy: no counterpart of erf_inv;"):
        export.onnx.write(pendulum, tmp_path / "a.onnx")


def test_statistics_come_back(tmp_path, pendulum):
    moments = normalization.RunningMoments(jnp.ones(3), jnp.full(3, 4.0), jnp.asarray(9.0))
    parts = pendulum._replace(
        moments=rollout.Moments(moments),
        config=configs.make(preset="none", env="Pendulum-v1", normalize_obs=True, **SMALL),
    )
    safetensors.write(parts, tmp_path / "a.safetensors")
    back = agent.read_weights(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(back.moments.obs.var, 4 * np.ones(3))
    assert back.moments.obs.count == 9
    obs = states(20, 3)
    np.testing.assert_array_equal(agent.Agent(back)(obs), agent.Agent(parts)(obs))
