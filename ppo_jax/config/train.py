"""The configuration of a run: a frozen dataclass, its validation, and its presets.

The command line (`ppo_jax.cli`), the file config.json and `make_train` use the same dataclasses.
JAX is not imported here.
"""

import contextlib
import dataclasses
import math
from typing import Any

from ppo_jax import algorithms
from ppo_jax.algorithms import hooks
from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.config import foreign, references, standard
from ppo_jax.config.options import (
    MAX_SIZE,
    ConfigError,
    coerce,
    did_you_mean,
    floats_of,
    option,
    with_floats,
)
from ppo_jax.config.options import check as check_option
from ppo_jax.config.options import guess as guess_value
from ppo_jax.config.options import to_json as json_value
from ppo_jax.config.presets import PRESETS
from ppo_jax.config.schedules import check_moving
from ppo_jax.config.traced import is_tracer
from ppo_jax.suites import is_own, same_env

# The values of options that older saved configurations do not have.
BEFORE = {"map_actions": False}
# The fields of TrainConfig that may name code which is not in the package.
CODE = ("env", "policy", "algorithm")
# Further names that the option of an algorithm cannot have, besides attributes of TrainConfig.
TAKEN = ("hyper", "preset", "config", "trust")
# The methods that an algorithm's Config may have: `ppo_jax.algorithms.hooks`.
HOOKS = ("collector", "resolve", "divisors", "check")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The environment, the length of the run, the network, and the algorithm's hyperparameters."""

    env: str = option(
        "CartPole-v1",
        "environment: an ID, SUITE:ID, or an environment of your own as MODULE:NAME",
    )
    env_args: tuple[str, ...] = option((), "arguments of the environment, each as NAME=VALUE")
    algorithm: str = option(
        "ppo",
        f"algorithm: {', '.join(CONFIGS)}, or an algorithm of your own as MODULE or MODULE:NAME",
    )
    policy: str | None = option(
        None,
        "network of your own as MODULE:NAME; None: the network described by the other options",
    )
    total_timesteps: int = option(
        500_000, "number of environment steps of the whole run", low=1, large=True
    )
    num_envs: int = option(4, "number of parallel environments", low=1)
    num_steps: int = option(128, "number of steps of each environment per rollout", low=1)
    parts: int = option(
        1, "number of parts that the environments are divided into, each with its own PRNG key; "
        "several devices can share the parts", low=1,
    )  # fmt: skip
    seed: int = option(0, "seed of all random numbers of the run", low=0, high=2**32 - 1)
    hidden: tuple[int, ...] = option(
        (64, 64), "number of units of each fully connected layer", low=1
    )
    activation: str = option(
        "tanh", "activation function of the hidden layers", choices=standard.ACTIVATIONS
    )
    norm: str = option(
        "none",
        "normalisation of each hidden layer before its activation: none, layer norm or RMS norm",
        choices=standard.NORMS,
    )
    residual: bool = option(
        False, "make the hidden layers residual blocks (SimBa), all of the same width"
    )
    network: str = option(
        "mlp",
        "fully connected layers alone (mlp), or convolutions in front of them",
        choices=standard.CONVOLUTIONS,
    )
    memory: str = option(
        "none",
        "memory after the fully connected layers: a recurrent cell, or a gated transformer (gtrxl)",
        choices=standard.MEMORIES,
    )
    memory_size: int = option(64, "number of units of each layer of the memory", low=1)
    memory_layers: int = option(1, "number of layers of the memory", low=1)
    memory_heads: int = option(4, "number of attention heads of memory gtrxl", low=1)
    memory_length: int = option(
        32, "number of previous steps that each layer of memory gtrxl attends to", low=1
    )
    frame_mix: str = option(
        "none",
        "transformation of stacked frames: none, or differences between successive frames",
        choices=standard.FRAME_MIXES,
    )
    shared_torso: bool = option(False, "share the hidden layers between actor and critic")
    action_distribution: str = option(
        "gaussian",
        "distribution of continuous actions: a Gaussian with one standard deviation for all states "
        "or one that the network outputs, Beta between the bounds, or state-dependent exploration",
        choices=standard.ACTION_DISTRIBUTIONS,
    )
    squash: bool = option(False, "use a tanh-squashed Gaussian policy for continuous actions")
    log_std_init: float = option(0.0, "initial log standard deviation of a Gaussian policy")
    noise_steps: int | None = option(
        None,
        "number of steps for which action_distribution gsde keeps its noise matrix; None: 4",
        low=1,
    )
    map_actions: bool = option(
        True,
        "map [-1, 1] to the action bounds where a Gaussian around 0 would start outside them",
    )
    value_head: str = option(
        "scalar",
        "output of the critic: a number, classes of values (two_hot, hl_gauss), or quantiles",
        choices=standard.VALUE_HEADS,
    )
    value_bins: int = option(51, "number of classes or quantiles of the critic", low=2)
    value_low: float = option(-10.0, "smallest value of the critic's classes")
    value_high: float = option(10.0, "largest value of the critic's classes")
    normalize_obs: bool = option(False, "normalise observations by their running statistics")
    normalize_reward: bool = option(
        False, "divide rewards by the running standard deviation of the returns"
    )
    reset_pool: int | None = option(
        None,
        "number of initial states drawn per rollout; None: enough for every episode that can end",
        low=1,
    )
    stagger: bool = option(
        False,
        "cut the first episode of each environment at another time, so that environments are not "
        "all reset at once",
    )
    network_dtype: str = option(
        "float32",
        "data type of the activations; parameters and outputs are float32",
        choices=standard.DTYPES,
    )
    matmul_precision: str = standard.matmul_precision()
    hyper: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "hyper":
                value = coerce(field, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        if self.hyper is None and isinstance(self.algorithm, str):
            with contextlib.suppress(ConfigError):  # `check` refuses what is unknown
                object.__setattr__(self, "hyper", algorithms.config_of(self.algorithm)())

    @property
    def num_updates(self) -> int:
        """U, the number of updates: one for each rollout that fits into total_timesteps."""
        return self.total_timesteps // (self.num_envs * self.num_steps)


def make(preset: str | None = None, **values: Any) -> TrainConfig:
    """A configuration from the names of options; the preset of the environment is the default.

    make(env="Pendulum-v1", num_envs=32, gamma=0.95)

    Args:
        preset: name of a preset. None: the preset of the environment and algorithm, if there is
            one; "none": no preset.
        **values: fields of TrainConfig and of the algorithm's Config. env, policy and algorithm
            may be objects: the configuration holds the names by which they can be imported, or
            texts that represent them in this process only. An environment of the user's own has no
            preset unless one is named.

    Raises:
        ConfigError: an unknown name (with the nearest ones), or a value out of its range.
    """
    values = {n: named(n, v) for n, v in values.items()}
    values = {**preset_values(preset, values.get("env"), values.get("algorithm")), **values}
    config = from_flat(values)
    check(config)
    return config


def with_own(config: TrainConfig, **parts: Any) -> TrainConfig:
    """A configuration that names the parts which are passed from Python.

    Args:
        config: a configuration.
        **parts: env, policy and algorithm, as objects or names; None: that of the configuration.

    Raises:
        ConfigError: the hyperparameters belong to another algorithm.
    """
    names = {n: named(n, part) for n, part in parts.items() if part is not None}
    if "env" in names and names["env"] != config.env:
        names["env_args"] = ()
    if not names:
        return config
    config = dataclasses.replace(config, **names)
    if "algorithm" in names and not isinstance(
        config.hyper, expected := algorithms.config_of(config.algorithm)
    ):
        raise ConfigError(
            f"hyper is a {_class(type(config.hyper))}; algorithm {config.algorithm!r} needs "
            f"{_class(expected)}: make the configuration with "
            "config.make(algorithm=...)"
        )
    return config


def named(option: str, value: Any) -> Any:
    """A value as a configuration holds it: the name of an object instead of the object.

    A value that cannot be an environment, a policy or an algorithm is returned unchanged, and
    `check` refuses it.
    """
    plain = isinstance(value, str | bool | int | float | dict | list | None)
    return value if plain or option not in CODE else references.name_of(value)


def preset_values(preset: str | None, env: str | None, algorithm: str | None) -> dict[str, Any]:
    """Name -> value of the options of a preset, env and algorithm included; {} without a preset.

    Raises:
        ConfigError: an unknown preset, or a preset of another environment or algorithm.
    """
    for name, value in (("preset", preset), ("env", env), ("algorithm", algorithm)):
        if not isinstance(value, str | None):
            raise ConfigError(f"{name} is {value!r}; it must be of type str")
    if preset == "none":
        return {}
    if preset is None:
        return dict(PRESETS.get(preset_of(env, algorithm) or "none", {}))
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; {_near_preset(preset)}")
    values = PRESETS[preset]
    if env and is_own(env):
        values = {**values, "env": env, "env_args": ()}
    elif env and not same_env(values["env"], env):
        raise ConfigError(f"preset {preset!r} is for env {values['env']}, not {env}")
    if algorithm and algorithm != values["algorithm"]:
        raise ConfigError(f"preset {preset!r} is for {values['algorithm']}, not {algorithm}")
    return dict(values)


def _near_preset(name: str) -> str:
    """The presets with a similar name, or the command that lists all of them."""
    near = did_you_mean(name, PRESETS, 0.7)
    return near if near.startswith("did you mean") else "`ppo-jax presets` lists the presets"


def preset_of(env: str | None, algorithm: str | None) -> str | None:
    """The name of the preset that belongs to an environment and an algorithm; None: there is none.

    Args:
        env: name of the environment; None: the default one.
        algorithm: name of the algorithm; None: the default one.

    Raises:
        UnknownEnvironment: no suite has the environment.
    """
    env, algorithm = env or TrainConfig.env, algorithm or TrainConfig.algorithm
    for name, values in PRESETS.items():
        if values["algorithm"] == algorithm and same_env(values["env"], env):
            return name
    return None


def fields(algorithm: str) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of every option: those of TrainConfig, then those of the algorithm.

    Raises:
        ConfigError: an unknown algorithm, or an algorithm whose Config uses a reserved name.
    """
    if not isinstance(algorithm, str):
        raise ConfigError(f"algorithm is {algorithm!r}; it must be of type str")
    own = [f for f in dataclasses.fields(TrainConfig) if f.name != "hyper"]
    config = algorithms.config_of(algorithm)
    theirs = dataclasses.fields(config)
    if not algorithms.in_package(algorithm) or any("bounds" not in f.metadata for f in theirs):
        theirs = algorithms.options(config, algorithm)
    taken = [f.name for f in theirs if hasattr(TrainConfig, f.name) or f.name in TAKEN]
    if taken:
        raise ConfigError(
            f"the Config of algorithm {algorithm!r} has a field {taken[0]!r}, a name that every "
            "run's configuration has already; give it another name"
        )
    hook = [f.name for f in theirs if f.name in HOOKS]
    if hook:
        raise ConfigError(
            f"the Config of algorithm {algorithm!r} has a field {hook[0]!r}, the name of a hook, "
            "which is a method; give it another name"
        )
    return {f.name: f for f in (*own, *theirs)}


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """Name -> value for every option."""
    return {
        name: getattr(config if hasattr(config, name) else config.hyper, name)
        for name in fields(config.algorithm)
    }


def from_flat(values: dict[str, Any]) -> TrainConfig:
    """The configuration with these values, and with defaults for all other options.

    Raises:
        ConfigError: an unknown name; the message lists similar names.
    """
    algorithm = values.get("algorithm", TrainConfig.algorithm)
    known = fields(algorithm)
    for name in values:
        if name not in known:
            others = {n: {f.name for f in dataclasses.fields(c)} for n, c in CONFIGS.items()}
            hint = foreign.hint(name, known, others, str) or did_you_mean(name, known)
            raise ConfigError(f"unknown option {name!r}; {hint}")
    values = {name: coerce(known[name], value) for name, value in values.items()}
    own = {f.name for f in dataclasses.fields(TrainConfig)}
    hyper = {k: v for k, v in values.items() if k not in own}
    return TrainConfig(
        **{k: v for k, v in values.items() if k in own},
        hyper=algorithms.config_of(algorithm)(**hyper),
    )


def to_json(config: TrainConfig) -> dict[str, Any]:
    """`to_flat` in the types of JSON; an infinite number is the string "inf"."""
    return {k: json_value(v) for k, v in to_flat(config).items()}


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_json`, also for values that were read from TOML.

    Raises:
        ConfigError: an unknown name, or a value out of its range.
    """
    config = from_flat(values)
    check(config)
    return config


def from_saved(values: dict[str, Any]) -> TrainConfig:
    """`from_json` for a file that an older version may have written; options that it does not have
    keep their old meaning."""
    return from_json(BEFORE | values)


def resolve(config: TrainConfig, env: Any = None) -> TrainConfig:
    """The configuration with values in place of those None that depend on the run.

    Args:
        config: a configuration. If its annealing horizon is None, it becomes the run's length.
        env: environment from which the algorithm's options are filled in; None: they stay None.
    """
    hyper = config.hyper if env is None else hooks.resolve(config.hyper, env)
    if to_flat(config).get("anneal_timesteps", math.inf) is None:
        hyper = dataclasses.replace(hyper, anneal_timesteps=float(config.total_timesteps))
    return dataclasses.replace(config, hyper=hyper)


def promises(config: TrainConfig) -> dict[str, str]:
    """Metrics that are 0 in a correct run, each with the meaning of another value.

    A value other than 0 means that the environment or the algorithm is not as it is described.
    """
    from ppo_jax import rollout

    return rollout.PROMISES | hooks.promises(config.hyper)


def discount(config: TrainConfig) -> Any:
    """[] γ of the algorithm. For an algorithm without γ it is 0.99, and only the scale of
    normalised rewards depends on it."""
    return to_flat(config).get("gamma", 0.99)


TRACED = "traced"
# Updates are counted in int32.
MAX_UPDATES = 2**31 - 1


def split(config: TrainConfig) -> tuple[TrainConfig, dict[str, Any]]:
    """(static, floats): the part that determines the compiled program, and its float arguments.

    Floats are traced, so that one compiled program serves every value and vmaps over many;
    integers, switches, names and None are static.

    Returns:
        static: a hashable configuration with a placeholder for each float; floats: name -> value,
            where the numbers of a schedule have names such as "learning_rate.start".
    """
    flat = to_flat(resolve(config))
    floats: dict[str, Any] = {}
    for name, field in fields(config.algorithm).items():
        mine = floats_of(field, flat[name])
        flat[name] = with_floats(field, flat[name], dict.fromkeys(mine, TRACED))
        floats |= mine
    return from_flat(flat), floats


def merge(static: TrainConfig, floats: dict[str, Any]) -> TrainConfig:
    """The inverse of `split`."""
    known, flat = fields(static.algorithm), to_flat(static)
    return from_flat({n: with_floats(known[n], value, floats) for n, value in flat.items()})


def float_names(static: TrainConfig) -> list[str]:
    """The names of the floats that belong to the static part that `split` returns."""
    known, flat = fields(static.algorithm), to_flat(static)
    marked = [floats_of(known[name], value) for name, value in flat.items()]
    return [name for floats in marked for name, value in floats.items() if value == TRACED]


def check(config: TrainConfig, env: Any = None) -> None:
    """Refuse a configuration that cannot work; values that are tracers are not checked.

    Args:
        config: a configuration.
        env: the environment, for the checks that need it; None: these checks are omitted.

    Raises:
        ConfigError: a value is invalid; the message states the value and a remedy.
    """
    known = fields(config.algorithm)
    expected = algorithms.config_of(config.algorithm)
    if not isinstance(config.hyper, expected):
        raise ConfigError(
            f"hyper is a {_class(type(config.hyper))}; algorithm {config.algorithm!r} needs "
            f"{_class(expected)}"
        )
    for name, value in to_flat(config).items():
        if not is_tracer(value):
            check_option(known[name], value)
    references.check_policy(config.policy)
    horizon = getattr(config.hyper, "anneal_timesteps", None)
    check_moving(config.hyper, config.total_timesteps if horizon is None else horizon)
    _check_sizes(config)
    env_kwargs(config)
    try:
        hooks.check(config.hyper, config, env)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _class(kind: Any) -> str:
    """The full name of a class, for messages."""
    return f"{kind.__module__}.{kind.__qualname__}"


def env_kwargs(config: TrainConfig) -> dict[str, Any]:
    """The arguments of a configuration's environment: `parse_env_args` of its env_args."""
    return parse_env_args(config.env_args)


def parse_env_args(env_args: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that `env_args` contains, as keyword arguments.

    ("size=42", "difficulty=hard") -> {"size": 42, "difficulty": "hard"}. A value is a number or a
    truth value where JSON would read one, otherwise text.

    Raises:
        ConfigError: a text is not NAME=VALUE, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in env_args:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise ConfigError(
                f"env_args has {text!r}; each is NAME=VALUE, as in --env-args size=42 frames=3"
            )
        if name in found:
            raise ConfigError(f"env_args gives {name} twice")
        found[name] = guess_value(value)
    return found


def _check_sizes(config: TrainConfig) -> None:
    steps = config.num_envs * config.num_steps
    if steps > MAX_SIZE:
        raise ConfigError(
            f"a rollout has num_envs x num_steps = {config.num_envs} x {config.num_steps} = "
            f"{steps} samples; there may be at most {MAX_SIZE}"
        )
    if config.total_timesteps < steps:
        raise ConfigError(
            f"total_timesteps is {config.total_timesteps}, less than one rollout of num_envs x "
            f"num_steps = {config.num_envs} x {config.num_steps} = {steps}"
        )
    if config.num_updates > MAX_UPDATES:
        raise ConfigError(
            f"total_timesteps is {config.total_timesteps:.3g}, or {config.num_updates:.3g} "
            f"rollouts; it must be at most {MAX_UPDATES * steps}"
        )
    if config.num_envs % config.parts:
        raise ConfigError(
            f"num_envs = {config.num_envs} does not divide into {config.parts} parts; nearest that "
            f"do: {_nearest(config.num_envs, config.parts)}"
        )
    for name, value in hooks.divisors(config.hyper).items():
        _check_divides(config, name, value)
    _check_layers(config)
    _check_value_head(config)
    _check_stagger(config)
    _check_action_distribution(config)
    _check_memory(config)


def _check_memory(config: TrainConfig) -> None:
    """Refuse options of another memory, and heads that do not divide the units.

    A policy of the user's own may use the options in its own way.
    """
    if config.policy is not None:
        return
    gated, any_memory = ("gtrxl",), standard.MEMORIES[1:]
    users = {"memory_layers": any_memory, "memory_heads": gated, "memory_length": gated}
    for name, kinds in users.items():
        value, default = getattr(config, name), TrainConfig.__dataclass_fields__[name].default
        if value != default and config.memory not in kinds:
            raise ConfigError(
                f"{name} is {value}, but memory {config.memory} does not use it; use "
                f"memory={' or '.join(kinds)}, or leave {name} at {default}"
            )
    if config.memory == "gtrxl" and config.memory_size % config.memory_heads:
        raise ConfigError(
            f"memory_size is {config.memory_size}, which does not divide into "
            f"{config.memory_heads} memory_heads; nearest that do: "
            f"{_nearest(config.memory_size, config.memory_heads)}"
        )


def _check_action_distribution(config: TrainConfig) -> None:
    """Refuse options that have no effect on the distribution of actions."""
    kind = config.action_distribution
    if config.squash and kind == "beta":
        raise ConfigError(
            "squash has no effect on action_distribution beta, which is within the bounds; omit "
            "one of the two"
        )
    start = config.log_std_init
    if kind == "beta" and not is_tracer(start) and start not in (0.0, TRACED):
        raise ConfigError(
            f"log_std_init is {start}, which has no effect on action_distribution beta; omit one "
            "of the two"
        )
    if kind == "gsde" and not config.hidden and config.memory == "none":
        raise ConfigError(
            "action_distribution gsde needs a hidden layer, whose outputs are the features of its "
            "noise; use hidden=(64,)"
        )
    if config.noise_steps is not None and kind != "gsde":
        raise ConfigError(
            f"noise_steps is {config.noise_steps}, but action_distribution {kind} draws new noise "
            "in every step; use action_distribution=gsde, or noise_steps=None"
        )


def _check_stagger(config: TrainConfig) -> None:
    """Refuse staggered first episodes where there are no first episodes to spread."""
    if not config.stagger:
        return
    if hooks.whole_episodes(config.hyper):
        raise ConfigError(
            f"stagger is on, but {config.algorithm} determines itself when episodes start; use "
            "stagger=False"
        )
    if config.num_envs == config.parts:
        raise ConfigError(
            f"stagger spreads the first episodes of several environments, but num_envs is "
            f"{config.num_envs} in {config.parts} parts; use more environments or stagger=False"
        )


# Head of the critic -> the options of classes and quantiles that it has.
VALUE_OPTIONS = {
    "scalar": (),
    "quantile": ("value_bins",),
    "two_hot": ("value_bins", "value_low", "value_high"),
    "hl_gauss": ("value_bins", "value_low", "value_high"),
}


def _check_value_head(config: TrainConfig) -> None:
    """Refuse classes without a range, heads without a critic, and options without an effect."""
    head, low, high = config.value_head, config.value_low, config.value_high
    for name in VALUE_OPTIONS["hl_gauss"]:
        value, default = getattr(config, name), getattr(TrainConfig, name)
        if name in VALUE_OPTIONS[head] or is_tracer(value) or value in (default, TRACED):
            continue
        having = " or ".join(h for h, names in VALUE_OPTIONS.items() if name in names)
        raise ConfigError(
            f"{name} is {value:g}, which a critic with value_head={head} does not use; use "
            f"value_head={having}, or omit {name}"
        )
    numbers = not any(is_tracer(x) or x == TRACED for x in (low, high))
    if numbers and low >= high:
        raise ConfigError(f"value_low is {low:g} and value_high {high:g}; value_low must be less")
    if head == "scalar":
        return
    if hooks.critic(config.hyper) == "none":
        raise ConfigError(
            f"value_head is {head}, but {config.algorithm} has no critic here; use "
            "value_head=scalar"
        )
    if getattr(config.hyper, "value_clip_eps", None) is not None:
        raise ConfigError(
            f"value_clip_eps needs a critic of numbers; use value_head=scalar instead of {head}, "
            "or value_clip_eps=None"
        )


def _check_layers(config: TrainConfig) -> None:
    """Refuse residual blocks of different widths or without normalisation, and either of them
    without a layer."""
    if not config.hidden and (config.residual or config.norm != "none"):
        given = "residual" if config.residual else f"norm={config.norm}"
        raise ConfigError(
            f"{given} changes the hidden layers, but there are none; set hidden, for example "
            "--hidden 64 64"
        )
    if not config.residual:
        return
    widths = sorted(set(config.hidden))
    if len(widths) > 1:
        raise ConfigError(
            f"hidden is {' '.join(map(str, config.hidden))}; residual blocks have one width, for "
            f"example --hidden {' '.join([str(widths[-1])] * len(config.hidden))}"
        )
    if config.norm == "none":
        raise ConfigError("residual blocks need a normalisation: --norm layer or --norm rms")


def _check_divides(config: TrainConfig, name: str, value: int) -> None:
    """Refuse a number that does not divide the samples of a rollout.

    For a recurrent policy it must divide the environments, whose sequences stay whole. Each part of
    the environments is divided on its own.
    """
    rows, envs = config.num_envs // config.parts, "num_envs"
    if config.parts > 1:
        envs = "num_envs / parts"
    of = f"{envs} = {rows}"
    if config.memory == "none":
        of = f"{envs} x num_steps = {rows} x {config.num_steps} = {rows * config.num_steps}"
        rows *= config.num_steps
    if rows % value:
        why = "" if config.memory == "none" else ", whose steps a recurrent policy keeps together,"
        raise ConfigError(
            f"{of}{why} does not divide into {value} {name}; nearest that do: "
            f"{_nearest(rows, value)}"
        )


def _nearest(number: int, divisor: int) -> list[int]:
    """The divisors of a number that are nearest to another number."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    near = sorted({*small, *(number // d for d in small)}, key=lambda d: abs(d - divisor))
    return sorted(near[:3])
