"""Times of the parts of one update."""

from benchmarks.accelerator.tasks import Context, Measured, Task
from benchmarks.throughput import breakdown
from benchmarks.throughput.configurations import CONFIGURATIONS, Configuration

NAME = "cartpole-8192x32"


def tasks() -> list[Task]:
    """The parts of an update of one configuration, measured if time is left."""
    return [Task("profile", NAME, measure, patience=150.0, least=60.0)]


def measure(context: Context) -> list[Measured]:
    """Measure each part of an update, compiled as a program of its own."""
    configuration = CONFIGURATIONS[NAME]
    rounds, seconds = (9, 0.3)
    if context.smoke:
        configuration = Configuration(NAME, num_envs=8, num_steps=8, hidden=(8, 8))
        rounds, seconds = (1, 0.01)
    rows = breakdown.breakdown(configuration, rounds, seconds)
    return [
        {
            "part": row["part"],
            "value": row["microseconds"],
            "unit": "microseconds per update",
            "of_matmul": row.get("of_matmul", ""),
            "of_bandwidth": row.get("of_copy", ""),
            "share": row["share"],
        }
        for row in rows
        if "microseconds" in row
    ]
