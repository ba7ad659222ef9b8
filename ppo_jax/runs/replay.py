"""`--debug-nans`: repeats the update that became invalid, and checks every intermediate value.

Values are checked in the order of computation: observations, the network's outputs, actions and
rewards; then advantages, the loss, its gradient and the parameters. The first invalid number is
reported as the origin.
"""

import math
import re
from typing import Any

import jax
import numpy as np

from ppo_jax import guard, watch
from ppo_jax.runs.job import UNITS, Job

# Names of the part of the program that computed a number, in messages.
NETWORK, LEARNING = "the network", "the update"


class Recorder:
    """Records the first invalid number and the values before it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Clear the record at the beginning of an update."""
        self.step, self.gradients = 0, 0
        self.found: dict[str, Any] | None = None
        self.seen: dict[str, Any] = {}
        self.before: Any = ()

    def __call__(self, stage: str, trees: dict[str, Any]) -> None:
        """Check the values of one stage; this is the callback of `watch.recording`."""
        if stage == "rollout":
            self.begin()
        if self.found is not None:
            return
        if stage == "act":
            self.step += 1
            self.before = trees["obs"]
        self.gradients += stage == "gradient"
        for name, tree in trees.items():
            for path, x in jax.tree_util.tree_leaves_with_path(tree):
                at = _first_bad(stage, name, np.asarray(x))
                if at is not None and not self._excused(name, trees, at):
                    place = {"stage": stage, "leaf": name + jax.tree_util.keystr(path)}
                    self.found = place | {"at": at, "value": float(np.asarray(x)[at])}
                    self.seen |= trees
                    return
        self.seen |= trees

    def _excused(self, name: str, trees: dict[str, Any], at: tuple[int, ...]) -> bool:
        """Whether a number is never used: a final observation without an episode end, or the
        reward of a step that did not take place."""
        valid = trees.get("valid")
        if name == "final":
            return not np.asarray(trees["done"])[at[0]]
        return name == "reward" and valid is not None and not np.asarray(valid)[at[0]]


def _first_bad(stage: str, name: str, x: np.ndarray) -> tuple[int, ...] | None:
    """The index of the first invalid number; None if all are valid."""
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating) or x.size == 0:
        return None
    x = x.astype(np.float64)
    if name == "network":  # the logit of an impossible action is -inf by definition
        bad = np.isnan(x) | (x == math.inf)
    elif stage == "update" and name == "metrics":
        return None  # some metrics may be NaN; invalid numbers were found in earlier stages
    else:
        limit = guard.LIMIT if name in ("action", "parameters", "reward") else np.inf
        bad = ~(np.abs(x) <= limit) | np.isinf(x)
    if not bad.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), x.shape))


def replay(job: Job, state: Any) -> Recorder:
    """Repeat the update that follows a state, with a program that records its values."""
    recorder = Recorder()
    with jax.debug_nans(False), watch.recording(recorder):
        step = jax.jit(lambda state, frozen, floats: job.step(state, frozen, floats))
        if job.layout is not None:  # several devices would report their values in any order
            state = jax.device_put(state, jax.local_devices()[0])
        jax.block_until_ready(step(state, job.frozen, job.floats))
        jax.effects_barrier()
    return recorder


def origin(job: Job, recorder: Recorder, update: int) -> str:
    """Describe where the first invalid number arose, in one sentence.

    Args:
        job: the job that was repeated.
        recorder: the recorded values.
        update: number of updates before the invalid one.
    """
    found = recorder.found
    if found is None:
        return (
            "when repeated, the update had only finite numbers: the repeated program rounds "
            "differently, or something outside the program has changed"
        )
    stage, leaf, value = found["stage"], found["leaf"], f"{found['value']:g}"
    if stage in ("act", "step"):
        return _of_rollout(job, recorder, update)
    if stage == "gradient":
        what = "gradient" if leaf.startswith("gradient") else "metric"
        name = leaf.removeprefix("gradient").removeprefix("loss")
        return (
            f"origin: {LEARNING}: the {what} {name} is {value} in gradient step "
            f"{recorder.gradients}, though observations, actions and rewards are finite"
        )
    if stage == "responses":
        who = NETWORK if leaf.startswith("network") else "the reward"
        return f"origin: {who}: {leaf} is {value} of response {found['at'][0]}"
    if stage == "estimate":
        at = ", ".join(map(str, found["at"]))
        return (
            f"origin: {LEARNING}: the {leaf} is {value} at [{at}] (step, environment), though "
            "observations, actions and rewards are finite"
        )
    return (
        f"origin: {LEARNING}: {leaf} is {value} after gradient step {recorder.gradients}, though "
        "its gradient is finite: the learning rate is too high"
    )


def _of_rollout(job: Job, recorder: Recorder, update: int) -> str:
    """Describe an invalid number of the rollout, from the environment or the network."""
    found = recorder.found
    assert found is not None
    env, leaf, value = found["at"][0], found["leaf"], f"{found['value']:g}"
    num_envs = len(np.asarray(recorder.seen["value"]))
    step = update * job.units_per_update + (recorder.step - 1) * num_envs + env + 1
    where = (
        f"in environment {env} at step {recorder.step} of the rollout ({UNITS[job.unit]}: {step:,})"
    )
    seen = _of(recorder.before, env)
    if found["stage"] == "step":
        what = re.sub(
            "^(final|obs)", lambda m: {"final": "final observation"}.get(m[0], "observation"), leaf
        )
        given = _shown(np.asarray(recorder.seen["taken"])[env])
        return (
            f"origin: {job.source}: it returned {what} {value} {where}, for action {given} after "
            f"observation {seen}"
        )
    if leaf.startswith("obs"):
        return f"origin: {job.source}: its observation{leaf[3:]} is {value} {where}"
    return f"origin: {NETWORK}: its {_output(leaf)} is {value} {where}, for observation {seen}"


def _output(leaf: str) -> str:
    return leaf.removeprefix("network.") if leaf.startswith("network") else leaf


def _of(obs: Any, env: int) -> str:
    return _shown(jax.tree.map(lambda x: np.asarray(x)[env], obs))


def _shown(tree: Any, most: int = 200) -> str:
    """An observation or an action as text of limited length."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    texts = []
    for path, x in leaves:
        x = np.asarray(x)
        text = f"{x.dtype}{list(x.shape)}" if x.size > 16 else np.array2string(
            x, precision=6, separator=", ", max_line_width=1000
        )  # fmt: skip
        texts.append(f"{jax.tree_util.keystr(path)} {text}".strip())
    text = ", ".join(texts)
    return text if len(text) <= most else text[:most] + "..."
