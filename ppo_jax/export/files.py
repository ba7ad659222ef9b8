"""Writing of the files of an exported policy, and their check."""

from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.agent import read_agent
from ppo_jax.config import ConfigError
from ppo_jax.config.options import did_you_mean
from ppo_jax.export import interface, onnx, safetensors, stablehlo, verify
from ppo_jax.runs import cards, manifest
from ppo_jax.runs.trust import Given

FORMATS: dict[str, Any] = {"stablehlo": stablehlo, "onnx": onnx, "safetensors": safetensors}


class Exported(NamedTuple):
    """The written files and the result of their check.

    Attributes:
        files: paths of the written files, the policy first.
        observations: number of observations on which actions were compared.
        max_difference: largest difference between an action of the file and of the run.
    """

    files: list[Path]
    observations: int
    max_difference: float


def export(
    run: Path | str,
    format: str,
    out: Path | str | None = None,
    checkpoint: str = "latest",
    *,
    trust: bool = False,
    env: Any = None,
    policy: Any = None,
    algorithm: Any = None,
) -> Exported:
    """Write the greedy policy of a run to a file, and compare its actions in a new process.

    Args:
        run: folder of the run, .safetensors file, or name in the zoo, such as "zoo:cartpole".
        format: name of the format, a key of FORMATS.
        out: path of the file; None for policy.FORMAT in the folder of the run, which an agent that
            is not in a folder does not have.
        checkpoint: "latest", "best", or the number of an update.
        trust, env, policy, algorithm: arguments of `ppo_jax.load`.

    Returns:
        The written files and the result of the comparison, as Exported.

    Raises:
        ConfigError, CheckpointError: the folder is not a run, the format does not support the
            policy, or the file cannot be written.
        NotTheSame: actions of the file differ from those of the run.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; {did_you_mean(format, FORMATS)}")
    writer = FORMATS[format]
    interface.require(format, *writer.PACKAGES)
    path = _target(Path(run), format) if out is None else Path(out)
    if out is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"--out is {path}; there is no directory {path.absolute().parent}")
    if path.is_dir():
        raise ConfigError(f"--out is {path}, which is a directory; give the name of a file")
    parts = read_agent(Path(run), checkpoint, Given(env, policy, algorithm, trust))
    writer.check(parts)
    listed = path.parent.resolve() == Path(run).resolve() and manifest.has_one(path.parent)
    if listed:  # after a crash, the manifest must not list a file that has been replaced
        manifest.note(path.parent, drop=[path.name, f"{path.name}.json"])
    files = writer.write(parts, path)
    if listed:
        manifest.note(path.parent, {f.name: manifest.entry_of(f) for f in files})
    return Exported(files, *verify.compare(parts, format, path))


def _target(run: Path, format: str) -> Path:
    """The path of the file in the folder of a run.

    Raises:
        ConfigError: the agent is not in a folder of its own.
    """
    if cards.is_name(run) or run.is_file():
        raise ConfigError(
            f"{run} is not a folder in which the file could be written; name the file with --out"
        )
    return run / f"policy.{format}"
