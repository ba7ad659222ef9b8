"""The comparison of an agent with its card."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_jax import config as configs
from ppo_jax.agent import Agent, read_parts, read_weights, saved_arrays
from ppo_jax.experiment import evaluate_run, run
from ppo_jax.runs import cards, weights
from ppo_jax.runs.cards import Card
from ppo_jax.zoo import origin

# Significance level for a stored agent, over the episodes of its card and the new ones.
LEVEL = 0.001
# Significance level for an agent that was trained again: with few seeds, the test has less power.
LEVEL_OF_SEEDS = 0.01
RESAMPLES = 9999


class Verdict(NamedTuple):
    """The result of a comparison.

    Attributes:
        passed: whether the agent agrees with its card.
        text: one line that states what was compared.
        exit_code: 0, 1 if the agent does not agree, or that of a training run that was stopped.
    """

    passed: bool
    text: str
    exit_code: int


def verify(card: Card, episodes: int, seed: int, folder: Path | None = None) -> Verdict:
    """Evaluate a stored agent, and compare its returns with those of its card.

    Args:
        card: card of the agent.
        episodes: number of greedy episodes.
        seed: seed of the episodes.
        folder: folder of the agents; None for that of the package.

    Returns:
        Verdict of a two-sample permutation test of the mean return.

    Raises:
        ConfigError: the weights are damaged, or are not those of the card.
    """
    agent = stored(card, folder)
    found = returns_of(agent, episodes, seed)
    known = np.asarray(card.evaluation["returns"], np.float64)
    p = same_mean(found, known)
    text = (
        f"return {found.mean():.2f} over {len(found)} episodes, and on the card {known.mean():.2f} "
        f"[{_interval(card)}] over {len(known)}: two-sample permutation test of the means, "
        f"{_level(p, LEVEL)}"
    )
    return _verdict(card, p >= LEVEL, text)


def stored(card: Card, folder: Path | None = None) -> Agent:
    """The agent of a card, from weights that match both of the card's digests.

    Raises:
        ConfigError: the weights are damaged, or are not those of the card.
    """
    path = cards.weights_of(card, folder)
    parts = read_weights(path)
    same = configs.to_json(parts.config) == configs.to_json(configs.from_saved(card.config))
    if not same or digest_of(saved_arrays(parts)) != card.weights["parameters"]:
        raise configs.ConfigError(f"{path} is not the agent of its card; install ppo_jax again")
    return Agent(parts)


def retrain(card: Card, episodes: int, seed: int) -> Verdict:
    """Train an agent again with the configuration of its card, and compare the two.

    With the same source code, versions and machine, the parameters must be equal to the bit.
    Otherwise, parameters that are not equal are those of another training run: rounding differs,
    and training amplifies the difference. Its mean return is then compared with those of the
    card's seeds.

    Args:
        card: card of the agent.
        episodes: number of greedy episodes.
        seed: seed of the episodes.
    """
    config = configs.from_saved(card.config)
    with tempfile.TemporaryDirectory(prefix="ppo_jax-zoo-") as folder:
        path = Path(folder) / "run"
        code = run(config, path, eval_episodes=0).exit_code
        if code:
            return Verdict(False, f"{cards.PREFIX}{card.name}: the training was stopped", code)
        parts = read_parts(path)
        trained = f"trained again for {config.num_updates} updates"
        if digest_of(saved_arrays(parts)) == card.weights["parameters"]:
            return _verdict(card, True, f"{trained}: all parameters are equal to the bit")
        changed = origin.differences(card.made_with)
        if not changed:
            text = f"{trained}: the parameters differ, with the same source, versions and machine"
            return _verdict(card, False, text)
        found = returns_of(Agent(parts), episodes, seed)
    return _compared(card, found, f"{trained}: the parameters differ ({', '.join(changed)})")


def _compared(card: Card, found: np.ndarray, why: str) -> Verdict:
    """The verdict on an agent whose parameters are not those of the card."""
    means = np.array([*card.seeds.values()])
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0.0
    p = one_more(float(found.mean()), means, float(error))
    text = (
        f"{why}; return {found.mean():.2f} over {len(found)} episodes, and {means.mean():.2f} for "
        f"the {len(means)} seeds of the card ({means.min():.2f} to {means.max():.2f}): two-sample "
        f"t test, {_level(p, LEVEL_OF_SEEDS)}"
    )
    return _verdict(card, p >= LEVEL_OF_SEEDS, text)


def same_mean(x: np.ndarray, y: np.ndarray) -> float:
    """The p-value of the permutation test of two samples for a difference of their means.

    Under the null hypothesis both samples have one distribution, and every assignment of the
    returns to the samples is equally likely. No normal distribution is assumed: returns are often
    skewed. Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 15.

    Args:
        x, y: samples, [E] and [F].
    """
    from scipy import stats

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> Any:
        return np.mean(x, axis) - np.mean(y, axis)

    rng = np.random.default_rng(0)
    result = stats.permutation_test(
        (x, y), difference, vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=rng
    )
    return float(result.pvalue)


def one_more(value: float, others: np.ndarray, error: float = 0.0) -> float:
    """The p-value of Student's two-sample t test of one value and K others.

    t = (x - m) / sqrt(max(s², e²) + s² / K) with K - 1 degrees of freedom, where m and s² are the
    mean and the unbiased variance of the others, and e is the standard error of x: Crawford and
    Howell (1998), The Clinical Neuropsychologist 12, with the larger of the two variances for x,
    because s² is 0 where every seed reaches the largest possible return.

    Args:
        value: x, the mean return of one agent.
        others: mean returns of K agents, K >= 2.
        error: e, the standard error of x over the episodes.
    """
    from scipy import stats

    count, variance = len(others), float(np.var(others, ddof=1))
    scale = np.sqrt(max(variance, error**2) + variance / count)
    difference = value - float(np.mean(others))
    if scale == 0:
        return float(difference == 0)
    return float(2 * stats.t.sf(abs(difference) / scale, count - 1))


def returns_of(agent: Agent, episodes: int, seed: int) -> np.ndarray:
    """The returns of greedy episodes, [E]."""
    result = evaluate_run(agent, episodes, seed=seed)
    return np.asarray(result.episode_return, np.float64)


def digest_of(arrays: Any) -> str:
    """SHA-256 digest of named arrays: their names, types, shapes and bits."""
    return weights.digest({n: np.asarray(x) for n, x in weights.named(arrays).items()}, {})


def _interval(card: Card) -> str:
    low, high = (card.evaluation.get(f"eval_return_ci95_{end}") for end in ("low", "high"))
    return "no interval" if low is None or high is None else f"{low:.2f}, {high:.2f}"


def _level(p: float, level: float) -> str:
    return f"p = {p:.3g} {'>=' if p >= level else '<'} {level}"


def _verdict(card: Card, passed: bool, text: str) -> Verdict:
    word = "verified" if passed else "FAILED"
    return Verdict(passed, f"{cards.PREFIX}{card.name} {word}: {text}", 0 if passed else 1)
