"""The process that measures one section: a request a line on stdin, an answer a line on stdout.

python -m benchmarks.accelerator.worker SECTION [--smoke]

First answer: {"device", "platform", "versions"}, or {"refused": why}. Then, for each
{"task", "seconds", "ceilings"}: {"rows": [...]}, or {"why": what kept it from being measured}.
The process touches the device, the parent does not: one that fails takes only its task along.
"""

import argparse
import importlib
import json
import sys
import traceback
from typing import Any

from benchmarks.accelerator.tasks import Context, NotAvailable, Task
from benchmarks.throughput.worker import peak_bytes, private_stdout

SECTIONS = ("checks", "control", "language", "learning", "profile")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


def tasks_of(section: str) -> dict[str, Task]:
    """The tasks of a section by name, in order; nothing touches the device yet."""
    module = importlib.import_module(f"benchmarks.accelerator.{section}")
    return {task.name: task for task in module.tasks()}


def hello() -> dict[str, Any]:
    """What this process runs on."""
    import jax

    from ppo_jax import devices, report
    from ppo_jax.config import ConfigError

    try:
        devices.check()
    except ConfigError as error:
        return {"refused": str(error)}
    device = jax.devices()[0]
    found = report.versions()
    return {
        "device": report.device(),
        "platform": device.platform,
        "versions": {name: found[name] for name in ("python", *PACKAGES) if name in found}
        | {"runtime": getattr(device.client, "platform_version", "").split("\n")[0]},
    }


def answer(task: Task, context: Context) -> dict[str, Any]:
    """Measure a task: its rows, or why there are none."""
    try:
        found = task.measure(context)
    except NotAvailable as reason:
        return {"why": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"why": f"error: {shortened(error)}"}
    rows = found if isinstance(found, list) else [found]
    peak = round(peak_bytes() / 2**20, 1)
    return {"rows": [{"peak_mb": peak, "precision": "default", **row} for row in rows]}


def shortened(error: Exception, length: int = 300) -> str:
    """An error on one line; those of compilers fill pages."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def main(arguments: list[str] | None = None) -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator.worker")
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    answers = private_stdout()
    tasks = tasks_of(options.section)
    print(json.dumps(hello()), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        context = Context(options.smoke, asked["seconds"], asked["ceilings"])
        print(json.dumps(answer(tasks[asked["task"]], context)), file=answers, flush=True)


if __name__ == "__main__":
    main()
