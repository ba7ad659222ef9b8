"""Train the agents of the zoo, and add them to the package with their cards.

python -m benchmarks.zoo                           train all agents that are not in the zoo
python -m benchmarks.zoo --names cartpole          train some agents again, or resume them
python -m benchmarks.zoo --runs RUN RUN RUN --names NAME     add an agent of your own runs
python -m benchmarks.zoo --table                   print the table of docs/zoo.md
python -m benchmarks.zoo --gifs                    write the animations of docs/zoo.md

An agent is the first of its runs. The others have the same configuration with other seeds: with
their returns, `ppo-jax zoo verify NAME --retrain` compares an agent that is trained on another
machine. The weights and the card are written to ppo_jax/zoo/agents, and a row to
benchmarks/results/zoo.csv.
"""

import dataclasses
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import zoo_animations as animations
from benchmarks.names import check_names
from benchmarks.table import RESULTS, read, replace
from ppo_jax import config as configs
from ppo_jax.agent import Agent, Parts, read_parts, saved_arrays
from ppo_jax.evaluate import summary_of
from ppo_jax.experiment import RunOptions, evaluate_run, train
from ppo_jax.export import safetensors
from ppo_jax.runs import cards, files, provenance, trust
from ppo_jax.runs.cards import Card
from ppo_jax.zoo import origin
from ppo_jax.zoo.verify import digest_of

RUNS = Path("runs/zoo")
TABLE = RESULTS / "zoo.csv"
EPISODES = 128
# Seed of the episodes on a card; those of the other training runs have the seeds after it, and
# `ppo-jax zoo verify` begins with another one.
EVALUATION_SEED = 1000
SEEDS = 5

# Agent -> options of its runs.
AGENTS: dict[str, dict[str, Any]] = {
    "cartpole": {"preset": "cartpole", "total_timesteps": 100_000},
    "cartpole_continuous": {"preset": "cartpole_continuous"},
    "cartpole_positions": {"preset": "cartpole_positions"},
    "acrobot": {"preset": "acrobot"},
    "pendulum": {"preset": "pendulum"},
    "mountain_car": {"preset": "mountain_car"},
    "mountain_car_continuous": {"preset": "mountain_car_continuous"},
    "pong": {"preset": "pong_cnn"},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train agents, and add them to the zoo.

    Attributes:
        names: names of the agents; by default those that are not in the zoo.
        runs: folders of finished runs, of which the first is the agent; they differ only in the
            seed. By default the runs are trained.
        seeds: number of training runs of each agent.
        table: only print the table of docs/zoo.md.
        gifs: only write animations of the agents of the zoo: those of --names, or of all agents.
    """

    names: tuple[str, ...] = ()
    runs: tuple[Path, ...] = ()
    seeds: int = SEEDS
    table: bool = False
    gifs: bool = False


def trained(name: str, seeds: int) -> list[Path]:
    """The folders of the runs of an agent, which are trained or resumed one after the other."""
    paths = []
    for seed in range(seeds):
        path, config = RUNS / name / f"seed{seed}", configs.make(**AGENTS[name], seed=seed)
        where: dict[str, Any] = {"resume" if (path / "config.json").exists() else "run_dir": path}
        if train(config, RunOptions(**where, eval_episodes=0)).exit_code:
            raise SystemExit("stopped; run the same command again to continue")
        paths.append(path)
    return paths


def add(name: str, runs: list[Path], folder: Path) -> Card:
    """Write the weights and the card of an agent.

    Args:
        name: name of the agent.
        runs: folders of runs that differ only in the seed; the first is that of the agent.
        folder: folder of the agents.

    Returns:
        The card.

    Raises:
        SystemExit: there are too few runs, they differ in more than the seed, they are those of
            code outside the package, or the weights are too large.
    """
    if not name.isidentifier():
        raise SystemExit(f"--names: {name!r} must consist of letters, digits and underscores")
    all_parts = [read_parts(path) for path in runs]
    parts = all_parts[0]
    check(runs, all_parts)
    # With episodes of their own, the mean returns are independent of each other.
    evaluations = [(p, evaluated(p, EVALUATION_SEED + k)) for k, p in enumerate(all_parts)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    size = write_weights(parts, path)
    config = parts.config
    card = Card(
        name=name,
        command=command_of(config),
        config=configs.to_json(config),
        env_steps=config.num_updates * config.num_envs * config.num_steps,
        evaluation=evaluation(*evaluations[0][1]),
        seeds={str(p.config.seed): float(r.mean()) for p, (r, _) in evaluations},
        made_with=origin.record(),
        weights={
            "bytes": size,
            "sha256": files.digest(path),
            "parameters": digest_of(saved_arrays(parts)),
        },
    )
    cards.write(card, folder)
    return card


def write_weights(parts: Parts, path: Path) -> int:
    """Write the weights of an agent, unless they are too large; returns their size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        (written,) = safetensors.write(parts, Path(folder, path.name))
        content = written.read_bytes()
    if len(content) > cards.LARGEST:
        raise SystemExit(
            f"the weights of {path.stem} have {len(content):,} bytes, more than {cards.LARGEST:,}; "
            "use a smaller network"
        )
    files.write_bytes(path, content)
    return len(content)


def check(runs: list[Path], parts: list[Parts]) -> None:
    """Refuse runs that cannot be an agent of the zoo and its other seeds."""
    if len(runs) < cards.FEWEST_SEEDS:
        raise SystemExit(f"--runs: {len(runs)} given; at least {cards.FEWEST_SEEDS} seeds are used")
    named = trust.code({"config": configs.to_json(parts[0].config)})
    if named:
        raise SystemExit(f"{runs[0]} names code that is not in the package: {named[0][1]}")
    here = provenance.versions()
    for session in json.loads(files.read_text(runs[0] / "config.json"))["sessions"]:
        if session["versions"] != here:
            raise SystemExit(f"{runs[0]} was trained with other versions; train it again")
    if len({p.config.seed for p in parts}) < len(runs):
        raise SystemExit("--runs: two runs have the same seed")
    for path, other in zip(runs, parts, strict=True):
        if dataclasses.replace(other.config, seed=0) != dataclasses.replace(
            parts[0].config, seed=0
        ):
            raise SystemExit(f"{path} differs from {runs[0]} in more than the seed")


def evaluated(parts: Parts, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The returns of greedy episodes, and whether each has ended, [E] both."""
    result = evaluate_run(Agent(parts), EPISODES, seed=seed)
    return np.asarray(result.episode_return, np.float64), np.asarray(result.finished)


def evaluation(returns: np.ndarray, finished: np.ndarray) -> dict[str, Any]:
    """The part of a card that describes the evaluation."""
    found = summary_of(returns, finished)
    return {"seed": EVALUATION_SEED, **found, "returns": returns.tolist()}


def command_of(config: configs.TrainConfig) -> str:
    """The command that trains with a configuration, with the options that are not the defaults of
    its environment and algorithm."""
    base = configs.make(env=config.env, algorithm=config.algorithm)
    before, flags = configs.to_flat(base), []
    for name, value in configs.to_flat(config).items():
        if name == "env" or value == before[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{name.replace('_', '-')}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            flags += [flag, *(shlex.quote(str(v)) for v in values)]
    return " ".join(["ppo-jax train --env", config.env, *flags])


def row_of(card: Card) -> dict[str, Any]:
    """The row of an agent in the table."""
    found, means = card.evaluation, [*card.seeds.values()]
    return {
        "name": card.name,
        "env": card.config["env"],
        "algorithm": card.config["algorithm"],
        "env_steps": card.env_steps,
        "return_mean": round(found["eval_return_mean"], 2),
        "ci95_low": round(found["eval_return_ci95_low"], 2),
        "ci95_high": round(found["eval_return_ci95_high"], 2),
        "episodes": found["eval_episodes"],
        "seeds": len(means),
        "seeds_min": round(min(means), 2),
        "seeds_max": round(max(means), 2),
        "bytes": card.weights["bytes"],
    }


def markdown() -> str:
    """The table of docs/zoo.md."""
    lines = [
        "| agent | environment | algorithm | steps | return [95 %] | other seeds | kB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in read(TABLE):
        lines.append(
            f"| `{r['name']}` | {r['env']} | {r['algorithm']} | {int(r['env_steps']):,} | "
            f"{r['return_mean']} [{r['ci95_low']}, {r['ci95_high']}] | "
            f"{r['seeds_min']} to {r['seeds_max']} | {int(r['bytes']) / 1000:.0f} |"
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    """Train or read the runs of each agent, and write its files."""
    if options.table:
        print(markdown())
        return
    if options.gifs:
        for name in options.names or cards.names():
            path = animations.write(cards.read(name).name)
            print(f"wrote {path}, {path.stat().st_size:,} bytes", flush=True)
        return
    if options.runs:
        if len(options.names) != 1:
            raise SystemExit("--runs are those of one agent: give one name with --names")
        chosen = {options.names[0]: [*options.runs]}
    else:
        check_names("names", options.names, AGENTS)
        missing = [name for name in AGENTS if name not in cards.names()]
        chosen = {name: [] for name in options.names or missing}
    for name, runs in chosen.items():
        card = add(name, runs or trained(name, options.seeds), cards.FOLDER)
        row = row_of(card)
        replace(TABLE, [row], ("name",), lambda r: r["name"])
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
