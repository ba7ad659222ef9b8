"""Storing the trained agents of a sweep, each as a run folder for `ppo_jax.evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax.config import TrainConfig, env_kwargs
from ppo_jax.envs import as_env
from ppo_jax.evaluate import agents_of, summary_of
from ppo_jax.runs import manifest
from ppo_jax.runs.folder import checkpoints_of, write_config
from ppo_jax.runs.loop import finite
from ppo_jax.sweep import results
from ppo_jax.sweep.schedule import Finished
from ppo_jax.sweep.store import Spec, clear_agent, clear_agents, rename_agents


class Keeper:
    """Keeps the best agent of each configuration, all agents, or none.

    A better agent is saved before its chunk counts as finished, and the agent that it replaces is
    deleted afterwards, so that after a crash every configuration still has an agent.

    Args:
        folder: folder of the agents.
        spec: specification of the sweep.
        which: "best", "all" or "none".
        scores: agent -> score, for the agents that are already finished.
    """

    def __init__(self, folder: Path, spec: Spec, which: str, scores: dict[int, float]) -> None:
        self.folder, self.spec, self.which = folder, spec, which
        self.best: dict[int, tuple[float, int]] = {}
        rename_agents(folder)
        for agent in sorted(scores):
            self._take_if_better(agent, scores[agent])

    def save(self, finished: Finished, scores: np.ndarray) -> None:
        """Save the agents of a chunk that are to be kept.

        Args:
            finished: the finished chunk.
            scores: [agents], the score of each agent; NaN for an agent that diverged.
        """
        if self.which == "none":
            return
        agents = finished.chunk.agents
        better = [
            a for a, score in zip(agents, scores, strict=True) if self._take_if_better(a, score)
        ]
        current = {agent for _, agent in self.best.values()}
        wanted = agents if self.which == "all" else [a for a in better if a in current]
        for agent in wanted:
            i = agents.index(agent)
            self._write(agent, finished, i)

    def clean(self) -> None:
        """Delete agents that are no longer the best of their configuration."""
        if self.which != "best" or not self.folder.exists():
            return
        clear_agents(self.folder, {self.path(agent).name for _, agent in self.best.values()})

    def path(self, agent: int) -> Path:
        """The run folder of an agent."""
        point, s = divmod(agent, len(self.spec.seeds))
        return self.folder / f"configuration{point:04d}_seed{self.spec.seeds[s]}"

    def _take_if_better(self, agent: int, score: float) -> bool:
        """Record an agent if it is the best of its configuration so far; earlier ones win ties."""
        point = agent // len(self.spec.seeds)
        rank = (float(np.nan_to_num(score, nan=-np.inf)), -agent)
        held = self.best.get(point)
        if held is not None and rank <= (held[0], -held[1]):
            return False
        self.best[point] = (rank[0], agent)
        return True

    def _write(self, agent: int, finished: Finished, i: int) -> None:
        point, s = divmod(agent, len(self.spec.seeds))
        config = dataclasses.replace(self.spec.configs[point], seed=self.spec.seeds[s])
        path = self.path(agent)
        clear_agent(path)
        path.mkdir(parents=True, exist_ok=True)
        write_config(config, {}, path)
        returns = finished.returns[i]
        found = _evaluation(config, returns, finished.whole[i]) if returns.size else {}
        score = found.get("eval_return_mean")
        state = jax.device_put(finished.state(i), jax.devices()[0])
        checkpoints_of(path, config).save(config.num_updates, state, score)
        summary = {
            "env": config.env,
            "algorithm": config.algorithm,
            "seed": config.seed,
            "env_steps": config.num_updates * config.num_envs * config.num_steps,
            "eval_return_mean": None,
            "eval_return_std": None,
            "eval_episodes": 0,
            **found,
            "sweep_width": finished.chunk.width,
        }
        manifest.write_json(path, "summary.json", summary)


def candidates(points: Sequence[int], scores: np.ndarray, which: str) -> list[int]:
    """Indices of the agents of a chunk that a Keeper may keep.

    Args:
        points: index of the configuration of each agent.
        scores: [agents], the score of each agent; NaN for an agent that diverged.
        which: "best", "all" or "none".
    """
    if which != "best":
        return [*range(len(points))] if which == "all" else []
    ranks = np.nan_to_num(scores, nan=-np.inf)
    best: dict[int, int] = {}
    for i, point in enumerate(points):  # the first of equal scores, as in `Keeper`
        if point not in best or ranks[i] > ranks[best[point]]:
            best[point] = i
    return [*best.values()]


def _evaluation(config: TrainConfig, returns: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """The evaluation of an agent for summary.json, in the format of a run."""
    env = as_env(config.env, **env_kwargs(config))
    return finite(summary_of(returns, whole, agents_of(env)))


def scores_of(finished: Finished) -> np.ndarray:
    """[agents], the score by which the best agent is chosen; NaN for an agent that diverged."""
    mean, _ = results.scores(finished.metrics, finished.returns)
    return np.where(results.diverged(finished.metrics), np.nan, mean)
