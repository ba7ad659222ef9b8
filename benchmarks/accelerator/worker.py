"""The process that measures one section; requests and answers are lines of JSON.

python -m benchmarks.accelerator.worker SECTION [--smoke]

The first answer is {"device", "platform", "versions"}, or {"refused": reason}. The answer to each
request {"task", "seconds", "ceilings"} is {"rows": [...]}, or {"why": reason} without rows. Only
this process uses the device, so that a crash affects only its task.
"""

import argparse
import importlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

from benchmarks.accelerator.tasks import Context, NotAvailable, Task
from benchmarks.throughput.worker import peak_bytes, private_stdout

SECTIONS = ("checks", "control", "language", "learning", "profile")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


def tasks_of(section: str) -> dict[str, Task]:
    """The tasks of a section by name, in order; the device is not used."""
    module = importlib.import_module(f"benchmarks.accelerator.{section}")
    return {task.name: task for task in module.tasks()}


def hello() -> dict[str, Any]:
    """The device and the versions of packages, or the reason why the device cannot be used."""
    import jax

    from ppo_jax.config import ConfigError
    from ppo_jax.runs import devices, provenance

    try:
        devices.check()
    except ConfigError as error:
        return {"refused": str(error)}
    device = jax.devices()[0]
    found = provenance.versions()
    return {
        "device": provenance.device(),
        "platform": device.platform,
        "versions": {name: found[name] for name in ("python", *PACKAGES) if name in found}
        | {"runtime": " ".join(getattr(device.client, "platform_version", "").split())},
    }


def answer(task: Task, context: Context) -> dict[str, Any]:
    """Measure a task; returns its rows, or the reason why there are none."""
    from ppo_jax.precision import in_effect

    try:
        found = task.measure(context)
        rows = found if isinstance(found, list) else [found]
        common = {"peak_mb": round(peak_bytes() / 2**20, 1), "precision": in_effect("default")}
    except NotAvailable as reason:
        return {"why": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"why": f"error: {shortened(error)}"}
    return {"rows": [common | row for row in rows]}


def end_with(parent: int, every: float = 1.0) -> None:
    """End this process after its parent has ended, because it holds most of the device's memory.

    Args:
        parent: process id of the parent.
        every: seconds between two checks.
    """
    while os.getppid() == parent:
        time.sleep(every)
    os._exit(1)


def shortened(error: Exception, length: int = 300) -> str:
    """An error on one line, shortened, because errors of compilers are long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def main(arguments: list[str] | None = None) -> None:
    """Answer requests until the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator.worker")
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    answers = private_stdout()
    tasks = tasks_of(options.section)
    print(json.dumps(hello()), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        context = Context(options.smoke, asked["seconds"], asked["ceilings"])
        print(json.dumps(answer(tasks[asked["task"]], context)), file=answers, flush=True)


if __name__ == "__main__":
    main()
