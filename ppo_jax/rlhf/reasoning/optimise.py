"""Reinforcement learning of many agents, with the verifier of a task as the reward."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.analysis import statistics
from ppo_jax.config.reasoning import Reason
from ppo_jax.config.rlhf import settled
from ppo_jax.rlhf import algorithms, train
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.policy import TokenInputs
from ppo_jax.rlhf.reasoning import exact, measure
from ppo_jax.rlhf.reasoning.agents import DIVERGED, take, together
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rlhf.stages import zero_head
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.rollout import sequences
from ppo_jax.runs.job import Job
from ppo_jax.train import make_guarded_step
from ppo_jax.types import Params, PyTree, TrainState

MAY_BE_NAN = ("explained_variance",)
# Name of the metric of groups whose responses all have the same reward.
NO_SPREAD = "groups_without_spread"
# Folded into the seed, for PRNG keys of the samples that are shown.
SAMPLES = 0x5A3B


class Plan(NamedTuple):
    """What is trained.

    Attributes:
        task: a task of `ppo_jax.rlhf.tasks`.
        decoder: architecture of the model.
        reason: options of the task and of the evaluations.
        config: options of sampling and rewards.
        hyper: hyperparameters of the updates.
        points: values of the options that vary, one dictionary for each configuration.
    """

    task: Any
    decoder: Decoder
    reason: Reason
    config: train.Config
    hyper: algorithms.Config
    points: tuple[dict[str, float], ...] = ({},)

    @property
    def agents(self) -> int:
        """A, the number of agents: all seeds of the first configuration, then of the second, ..."""
        return len(self.points) * self.reason.seeds

    def floats(self) -> dict[str, np.ndarray]:
        """The options that vary: name -> [A] float32."""
        return {
            name: np.repeat(np.array([p[name] for p in self.points], np.float32), self.reason.seeds)
            for name in self.points[0]
        }

    def of_agent(self, floats: dict[str, Any]) -> tuple[train.Config, algorithms.Config]:
        """The options of one agent, some of which may be tracers."""
        mine = lambda x: {f.name: floats[f.name] for f in dataclasses.fields(x) if f.name in floats}
        config, hyper = self.config, self.hyper
        return (
            dataclasses.replace(config, **mine(config)),
            dataclasses.replace(hyper, **mine(hyper)),
        )

    def problems(self, key: jax.Array, update: jax.Array | int) -> jax.Array:
        """[N, P] training problems of an update, from the data key of the agent.

        N is num_prompts, or max_draws times as many with dynamic sampling that redraws.
        """
        draws = self.config.max_draws if self.redraws else 1
        count = draws * self.config.num_prompts
        return self.task.problems(jax.random.fold_in(key, update), count, False)

    @property
    def redraws(self) -> bool:
        """Whether groups without spread are replaced by responses to further problems."""
        return settled(self.config, self.config.algorithm).dynamic_sampling == "redraw"

    def temperatures(self) -> np.ndarray:
        """[A] sampling temperatures."""
        return self.floats().get(
            "temperature", np.full(self.agents, self.config.temperature, np.float32)
        )


def optimisation(plan: Plan, start: Params, result: Callable[..., dict[str, Any]]) -> Job:
    """The stage that trains all agents with a method of `ppo_jax.rlhf.algorithms`.

    Each rollout has new problems of the training split. Rollout and reward are one compiled program
    without calls of the host.

    Args:
        plan: the task, the model and the options of the run.
        start: parameters [S, ...] after the fine-tuning, which are also those of the reference.
        result: function (state, evaluation of the state, folder) -> content of summary.json.

    Returns:
        A job whose state is a TrainState with leaves [A, ...].
    """
    agents, reason = plan.agents, plan.reason
    index = np.arange(agents) % reason.seeds
    seeds = jnp.uint32(reason.seed + index)
    reference = jax.tree.map(lambda x: x[index], start)
    floats = jax.tree.map(jnp.asarray, plan.floats())
    held = held_out(plan)
    compare = exact.comparison(plan.task, plan.decoder, held.prompts, start)
    look = functools.partial(_looked, plan, held, compare)
    summarised = functools.partial(
        summary_of, samples=reason.eval_samples, configurations=len(plan.points)
    )

    def init() -> TrainState:
        every = jax.vmap(functools.partial(first_state, plan))
        return jax.jit(every)(seeds, reference, floats)

    def evaluate(state: TrainState, update: int) -> dict[str, Any]:
        return summarised(look(state.learner.params["actor"]))

    def finish(state: TrainState, path: Path) -> dict[str, Any]:
        before, after = look(reference), look(state.learner.params["actor"])
        return result(state, before, after, path) | summarised(after)

    return Job(
        name="reason",
        init=init,
        shapes=jax.eval_shape(init),
        step=together(_make_step(plan), may_be_nan=MAY_BE_NAN),
        updates=plan.config.updates,
        unit="responses",
        units_per_update=plan.config.num_prompts * plan.config.group_size * agents,
        headline="score",
        frozen=reference,
        floats=floats,
        rows=64,
        curves=("score", "response_length", NO_SPREAD, "sampling_entropy", "kl"),
        may_be_nan=MAY_BE_NAN,
        promises={DIVERGED: "numbers of some agents are not finite; they are not trained further"},
        score=(None, "eval_pass_at_1"),
        evaluate=evaluate,
        result=finish,
        samples=functools.partial(_samples, plan, held),
        source="the verifier",
    )


def first_state(
    plan: Plan, seed: jax.Array | int, reference: Params, floats: dict[str, Any]
) -> TrainState:
    """The state of one agent before the first update.

    Args:
        plan: the task, the model and the options of the run.
        seed: [] seed of the agent.
        reference: parameters after the fine-tuning.
        floats: name -> [], values of the options that vary.
    """
    return _program(plan, reference, floats).init(jax.random.key(seed))


def held_out(plan: Plan) -> measure.Held:
    """The held-out problems of a run.

    Args:
        plan: the task, the model and the options of the run.
    """
    reason = plan.reason
    return measure.hold(
        plan.task,
        plan.decoder,
        problems=reason.eval_problems,
        samples=reason.eval_samples,
        seed=reason.seed,
    )


def _looked(
    plan: Plan, held: measure.Held, compare: exact.Compare, params: Params
) -> dict[str, np.ndarray]:
    """The numbers [A] of all agents with parameters [A, ...] on held-out problems."""
    heat = plan.temperatures()
    each = []
    for agent in range(plan.agents):
        mine = take(params, agent)
        found = measure.measured(held, mine, float(heat[agent]))
        each.append(found | compare(agent % plan.reason.seeds, mine))
    return {name: np.array([found[name] for found in each]) for name in each[0]}


def summary_of(
    found: dict[str, np.ndarray], samples: int, configurations: int = 1
) -> dict[str, float]:
    """The numbers of an evaluation as columns of metrics.jsonl.

    Args:
        found: name -> [A], the numbers of the agents.
        samples: k of pass@k.
        configurations: number of configurations that the agents have.

    Returns:
        The means over the agents with names such as `eval_pass_at_1`; for several agents also
        pass@1 of each and its numbers of `exact`, and, if all have the same configuration, the
        95 % bootstrap interval of the mean pass@1 over the seeds.
    """
    names = {"pass_at_k": f"pass_at_{samples}"}
    means = {f"eval_{names.get(n, n)}": float(np.mean(x)) for n, x in found.items()}
    each = found["pass_at_1"]
    if len(each) == 1:
        return means
    if configurations == 1:
        low, high = statistics.interval([each], statistics.mean)
        means |= {"eval_pass_at_1_low": float(low), "eval_pass_at_1_high": float(high)}
    shown = [name for name in ("pass_at_1", *exact.NAMES) if name in found]
    return means | {agent_column(a, n): float(x) for n in shown for a, x in enumerate(found[n])}


def agent_column(agent: int, name: str = "pass_at_1") -> str:
    """The name of the column of metrics.jsonl with a number of one agent."""
    return f"eval_{name}_agent_{agent}"


def _make_step(plan: Plan) -> Callable[..., Any]:
    """One rollout and update of one agent, (state, reference, floats) -> as for `together`."""

    def step(state: TrainState, reference: Params, floats: dict[str, jax.Array]) -> Any:
        prompts = plan.problems(state.rollout.data_key, state.update)
        if plan.redraws:  # each update has new problems, whose draws are taken from the first on
            cursor = jnp.zeros_like(state.rollout.cursor)
            rollout = dataclasses.replace(state.rollout, cursor=cursor)
            state = dataclasses.replace(state, rollout=rollout)
        program = _program(plan, reference, floats, prompts)
        algorithm = program.algorithm(program.frozen)
        return make_guarded_step(program.collect, algorithm, sequences)(state, program.frozen)

    return step


def _program(
    plan: Plan, reference: Params, floats: dict[str, Any], prompts: Any = None
) -> train.LanguageProgram:
    """The functions of one agent; called while its program is traced."""
    if prompts is None:  # the initial state does not depend on them
        prompts = jnp.zeros((plan.config.num_prompts, plan.task.prompt_length), jnp.int32)
    config, hyper = plan.of_agent(floats)
    return train.build(
        _models(plan, reference),
        prompts,
        measure.not_padding(prompts),
        config,
        hyper=hyper,
        eos_id=tokens.EOS,
    )


def _models(plan: Plan, reference: Params) -> train.Models:
    """The four models: the critic, if there is one, starts as the reference with the value 0."""
    critic: Decoder | str = "none"
    params: Params = {}
    if ALGORITHMS[plan.config.algorithm].critic:
        critic = plan.decoder
        params = zero_head(plan.decoder.with_score(reference, jax.random.key(0)))
    return train.Models(plan.decoder, reference, critic, params, reference, _reward(plan.task))


def _reward(task: Any) -> Reward:
    """The verifier of a task as a reward."""

    def score(frozen: PyTree, inputs: TokenInputs, length: int) -> jax.Array:
        return _verify(task, inputs.tokens[:, 0])

    return Reward((), score)


def _verify(task: Any, rows: jax.Array) -> jax.Array:
    """[B] rewards of prompts and responses [B, P + R]."""
    prompts, responses = jnp.split(rows, [task.prompt_length], axis=1)
    return jax.vmap(task.reward)(prompts, responses)


def _samples(plan: Plan, held: measure.Held, state: TrainState, count: int) -> list[dict[str, Any]]:
    """Sampled responses of the first agent to held-out problems, as text."""
    first = take(state, 0)
    key = jax.random.fold_in(held.key, SAMPLES + first.update)
    heat = jnp.float32(plan.temperatures()[0])
    responses = held.respond(first.learner.params["actor"], key, heat)
    start = int(first.update) * count % len(held.prompts)
    rows = (start + np.arange(count)) % len(held.prompts)
    text = functools.partial(tokens.decode, plan.task.vocabulary)
    return [
        {
            "prompt": text(np.asarray(held.prompts[row])),
            "response": text(np.asarray(responses.tokens[row])),
            "reward": float(responses.reward[row]),
        }
        for row in rows
    ]
