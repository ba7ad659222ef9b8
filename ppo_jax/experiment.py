"""Training runs of agents: `ppo_jax.run` and `ppo_jax.evaluate`.

`python -m ppo_jax.train` is `train` with command-line options.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax import config as configs
from ppo_jax import networks
from ppo_jax.agent import Agent, read_agent
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.config import ConfigError, TrainConfig, commands, references
from ppo_jax.config.options import check_record, coerce, did_you_mean
from ppo_jax.envs import HostEnv, InvalidEnvironment, as_env, is_own, makes_vectors, spaces
from ppo_jax.envs.supervision import ended_if, limited
from ppo_jax.evaluate import (
    KEPT_PROGRAMS,
    Returns,
    agents_of,
    check_acted,
    evaluate,
    summary_of,
    warn_not_finite,
    warn_unfinished,
)
from ppo_jax.networks import Policy
from ppo_jax.runs import (
    cache,
    cluster,
    devices,
    loop,
    manifest,
    memory,
    provenance,
    trackers,
)
from ppo_jax.runs.chunk import Chunk, Step, compile_chunk, compiler_options
from ppo_jax.runs.cluster.follow import follow
from ppo_jax.runs.folder import (
    RunDirectory,
    check_callbacks,
    checkpoints_of,
    identity_of,
    read_run_options,
    read_values,
    shown,
    write_config,
)
from ppo_jax.runs.job import Callback, Job, Result, RunFailed
from ppo_jax.runs.options import RunOptions
from ppo_jax.runs.outside import Outside, watched
from ppo_jax.runs.record import RunRecord
from ppo_jax.runs.restore import load
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.trust import NOTHING, Given, sign
from ppo_jax.train import OF_PARTS, Program, build
from ppo_jax.types import PyTree, TrainState

# Metrics that are NaN where no episode finished or nothing is to be explained. Non-finite returns
# of an evaluation are reported and do not end a run.
MAY_BE_NAN = ("episode_", "eval_return_", "explained_variance")
# The message that is shown once in a run whose environments fail.
REPLACED = {
    "env_restarts": "an environment failed and was replaced; the failed step was left out, and its "
    "episode is in no statistic (summary.json counts these events as env_restarts)"
}
# XLA's option for the code generation of fused loops on CPUs.
EMITTERS = "xla_cpu_use_fusion_emitters"
# Constant folded into the seed for the keys of evaluations, which training never uses.
EVALUATION = 0xE7A1


def run(
    config: TrainConfig,
    run_dir: Path | str | None = None,
    *,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
    callbacks: Sequence[Callback] = (),
    init_from: Path | str | None = None,
    trust: bool = False,
    **options: Any,
) -> Result:
    """Train an agent and save the run in a folder, as `python -m ppo_jax.train` does.

    Args:
        config: configuration, for example from `ppo_jax.config.make`.
        run_dir: folder of the run, or None for a new folder in runs/.
        env, policy, algorithm: parts that replace the configured ones, as for `build`.
        callbacks: functions f(progress, state), called between chunks; a true result ends the run.
        init_from: run whose parameters and running statistics initialise this run.
        trust: whether a folder that is resumed or initialises this run may name code to import.
        **options: fields of RunOptions, such as eval_every, stop_at, checkpoint_seconds, overwrite.

    Returns:
        Result(state, summary, path, exit_code).

    Raises:
        ConfigError: if the configuration or an option is not valid.
        CheckpointError: if a checkpoint cannot be restored.
        InvalidEnvironment: if the environment is not valid.
        RunFailed: if the run failed while it was running; the message states what is saved.
    """
    devices.check()
    fields = dataclasses.fields(RunOptions)
    known = [f.name for f in fields]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    if "devices" in options:
        options["devices"] = str(options["devices"])
    options |= {"run_dir": run_dir} | ({} if init_from is None else {"init_from": init_from})
    if options.get("resume") is not None:
        if not trust:
            manifest.require(Path(options["resume"]), "config.json")
        options = read_run_options(Path(options["resume"])) | options
    values = {f.name: coerce(f, options[f.name]) for f in fields if f.name in options}
    parts = {"env": env, "policy": policy, "algorithm": algorithm}
    given = Given(**parts, trust=trust)
    return train(config, RunOptions(**values), given=given, callbacks=callbacks, quiet=True)


def evaluate_run(
    run: Path | str | Agent,
    episodes: int = 128,
    *,
    greedy: bool = True,
    checkpoint: str = "latest",
    seed: int = 1,
    trust: bool = False,
    **parts: Any,
) -> Returns:
    """Evaluate the agent of a run over whole episodes: `ppo_jax.evaluate`.

    Args:
        run: folder of a run, .safetensors file, name in the zoo such as "zoo:cartpole", or an Agent
            from `ppo_jax.load`.
        episodes: number E of episodes.
        greedy: whether to take the most likely action rather than a sample.
        checkpoint: "latest", "best", or the number of an update; for folders only.
        seed: seed of the episodes.
        trust: whether the folder may name code to import.
        **parts: env, policy and algorithm of a run with custom parts that the folder does not name.

    Returns:
        Returns with leaves [E]: episode_return, episode_length, finished.

    Raises:
        ConfigError: if the folder is not a run, or an argument is not valid.
        CheckpointError: if there is no complete checkpoint to restore.
        FloatingPointError: if the network's actions are not finite.
        RunFailed: if a host environment failed.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}; it must be >= 1")
    devices.check()
    given = Given(**parts, trust=trust)
    found = run.parts if isinstance(run, Agent) else read_agent(Path(run), checkpoint, given)
    env = found.config.env if given.env is None else given.env
    same = references.name_of(env) == found.config.env
    played = as_env(env, **(configs.env_kwargs(found.config) if same else {}))
    policy = found.policy
    if same and _has_value(found.config) and not isinstance(played, HostEnv):
        played, policy = _played(dataclasses.replace(found.config, seed=0))
    with _ended(played), watched_alone(played):
        result = evaluate(
            jax.random.key(seed),
            found.params,
            found.moments,
            env=played,
            policy=policy,
            episodes=episodes,
            greedy=greedy,
        )
        check_acted(result, played)
        return result


def _has_value(config: TrainConfig) -> bool:
    """Whether a configuration names only parts of the package, so that equal ones behave alike."""
    own = config.policy is not None or is_own(config.env) or config.algorithm not in ALGORITHMS
    try:
        hash(config)
    except TypeError:
        return False
    return not own


@functools.lru_cache(maxsize=KEPT_PROGRAMS)
def _played(config: TrainConfig) -> tuple[Any, Policy]:
    """(environment, policy) of a configuration. Repeated calls return the same objects, for which
    `evaluate` keeps a compiled program."""
    program = build(config)
    return program.env, program.policy


def _refuse_options(config: TrainConfig) -> None:
    """Reject an algorithm with an option that has the name of an option of every run."""
    taken = {f.name for f in dataclasses.fields(RunOptions)} & {*configs.fields(config.algorithm)}
    if taken:
        raise ConfigError(
            f"the Config of algorithm {config.algorithm!r} has a field {min(taken)!r}, which is an "
            "option of every run; give it another name"
        )


def train(
    config: TrainConfig,
    options: RunOptions,
    *,
    given: Given = NOTHING,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Result:
    """Run training from its options to its summary.

    Args:
        config: configuration of the run.
        options: options of the run.
        given: env, policy and algorithm that replace the configured ones, as for `build`, and
            whether folders are trusted.
        callbacks: functions as for `run`, in addition to those that the options name.
        quiet: whether to print nothing except the progress display.

    Raises:
        ConfigError, CheckpointError, InvalidEnvironment, RunFailed: the same as for `run`.
    """
    check_record(options)
    trackers.require(options.trackers)
    options = _settled(options)
    config = named(config, options, given)
    _refuse_options(config)
    number = _devices(options)
    config = _in_parts(config, number, options.resume)
    functions = _callbacks(config, options, callbacks, given)
    options = dataclasses.replace(options, callback=_names(options, callbacks))
    with limited(options.env_timeout):
        program = build(config)
    warn_of_the_network(config, program.env)
    start = _start(config, options, given)
    if start is not None:
        started_from(start, jax.eval_shape(program.init, jax.random.key(config.seed)))
    _check_evaluation(options, program.env)
    job = _on_devices(number, config, job_of(config, program, options.eval_episodes, start))
    loop.check(job, options)
    _check_parts(config, job)
    group = cluster.current()
    group.agree("commands", _commanded(config, options))
    if isinstance(group, cluster.Group) and not group.leads:
        return _follow(group, job, config)
    with (
        _supervised(program, options),
        open_folder(config, options) as directory,
        Signals() as signals,
    ):
        cache.use()
        record = RunRecord(
            directory.path,
            options,
            **identity_of(config),
            about=_about(config),
            config=configs.to_json(config),
            precision=config.matmul_precision,
            resume=commands.command("train"),
            next_steps=_next_steps(config, program.env, directory.path),
            quiet=quiet,
            describe=lambda: write_config(config, options.kept(), directory.path),
        )
        result = loop.run(job, record, signals=signals, callbacks=functions)
        return result._replace(exit_code=signals.exit_code)


def _next_steps(config: TrainConfig, env: Any, path: Path) -> dict[str, str]:
    """The commands that may follow a finished run, by name."""
    longer = 2 * config.total_timesteps
    watch = commands.command("evaluate", path, "--gif", "episode.gif")
    return {
        **({"watch": watch} if hasattr(env, "render") or makes_vectors(env) else {}),
        "plot": commands.command("plot", path),
        "continue": commands.command("train", "--resume", path, "--total-timesteps", longer),
    }


def _devices(options: RunOptions) -> int:
    """The number of devices of the run, over all processes."""
    processes = cluster.current().size
    if processes == 1:
        return devices.chosen(options.devices)
    return devices.of_processes(options.devices, processes)


def _check_parts(config: TrainConfig, job: Job) -> None:
    """Reject a custom algorithm that computes something from one shard of the environments only.

    With one shard on each device, the copies of the learner would diverge without an error. JAX
    detects this only if several shards are mapped in one program.

    Raises:
        ConfigError: if the algorithm does so.
    """
    if config.parts == 1 or config.algorithm in ALGORITHMS:
        return
    try:
        jax.eval_shape(job.step, job.shapes, job.frozen, job.floats)
    except (ValueError, TypeError, NotImplementedError) as error:
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"algorithm {config.algorithm} computes something from only one of {config.parts} "
            f"parts of the environments, or branches on it ({line}); reduce over all parts with "
            "ppo_jax.parallel, or omit --devices and --parts"
        ) from error


def _on_devices(number: int, config: TrainConfig, job: Job) -> Job:
    """The job, placed on the largest number of devices that its shards can be divided over."""
    layout = devices.layout(_shared(number, config), OF_PARTS)
    return job if layout is None else job._replace(layout=layout, devices=layout.mesh.size)


def _in_parts(config: TrainConfig, number: int, resume: Path | None) -> TrainConfig:
    """The configuration with one shard of the environments for each device, unless it sets a
    number; for a resumed run, with the number of shards of that run.

    Raises:
        ConfigError: if the environments cannot be divided over the devices.
    """
    if config.parts > 1:
        return config
    if resume is not None:
        return dataclasses.replace(config, parts=read_values(resume).get("parts", 1))
    if config.num_envs % number:
        raise ConfigError(
            f"num_envs = {config.num_envs} environments cannot be divided over {number} devices; "
            f"use a multiple of {number} environments, or another number of --devices"
        )
    return dataclasses.replace(config, parts=number)


def _shared(number: int, config: TrainConfig) -> int:
    """The number of devices over which the shards of the environments are divided.

    Raises:
        ConfigError: if there are several processes and the shards cannot be divided over all of
            their devices.
    """
    processes = cluster.current().size
    if processes > 1 and config.parts % number:
        raise ConfigError(
            f"the environments of this run are in {config.parts} parts, which cannot be divided "
            f"over the {number} devices of {processes} processes; use a number of devices that "
            f"divides {config.parts}"
        )
    return devices.share(number, config.parts)


def _follow(group: cluster.Group, job: Job, config: TrainConfig) -> Result:
    """Take part in a run that process 0 leads, from another process."""
    with Signals() as signals:
        cache.use()
        return follow(group, job, lambda path: checkpoints_of(path, config), signals=signals)


def _commanded(config: TrainConfig, options: RunOptions) -> dict[str, Any]:
    """The values that must be equal in all processes that train together."""
    about = {"devices": jax.devices()[0].device_kind, "resume": str(options.resume)}
    return {**configs.to_json(config), **about, **provenance.versions()}


def named(config: TrainConfig, options: RunOptions, given: Given) -> TrainConfig:
    """The configuration with names for the parts that Python passed; in a resumed run, with the
    names of the original run.

    Args:
        config: configuration of the run.
        options: options, including the run to resume, if any.
        given: env, policy and algorithm; None for the configured ones.
    """
    parts = {n: getattr(given, n) for n in configs.CODE if getattr(given, n) is not None}
    config = configs.with_own(config, **parts)
    if options.resume is None:
        return config
    saved = read_values(options.resume)  # strings only, nothing is imported
    kept: dict[str, Any] = {
        n: str(saved[n]) for n in parts if references.is_text(str(saved.get(n)))
    }
    for name, text in kept.items():
        references.bind(text, parts[name])
    return dataclasses.replace(config, **kept)


def _settled(options: RunOptions) -> RunOptions:
    """The options with an absolute path of the run that initialises this one.

    Raises:
        ConfigError: if the resumed run was initialised from another run than the given one.
    """
    start = options.init_from and options.init_from.resolve()
    if options.resume is not None:
        kept = read_run_options(options.resume).get("init_from")
        if str(start) != str(kept):
            raise ConfigError(
                f"--init-from is {start}, but the resumed run was initialised from {kept}; omit "
                "--init-from, or start a new run"
            )
    return dataclasses.replace(options, init_from=start)


def _start(config: TrainConfig, options: RunOptions, given: Given) -> TrainState | None:
    """The state that initialises this run; None if there is none, or training has already begun.

    Raises:
        ConfigError: if the folder is not a run, or names code without being trusted.
        CheckpointError: if there is no complete checkpoint to restore.
    """
    if options.init_from is None:
        return None
    if options.resume is not None and checkpoints_of(options.resume, config).steps():
        return None
    names = {str(getattr(config, name)) for name in configs.CODE}
    return load(options.init_from, trust=given.trust, followed=given.followed | names)[2]


def _callbacks(
    config: TrainConfig, options: RunOptions, callbacks: Sequence[Callback], given: Given
) -> list[Callback]:
    """The callbacks from Python and those that the options name, each once.

    Raises:
        ConfigError: if a callback cannot be imported, or the folder that names it is not trusted.
    """
    if options.resume is not None and options.callback:
        check_callbacks(options.resume, given, options.callback)
    functions = list(callbacks)
    functions += [f for f in options.callbacks() if f not in functions]
    return functions


def _names(options: RunOptions, callbacks: Sequence[Callback]) -> tuple[str, ...]:
    """The references that are saved for callbacks; a callback from a notebook has none."""
    own = (references.reference_of(f) for f in callbacks)
    return tuple(dict.fromkeys([*options.callback, *(name for name in own if name)]))


def _check_evaluation(options: RunOptions, env: Any) -> None:
    """Reject evaluations during training if they would use the environments of training.

    Raises:
        ConfigError: if there are no other environments.
    """
    if options.eval_every is not None and isinstance(env, HostEnv) and env.evaluation() is env:
        raise ConfigError(
            "--eval-every requires environments separate from those of training, but this vector "
            "environment is the only one; pass a function that makes an environment"
        )


def job_of(
    config: TrainConfig, program: Program, episodes: int = 128, start: TrainState | None = None
) -> Job:
    """A training run as a Job.

    Args:
        config: configuration of the run.
        program: program built for the configuration.
        episodes: number of greedy episodes per evaluation; 0 for no evaluation.
        start: state of another run, whose parameters and running statistics initialise this run.
    """
    static, floats = configs.split(config)
    shapes = jax.eval_shape(program.init, jax.random.key(config.seed))

    def init() -> TrainState:
        state = first_state(config, program)
        return state if start is None else started_from(start, state)

    def evaluate_state(state: TrainState, *folds: int) -> dict[str, Any]:
        return _evaluation(config, program, state, folds=folds, episodes=episodes)

    return Job(
        name=f"{config.algorithm} on {config.env}, seed {config.seed}",
        init=init,
        shapes=shapes,
        step=step_of(static, program.env),
        updates=config.num_updates,
        unit="env_steps",
        units_per_update=config.num_envs * config.num_steps,
        headline="episode_return",
        floats=floats,
        curves=("episode_return",),
        may_be_nan=MAY_BE_NAN,
        promises=configs.promises(config) | REPLACED,
        score=("episode_return", "eval_return_mean"),
        evaluate=evaluate_state if episodes else None,
        result=lambda state, path: evaluate_state(state) if episodes else {},
        restart=program.restart if isinstance(program.env, HostEnv) else lambda state: state,
        outside=_outside(program.env) if isinstance(program.env, HostEnv) else None,
        cause="a learning rate that is too high, or rewards or observations that are not finite or "
        "not normalised",
        source=f"environment {config.env}",
        needs=_needs(config, program.env, shapes),
        pure=not isinstance(program.env, HostEnv),
        devices=1,
    )


def _needs(config: TrainConfig, env: Any, shapes: TrainState) -> dict[str, int]:
    """The arrays in memory in addition to the state: the observations of a rollout, and the
    action, the reward and two flags of each step."""
    steps = config.num_envs * config.num_steps
    size = config.num_steps * memory.bytes_of(shapes.rollout.obs)
    size += steps * (4 * math.prod(env.action_space.shape) + 4 + 2)
    return {f"a rollout of {config.num_envs} x {config.num_steps} steps": size}


def step_of(static: TrainConfig, env: Any = None) -> Step:
    """One update as a function of the configuration's floats.

    Args:
        static: static part of a configuration, from `config.split`.
        env: environment, as for `build`.

    Returns:
        Function (TrainState, (), floats) -> (TrainState, Metrics, guard.Found).
    """

    def step(state: TrainState, frozen: PyTree, floats: PyTree) -> Any:
        return build(configs.merge(static, floats), env).guarded_step(state)

    return step


def first_state(config: TrainConfig, program: Program) -> TrainState:
    """The state of a run before its first update, compiled with the options of runs."""
    key = jax.random.key(config.seed)
    compiled = compile_once(jax.jit(program.init).lower(key))
    memory.check_program("the first state", compiled)
    return jax.block_until_ready(compiled(key))


def compile_once(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program that runs only once.

    On CPUs the program is compiled without XLA's fusion emitters, which produce faster code but
    take longer to compile. The results are identical to the bit.

    Args:
        lowered: lowered program.
    """
    options = compiler_options()
    if jax.default_backend() == "cpu" and EMITTERS not in os.environ.get("XLA_FLAGS", ""):
        # A version of XLA without this option raises an error and compiles without it.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile({**options, EMITTERS: False})
    return lowered.compile(options)


class Compiled(NamedTuple):
    """The compiled programs of a run, for measurements.

    Attributes:
        init: function () -> TrainState, which is compiled when it is called.
        chunk: function (TrainState, floats, count) -> (TrainState, Metrics with leaves [MAX_CHUNK]
            to be read by `guard.show`, result of the guard). The argument's state is donated.
        floats: floats that `chunk` takes.
    """

    init: Callable[[], TrainState]
    chunk: Chunk
    floats: dict[str, Any]


def compile_run(config: TrainConfig, program: Program, number: int = 1) -> Compiled:
    """Compile the programs of a run, in the same way as a run does.

    Args:
        config: configuration of the run.
        program: program built for the configuration.
        number: number of devices, a divisor of the configuration's `parts`.
    """
    job, layout = job_of(config, program), devices.layout(number, OF_PARTS)
    chunk = compile_chunk(
        job.step, job.shapes, job.floats, may_be_nan=job.may_be_nan, layout=layout
    )
    init = job.init if layout is None else lambda: layout.place(job.init())
    return Compiled(init, chunk, job.floats)


def started_from(other: TrainState, state: TrainState) -> TrainState:
    """An initial state with the parameters and the running statistics of another run.

    The state of the optimiser is initialised anew. Running statistics are taken if both runs have
    them.

    Raises:
        ConfigError: if the networks or the observations of the two runs differ.
    """
    _refuse_other_shapes("parameters", other.learner.params, state.learner.params)
    theirs, ours = other.rollout.moments, state.rollout.moments
    taken = {}
    for name in ("obs", "reward"):
        mine, given = getattr(ours, name), getattr(theirs, name)
        if mine != () and given != ():
            _refuse_other_shapes(f"statistics of {name}", given, mine)
            taken[name] = given
    moments = dataclasses.replace(ours, **taken)
    learner = dataclasses.replace(state.learner, params=other.learner.params)
    experience = dataclasses.replace(state.rollout, moments=moments)
    return dataclasses.replace(state, learner=learner, rollout=experience)


def _refuse_other_shapes(what: str, theirs: PyTree, ours: PyTree) -> None:
    def described(tree: PyTree) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p): f"{x.dtype}{list(x.shape)}" for p, x in leaves}

    given, wanted = described(theirs), described(ours)
    differing = [n for n in sorted({*given, *wanted}) if given.get(n) != wanted.get(n)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"--init-from: the {what} of that run do not fit this run: {name} is "
            f"{given.get(name, 'missing')} there and {wanted.get(name, 'missing')} here; spaces, "
            "network and algorithm must have the same shapes"
        )


def _evaluation(
    config: TrainConfig, program: Program, state: TrainState, *, folds: Sequence[int], episodes: int
) -> dict[str, Any]:
    """Returns of greedy episodes. Each evaluation during training has its own keys."""
    key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION)
    for update in folds:
        key = jax.random.fold_in(key, update)
    try:
        result = evaluate(
            key,
            *devices.on_one((state.learner.params, state.rollout.moments)),
            env=program.env,
            policy=program.policy,
            episodes=episodes,
        )
    except InvalidEnvironment as error:  # an environment could not be created a second time
        if not isinstance(program.env, HostEnv) or not program.env.supervision.active:
            raise
        program.env.supervision.failure = str(error)
    if isinstance(program.env, HostEnv) and program.env.supervision.failure is not None:
        return {}  # the loop reads the failure
    check_acted(result, program.env)
    warn_unfinished(np.asarray(result.finished))
    warn_not_finite(np.asarray(result.episode_return))
    return summary_of(result.episode_return, result.finished, agents_of(program.env))


def warn_of_the_network(config: TrainConfig, env: Any) -> None:
    """Warn if the package's own network does not fit the environment: the initial actions of its
    Gaussian, or its convolutions."""
    if config.policy is not None:
        return
    found = []
    if not config.squash and config.action_distribution != "beta":
        found += [networks.first_actions(env.action_space, config.log_std_init, config.map_actions)]
    if config.network != "mlp":
        _, image = spaces.image(env.observation_space)
        found += [networks.unread_pixels(config.network, image.shape)]
    for text in filter(None, found):
        warnings.warn(f"{config.env}: {text}", stacklevel=1)


def _about(config: TrainConfig) -> dict[str, Any]:
    """The entries that summary.json has from the beginning of a run."""
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "eval_return_mean": None,
        "eval_return_std": None,
        "eval_return_ci95_low": None,
        "eval_return_ci95_high": None,
        "eval_episodes": 0,
        "eval_episodes_cut": 0,
    }


@contextlib.contextmanager
def _ended(env: Any) -> Iterator[None]:
    """Close host environments and their processes at the end of a run."""
    try:
        yield
    finally:
        if isinstance(env, HostEnv):
            env.supervision.end()
            env.close()


@contextlib.contextmanager
def _supervised(program: Program, options: RunOptions) -> Iterator[None]:
    """Create host environments, and supervise them during the run.

    Raises:
        ConfigError: if an option for host environments is set and there are none.
        InvalidEnvironment: if an environment cannot be created.
    """
    env = program.env
    if not isinstance(env, HostEnv):
        for name in ("env_timeout", "env_restarts"):
            if getattr(options, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(options, name):g}, but "
                    f"{getattr(env, 'name', type(env).__name__)} does not run on the host: it has "
                    "no processes that could hang or fail; omit the option"
                )
        yield
        return
    env.supervision.begin(options.env_timeout, options.env_restarts)
    with _ended(env):
        with ended_if(env.supervision.stuck):
            program.vector_env.start()  # type: ignore[attr-defined]
        yield


def _outside(env: HostEnv) -> Outside:
    """The host environments of a run, as the loop of the run observes them."""
    supervision = env.supervision

    def numbers() -> dict[str, int]:
        return {"env_restarts": supervision.replaced} if supervision.restarts else {}

    def limit_calls(since: float) -> None:
        supervision.ending_since = since

    return Outside(lambda: supervision.failure, numbers, limit_calls, supervision.stuck)


@contextlib.contextmanager
def watched_alone(env: Any) -> Iterator[None]:
    """Supervise host environments while they are evaluated outside a run.

    Raises:
        RunFailed: if an environment failed.
    """
    if not isinstance(env, HostEnv):
        yield
        return
    env.supervision.begin()
    outside = _outside(env)
    with Signals() as signals:

        def give_up(reason: str) -> None:
            sys.stderr.write(f"error: {reason}\n")
            sys.stderr.flush()
            os._exit(signals.exit_code or 1)

        def limit_calls(since: float) -> None:
            outside.limit_calls(since)
            env.supervision.failure = "stopped"  # no further step is executed

        with watched(outside._replace(limit_calls=limit_calls), signals, give_up):
            yield
    if signals.received:
        signal.raise_signal(signals.received)  # the default action of the signal
    if env.supervision.failure is not None:
        raise RunFailed(env.supervision.failure)


def open_folder(config: TrainConfig, options: RunOptions) -> RunDirectory:
    """Open the run's folder, locked, with config.json in it.

    Raises:
        ConfigError: if the folder contains a run or other files, or cannot be written.
    """
    name = f"{config.env}_{config.algorithm}_seed{config.seed}"
    # A configuration that cannot be saved or signed is rejected before an earlier run is deleted.
    sign({"config": configs.to_json(config), "run": shown(options.kept())})
    return RunDirectory.opened(
        options, name, lambda path: write_config(config, options.kept(), path)
    )
