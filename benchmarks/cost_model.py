"""A cost model of an update on D devices, fitted to measurements on one device.

python -m benchmarks.cost_model

    t(N, D) = a + b N / D + r α ⌈log2 D⌉ + g 8 P (D - 1) / (D β)

a: seconds of an update that do not depend on the number N of environments: starting kernels.
b: seconds of an update per environment.
r: number of all-reduce operations in an update. One in each of the g gradient steps sums the P
   parameters, 4 bytes each, which are sent twice; the others sum a few numbers.
α, β: latency and bandwidth of the link, which are not measured but assumed as given below.

a and b are fitted to the rows of benchmarks/results/accelerator.csv, by least squares of relative
errors. All rows for more than one device are projections, as the column `kind` states.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "cost_model.csv"
DEVICE = "NVIDIA H200"
TASK = re.compile(r"cartpole-(\d+)x(\d+)")
STEPS = 32
# PPO with two networks 4-64-64, and 4 epochs of 4 minibatches.
GRADIENT_STEPS, PARAMETERS = 16, 9155
# Counted in the compiled program of four devices (tests/test_parallel.py). In a gradient step: two
# for mean and variance of advantages, one each for the means of the loss, the gradient and the
# metrics. In a rollout: the statistics of its episodes and the metrics of the update.
SUMS_PER_STEP, SUMS_PER_ROLLOUT = 5, 11
# (latency α: seconds of a small all-reduce per doubling of the devices, bandwidth β: bytes/s).
LINKS = {"in one machine": (5e-6, 300e9), "between machines": (15e-6, 25e9)}
MACHINE = 8
PROJECTED = [(2**13, 1), (2**13, 8), (2**17, 8), (2**20, 1), (2**20, 8), (2**20, 64), (2**20, 1024)]


def measured() -> dict[int, float]:
    """Measured seconds of an update on one device, by the number of environments."""
    found = {}
    with (RESULTS / "accelerator.csv").open() as file:
        for row in csv.DictReader(file):
            name = TASK.fullmatch(row["task"])
            wanted = row["device"] == DEVICE and row["section"] == "control"
            if name and wanted and row["value"]:
                envs, steps = int(name[1]), int(name[2])
                if steps == STEPS:
                    found[envs] = envs * steps / float(row["value"])
    return found


def fitted(times: dict[int, float]) -> tuple[float, float]:
    """The pair (a, b) with the least squares of relative errors."""
    envs, seconds = np.array([*times]), np.array([*times.values()])
    design = np.stack([1 / seconds, envs / seconds], axis=1)
    a, b = np.linalg.lstsq(design, np.ones(len(envs)), rcond=None)[0]
    return float(a), float(b)


def communication(devices: int) -> float:
    """Seconds of all communication in an update."""
    if devices == 1:
        return 0.0
    latency, bandwidth = LINKS["in one machine" if devices <= MACHINE else "between machines"]
    sums = GRADIENT_STEPS * SUMS_PER_STEP + SUMS_PER_ROLLOUT
    sent = 8 * PARAMETERS * (devices - 1) / devices
    return sums * latency * math.ceil(math.log2(devices)) + GRADIENT_STEPS * sent / bandwidth


def rows() -> list[dict[str, object]]:
    """The rows of the table: measurements with the times of the model, then projections."""
    times = measured()
    a, b = fitted(times)
    cases = [(n, 1, "measured") for n in sorted(times)]
    cases += [(n, d, "projected") for n, d in PROJECTED]
    table = []
    for envs, devices, kind in cases:
        talk = communication(devices)
        model = a + b * envs / devices + talk
        seconds = times[envs] if kind == "measured" else model
        table.append({
            "kind": kind, "environments": envs, "devices": devices,
            "ms_per_update": f"{1e3 * seconds:.3g}", "model_ms": f"{1e3 * model:.3g}",
            "communication_ms": f"{1e3 * talk:.3g}",
            "million_steps_per_second": f"{envs * STEPS / seconds / 1e6:.3g}",
            "efficiency": f"{(a + b * envs) / (devices * model):.2f}",
        })  # fmt: skip
    return table


def main() -> None:
    """Print the fit, write and print the table."""
    a, b = fitted(measured())
    print(f"a = {1e3 * a:.2f} ms, b = {1e6 * b:.3f} us per environment")
    table = rows()
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(*row.values())


if __name__ == "__main__":
    main()
