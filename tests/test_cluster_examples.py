"""The example files for SLURM and Kubernetes: they parse, their flags exist, and they run.

SLURM and Kubernetes themselves are replaced by stand-ins.
"""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ppo_jax.cli import flags
from ppo_jax.cli import train as command
from ppo_jax.cli.cluster import options_of
from ppo_jax.config import check
from ppo_jax.runs.cluster import place_of

EXAMPLES = Path(__file__).parent.parent / "examples" / "cluster"
# Stand-in for the programs that the scripts start: it records its arguments.
STAND_IN = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0") $*" >> "$STARTED"\nexit {code}\n'


def started(script, folder, *, code=0, **environment):
    """(exit code, calls of the stand-ins for `srun`, `python` and `scontrol`)."""
    for name in ("srun", "python", "scontrol"):
        path = folder / name
        path.write_text(STAND_IN.format(code=0 if name == "scontrol" else code))
        path.chmod(0o755)
    said = folder / "started"
    said.unlink(missing_ok=True)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "STARTED": str(said), **environment}
    done = subprocess.run(["bash", "-u", script], env=env, cwd=folder, timeout=20, check=False)
    return done.returncode, said.read_text().splitlines()


def checked(line):
    """The arguments of `python -m ppo_jax.train` in a line of a script."""
    words = shlex.split(line.partition("-m ppo_jax.train ")[2])
    config, options = command._parse(words, flags.base_config(words), {})
    check(config)
    return place_of(options_of(words)), config, options


def test_the_slurm_job_starts_and_goes_on(tmp_path):
    script = EXAMPLES / "train.slurm"
    code, lines = started(script, tmp_path, SLURM_JOB_ID="7")
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(
        "srun --kill-on-bad-exit=1 --cpus-per-task=1 python -m ppo_jax.train"
    )
    place, config, options = checked(lines[0])
    assert place.coordinator is None
    assert place.start_timeout == 300
    assert (config.num_envs, options.run_dir, options.resume) == (8192, Path("runs/slurm"), None)
    (tmp_path / "runs" / "slurm").mkdir(parents=True)
    (tmp_path / "runs" / "slurm" / "config.json").touch()
    code, lines = started(script, tmp_path, SLURM_JOB_ID="7")
    assert "--resume runs/slurm" in lines[0]
    assert "--run-dir" not in lines[0]


@pytest.mark.parametrize(
    "code, restarts, again", [(143, 0, 1), (1, 19, 1), (1, 20, 0), (2, 0, 0), (0, 0, 0)]
)
def test_the_slurm_job_is_queued_again(tmp_path, code, restarts, again):
    found, lines = started(
        EXAMPLES / "train.slurm", tmp_path, code=code,
        SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts),
    )  # fmt: skip
    assert found == code
    assert lines[1:] == ["scontrol requeue 7"] * again


def test_the_kubernetes_job_has_what_it_needs(tmp_path):
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    rule = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"]
    script = tmp_path / "script"
    script.write_text(container["args"][0])
    _, lines = started(script, tmp_path, JOB_COMPLETION_INDEX="3")
    place, _, options = checked(lines[0])
    host, port = f"{job['metadata']['name']}-0.{service['metadata']['name']}", 12321
    assert place[:3] == (f"{host}:{port}", spec["completions"], 3)
    assert options.run_dir.is_relative_to(container["volumeMounts"][0]["mountPath"])
