"""Arbitrary input leads to a documented one-line error or to its intended meaning.

It never leads to a traceback, a hang, or other numbers. The number of cases of each property is in
the table CASES, and is asserted.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.cli.flags import base_config
from ppo_jax.config import ConfigError, options, references, schedules
from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment, as_env
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.formats import DataError
from ppo_jax.rlhf.formats import read as read_data
from ppo_jax.rlhf.hf_config import read_config
from ppo_jax.rlhf.hf_io import load_model, save_model
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.tokenizer import CharTokenizer, TokenizerError, load_tokenizer
from ppo_jax.runs import folder as run_folder
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.sweep.store import Spec, Store, read_sessions, read_spec
from ppo_jax.train import build

# Property -> number of cases in every test run, and in the slow ones.
CASES = {
    "values of options": (400, 2000),
    "configurations that are built": (12, 50),
    "words for options": (300, 3000),
    "texts of schedules": (300, 3000),
    "names of environments, networks and algorithms": (100, 500),
    "TOML texts": (100, 1500),
    "TOML of options": (100, 1500),
    "lines of metrics.jsonl": (100, 1500),
    "content of config.json": (100, 1500),
    "bytes of config.json": (100, 1500),
    "content of sweep.json": (40, 600),
    "bytes of a checkpoint": (25, 200),
    "JSONL of texts, preferences and prompts": (100, 1500),
    "config.json of a model": (60, 300),
    "header of model.safetensors": (60, 1000),
    "bytes of tokenizer.json": (60, 1000),
}
SECONDS = 30  # per case; more is a hang
REFUSED = (
    ConfigError, InvalidEnvironment, UnknownEnvironment, CheckpointError, ModelError,
    TokenizerError, DataError,
)  # fmt: skip


class Property(NamedTuple):
    """A property of the code.

    Attributes:
        strategies: strategies for the arguments of `check` after the first.
        check: function (folder, *arguments), with the folder filled by `prepare`.
        prepare: function that fills the folder once.
    """

    strategies: tuple[st.SearchStrategy, ...]
    check: Callable[..., None]
    prepare: Callable[[Path], None]


PROPERTIES: dict[str, Property] = {}


def holds(
    name: str, *strategies: st.SearchStrategy, prepare: Callable[[Path], None] = lambda folder: None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a property to the table."""

    def add(check: Callable[..., None]) -> Callable[..., None]:
        PROPERTIES[name] = Property(strategies, check, prepare)
        return check

    return add


def late(*_: Any) -> None:
    raise AssertionError(f"no answer in {SECONDS} s")


@contextlib.contextmanager
def refused_or_right() -> Iterator[None]:
    """A documented error within a time limit; all other errors fail the test."""
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except REFUSED as error:
        assert str(error), "an error without a word"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(name: str, count: int, folder: Path) -> int:
    """The number of cases in which a property was satisfied."""
    found, ran = PROPERTIES[name], []
    found.prepare(folder)

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(st.tuples(*found.strategies))
    def cases(values: tuple) -> None:
        with refused_or_right():
            found.check(folder, *values)
        ran.append(None)

    cases()
    return len(ran)


@pytest.mark.parametrize("name", CASES)
def test_it_holds(name, tmp_path):
    assert tried(name, CASES[name][0], tmp_path) >= CASES[name][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_holds_in_many_cases(name, tmp_path):
    assert tried(name, CASES[name][1], tmp_path) >= CASES[name][1]


def test_every_property_is_in_the_table():
    assert PROPERTIES.keys() == CASES.keys()


# --- values -----------------------------------------------------------------------------------

FIELDS = {name: configs.fields(name) for name in ALGORITHMS}
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 10**30, 10**400, -(2**63)]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-45, 1e39, 3e38, 1e308, 0.5, 1.0]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "inf", "nan", "none", "true", "linear(", "linear(3e-4, 0)", "a:b", "x=1"]),
)
# Values of JSON, TOML and Python.
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
ODD = st.one_of(
    PLAIN,
    st.tuples(NUMBERS, NUMBERS),
    st.sampled_from([b"x", object(), np.float32(0.5), np.int64(3), np.array([1, 2]), {1, 2}, len]),
    st.sampled_from([jnp.float32(0.5), jnp.ones(2), 1j]),
)


def fitting(field: dataclasses.Field) -> st.SearchStrategy:
    """Mostly valid values of an option, small enough for building a program."""
    kind, bounds = options.kind(field), field.metadata["bounds"]
    if bounds.choices is not None:
        value: st.SearchStrategy = st.sampled_from(bounds.choices)
    elif kind.base is bool:
        value = st.booleans()
    elif kind.base is int:
        value = st.integers(1, 16)
    elif kind.base is float:
        value = st.floats(0, 1)
    else:
        value = st.just(field.default)
    value = st.lists(value, max_size=2).map(tuple) if kind.several else value
    return st.one_of(value, st.just(field.default)) if kind.optional else value


def chosen(make: Callable[[dataclasses.Field], st.SearchStrategy], most: int) -> st.SearchStrategy:
    """(algorithm, values of some of its options)."""

    def values(name: str) -> st.SearchStrategy:
        known = {n: f for n, f in FIELDS[name].items() if n not in (*configs.CODE, "env_args")}
        some = st.lists(st.sampled_from([*known]), unique=True, min_size=1, max_size=most)
        fixed = some.flatmap(
            lambda names: st.fixed_dictionaries({n: make(known[n]) for n in names})
        )
        return fixed.map(lambda found: {"algorithm": name, **found})

    return st.sampled_from([*ALGORITHMS]).flatmap(values)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; 1 and 1.0 are, True and 1 are not."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) and isinstance(b, int):
        with contextlib.suppress(OverflowError):
            return a == float(b)
    return a == b or str(a) == str(b)


@holds("values of options", chosen(lambda field: st.one_of(ODD, fitting(field)), 3))
def check_values(folder: Path, values: dict[str, Any]) -> None:
    """A configuration contains the given values, also after it is saved and read."""
    config = configs.make(preset="none", **values)
    flat = configs.to_flat(config)
    for name, value in values.items():
        if not isinstance(value, str) and not hasattr(value, "shape"):
            assert same(flat[name], value), (name, flat[name], value)
    again = configs.from_json(json.loads(json.dumps(configs.to_json(config))))
    assert again == config


@holds("configurations that are built", chosen(fitting, 6))
def check_build(folder: Path, values: dict[str, Any]) -> None:
    """An accepted configuration can be traced: the first state, and an update."""
    small_run = {"num_envs": 4, "num_steps": 8, "hidden": (8,), "total_timesteps": 64}
    program = build(configs.make(preset="none", **{**small_run, **values}))
    state = jax.eval_shape(program.init, jax.random.key(0))
    after = jax.eval_shape(program.step, state)[0]
    assert jax.tree.structure(after) == jax.tree.structure(state)


ANY_FIELD = st.sampled_from([f for known in FIELDS.values() for f in known.values()])


@holds("words for options", ANY_FIELD, st.one_of(TEXTS, st.from_regex(r"[0-9x+.e\-]{1,8}")))
def check_words(folder: Path, field: dataclasses.Field, word: str) -> None:
    """An argument of the command line or of --vary; its displayed form has the same meaning."""
    try:
        value = options.parse(field, word)
    except (ValueError, OverflowError):  # errors that the command line catches
        return
    options.check(field, value)
    assert same(options.parse(field, options.show(value)), value)


@holds(
    "texts of schedules",
    st.one_of(
        TEXTS,
        st.from_regex(
            r"(linear|cosine|constant|adaptive)\([0-9e., =a-z_\-]{0,20}\)", fullmatch=True
        ),
        st.text("linearcos()=,.0123456789e- ", max_size=25),
    ),
)
def check_schedules(folder: Path, text: str) -> None:
    """A text is refused, or it is a schedule whose text is the same schedule."""
    try:
        found = schedules.parse(text)
    except ValueError as error:
        assert str(error)
        return
    assert all(isinstance(x, int | float) for x in found.numbers)
    if all(math.isfinite(x) for x in found.numbers):
        assert schedules.parse(str(found)) == found


@holds(
    "names of environments, networks and algorithms",
    st.sampled_from([*configs.CODE]),
    st.one_of(
        st.text(max_size=10),
        st.from_regex(r"no_such_[a-z]{1,4}(\.[a-z]{1,4})?(:[A-Za-z.]{0,6})?", fullmatch=True),
        st.sampled_from(["gymnax:", ":x", "gymnax:no", "ppo_jax:Pong:x", "../x:y", "x/y", "\x00"]),
    ),
)
def check_names(folder: Path, option: str, name: str) -> None:
    """Nothing has that name, which is reported in one line."""
    assume(not references.is_text(name) and name not in ALGORITHMS)
    assume(":" in name or not name.isidentifier())  # a module of that name may exist
    config = configs.make(preset="none", hidden=(4,), **{option: name})
    build(config)
    as_env(config.env)
    assert option == "env" and name in ("", config.env), "it was found"


# --- files of runs ----------------------------------------------------------------------------


def config_of(text: str | bytes, folder: Path) -> configs.TrainConfig:
    path = folder / "values.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return base_config(["--config", str(path)])


@holds(
    "TOML texts",
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60),
        st.text("seednum_v=[]{}\"'#\n.0123456789-eEinf,", max_size=60),
        st.sampled_from([f"x = {'[' * 5000}", "seed = 1" + "0" * 5000]),
    ),
)
def check_toml(folder: Path, text: str | bytes) -> None:
    """Arbitrary bytes."""
    config_of(text, folder)


def toml(value: Any) -> str | None:
    """A value in TOML; None for a value that TOML does not have."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(str(value), repr(value))
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        inner = [toml(x) for x in value]
        return None if None in inner else f"[{', '.join(map(str, inner))}]"
    return None


@holds("TOML of options", chosen(lambda field: st.one_of(PLAIN, fitting(field)), 3))
def check_toml_values(folder: Path, values: dict[str, Any]) -> None:
    """A file with a value of a valid or an invalid type."""
    written = {name: text for name, x in values.items() if (text := toml(x)) is not None}
    lines = [f"{name} = {text}" for name, text in written.items()]
    flat = configs.to_flat(config_of('preset = "none"\n' + "\n".join(lines), folder))
    for name in written:
        if not isinstance(values[name], str):
            assert same(flat[name], values[name]), name


ROWS = st.lists(st.fixed_dictionaries({"x": st.floats(allow_nan=False)}), max_size=5)
JUNK = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"{", b"[]", b"null", b'{"update": 1', b"1" * 5000, b"[" * 3000, b"\xff\xfe"]),
)


@holds("lines of metrics.jsonl", ROWS, st.lists(st.tuples(st.integers(0, 5), JUNK), max_size=3))
def check_metrics(folder: Path, rows: list[dict], junk: list[tuple[int, bytes]]) -> None:
    """Lines that are not rows, between rows: no row is added, and none is changed."""
    rows = [{"update": k + 1, "env_step": 10 * (k + 1), **row} for k, row in enumerate(rows)]
    lines = [json.dumps(row).encode() for row in rows]
    for place, line in junk:
        lines.insert(min(place, len(lines)), line.replace(b"\n", b" "))
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = list(read_metrics(folder / "metrics.jsonl"))
    assert all(row in rows for row in found)


def write_run(folder: Path) -> None:
    run_folder.write_config(configs.make(preset="none", num_envs=2), {"log_every": 3}, folder)
    shutil.copy(folder / "config.json", folder / "whole.json")


def read_run(folder: Path) -> dict[str, Any]:
    found = configs.to_json(run_folder.read_config(folder))
    run_folder.read_run_options(folder)
    run_folder.read_values(folder)
    return found


@holds("content of config.json", st.sampled_from(["config", "run", "sessions", "env", "seed",
       "algorithm", "hidden", "learning_rate", "env_args", "policy", "signature"]),
       PLAIN, st.booleans(), prepare=write_run)  # fmt: skip
def check_config_content(folder: Path, name: str, value: Any, delete: bool) -> None:
    """A value of any type in place of another: refused, or part of the configuration."""
    content = json.loads((folder / "whole.json").read_text())
    place = content if name in content else content["config"]
    if delete:
        place.pop(name, None)
    else:
        place[name] = value
    try:
        (folder / "config.json").write_text(json.dumps(content))
    except ValueError:
        return
    found = read_run(folder)
    if name in content["config"] and not delete:
        assert same(found[name], value)


def write_sweep(folder: Path) -> None:
    config = configs.make(preset="none", num_envs=2)
    Store(folder, Spec(("seed",), (config,), (0, 1), 4, 10)).describe(
        {"agents_per_device": "auto", "keep": "best", "confirm": 0, "threshold": None}
    )
    shutil.copy(folder / "sweep.json", folder / "whole.json")


@holds("content of sweep.json", st.sampled_from(["varied", "configs", "seeds", "episodes", "parts",
       "options", "sweep", "sessions", "config", "env", "seed", "hidden"]),
       PLAIN, st.booleans(), prepare=write_sweep)  # fmt: skip
def check_sweep_content(folder: Path, name: str, value: Any, delete: bool) -> None:
    """A value of any type in place of another: refused, or read."""
    content = json.loads((folder / "whole.json").read_text())
    inner = content["sweep"]
    place = next((p for p in (content, inner) if name in p), inner["configs"][0])
    if delete:
        place.pop(name, None)
    else:
        place[name] = value
    (folder / "sweep.json").write_text(json.dumps(content))
    spec, _ = read_spec(folder)
    read_sessions(folder)
    assert spec.points and all(isinstance(s, int) for s in spec.seeds) and spec.parts >= 1


DAMAGES = st.tuples(
    st.sampled_from(["flip", "set", "cut", "insert", "double", "nest"]), st.integers(0, 10**6),
    st.integers(1, 255),
)  # fmt: skip


def damaged(content: bytes, damage: tuple[str, int, int]) -> bytes:
    how, place, byte = damage
    place = place % max(len(content), 1)
    head, rest = content[:place], content[place:]
    if how == "flip":
        return head + bytes([rest[0] ^ (1 << byte % 8)]) + rest[1:]
    if how == "set":
        return head + bytes([byte]) + rest[1:]
    insert, nest = head + bytes([byte]) + rest, head + b"[" * 5000
    return {"cut": head, "insert": insert, "double": content + rest, "nest": nest}[how]


@holds("bytes of config.json", DAMAGES, prepare=write_run)
def check_config_bytes(folder: Path, damage: tuple[str, int, int]) -> None:
    """Arbitrary damage: refused, or read as a configuration with valid values."""
    whole = (folder / "whole.json").read_bytes()
    (folder / "config.json").write_bytes(damaged(whole, damage))
    read_run(folder)


STATE = {"a": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b": np.int32(7)}


def write_checkpoints(folder: Path) -> None:
    kept = Checkpoints(folder / "whole", {"env": "x"})
    kept.save(1, STATE, score=0.5)


@holds("bytes of a checkpoint", st.integers(0, 10**6), DAMAGES, prepare=write_checkpoints)
def check_checkpoint(folder: Path, which: int, damage: tuple[str, int, int]) -> None:
    """Damage in any file of a folder: refused, or the same results."""
    path = folder / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / "whole", path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file = files[which % len(files)]
    content = file.read_bytes()
    changed = damaged(content, damage) if content else b"x"
    assume(changed != content)
    file.write_bytes(changed)
    step, found = Checkpoints(path, {"env": "x"}).restore(STATE)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, found, STATE)


RECORDS = st.dictionaries(
    st.sampled_from(["text", "prompt", "completion", "chosen", "rejected", "messages", "margin"]),
    st.one_of(PLAIN, st.lists(st.dictionaries(
        st.sampled_from(["role", "content"]), st.one_of(TEXTS, PLAIN)), max_size=2)),
    max_size=4,
)  # fmt: skip


@holds("JSONL of texts, preferences and prompts", st.sampled_from(["sft", "preference", "prompt"]),
       st.lists(st.one_of(RECORDS.map(json.dumps).map(str.encode), JUNK), max_size=3))  # fmt: skip
def check_data(folder: Path, kind: str, lines: list[bytes]) -> None:
    """Training data of any form."""
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert read_data(path, kind)


# --- folders of models ------------------------------------------------------------------------


def write_model(folder: Path) -> None:
    tokenizer = CharTokenizer("abcdefgh")
    decoder = Decoder(small(tokenizer.vocab_size, 8, 1, 2, max_positions=16, eos_ids=(2,)))
    save_model(folder / "model", decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(folder / "model")
    shutil.copytree(folder / "model", folder / "whole")


MODEL_KEYS = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings",
    "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "hidden_act", "eos_token_id", "bos_token_id", "pad_token_id", "architectures",
    "sliding_window", "attention_bias", "initializer_range", "torch_dtype",
)  # fmt: skip
LITTLE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 64), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@holds("config.json of a model", st.sampled_from(MODEL_KEYS), LITTLE, prepare=write_model)
def check_model_config(folder: Path, name: str, value: Any) -> None:
    """A value of any type: a model that fits its tensors, or an error in one line."""
    content = json.loads((folder / "whole" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(content | {name: value}))
    decoder, params = load_model(folder / "model")
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    if "score" not in params:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    read_config(content | {name: value})


@holds("header of model.safetensors", DAMAGES, prepare=write_model)
def check_safetensors(folder: Path, damage: tuple[str, int, int]) -> None:
    """Damage in the header, which has names, shapes and positions of tensors."""
    whole = (folder / "whole" / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    header, data = whole[:length], whole[length:]
    (folder / "model" / "model.safetensors").write_bytes(damaged(header, damage) + data)
    load_model(folder / "model")


@holds("bytes of tokenizer.json", DAMAGES, prepare=write_model)
def check_tokenizer(folder: Path, damage: tuple[str, int, int]) -> None:
    """Arbitrary damage: refused, or a tokenizer that encodes texts."""
    whole = (folder / "whole" / "tokenizer.json").read_bytes()
    (folder / "model" / "tokenizer.json").write_bytes(damaged(whole, damage))
    tokenizer = load_tokenizer(folder / "model")
    ids = tokenizer.encode("abc")
    assert all(isinstance(i, int) for i in ids)
