"""Policies leave the building: a run as StableHLO, ONNX or safetensors, verified where it lands.

`python -m ppo_jax.export RUN --format FORMAT` is `export` here.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ppo_jax.agent import read_parts
from ppo_jax.config import ConfigError
from ppo_jax.config.options import did_you_mean
from ppo_jax.export import interface, onnx, safetensors, stablehlo, verify
from ppo_jax.runs import manifest
from ppo_jax.runs.trust import Given

FORMATS: dict[str, Any] = {"stablehlo": stablehlo, "onnx": onnx, "safetensors": safetensors}


class Exported(NamedTuple):
    """What was written, and how it was verified.

    Attributes:
        files: the file of the policy first.
        observations: that it was compared on.
        max_difference: largest difference of an action between the file and the run.
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
    """Write the greedy policy of a run to a file, and compare its actions in a fresh process.

    Args:
        run: run directory.
        format: name in FORMATS.
        out: the file; None: policy.FORMAT in the run directory.
        checkpoint: "latest", "best", or the number of an update.
        trust, env, policy, algorithm: as for `ppo_jax.load`.

    Returns:
        Exported: the files, and what the comparison found.

    Raises:
        ConfigError, CheckpointError: not a run, a policy that the format cannot hold, or a file
            that cannot be written.
        NotTheSame: the file acts otherwise than the run.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format {format!r}; {did_you_mean(format, FORMATS)}")
    writer = FORMATS[format]
    interface.require(format, *writer.PACKAGES)
    path = Path(run) / f"policy.{format}" if out is None else Path(out)
    if out is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"--out is {path}; there is no directory {path.absolute().parent}")
    if path.is_dir():
        raise ConfigError(f"--out is {path}, which is a directory; give the name of a file")
    parts = read_parts(Path(run), checkpoint, Given(env, policy, algorithm, trust))
    writer.check(parts)
    listed = path.parent.resolve() == Path(run).resolve() and manifest.has_one(path.parent)
    if listed:  # a crash must not leave another file than is listed
        manifest.note(path.parent, drop=[path.name, f"{path.name}.json"])
    files = writer.write(parts, path)
    if listed:
        manifest.note(path.parent, {f.name: manifest.entry_of(f) for f in files})
    return Exported(files, *verify.compare(parts, format, path))
