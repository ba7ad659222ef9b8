"""The hyperparameters of the package's algorithms: one dataclass `Config` for each.

Each class is the `Config` of its algorithm's module, `ppo_jax.algorithms.ppo.Config` for PPO. They
are defined here, apart from the mathematics, because the command line reads them before it imports
JAX: `--help` and the refusal of a mistyped option take a fraction of a second.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

from ppo_jax.config import standard
from ppo_jax.config.options import option
from ppo_jax.config.schedules import Scheduled

BASELINES = ("none", "batch_mean", "leave_one_out", "value")
OBJECTIVES = ("clip", "simple", "discovered")
ACTOR_WEIGHTS = ("q", "td_error")
SHARED_TORSO = (
    "the natural-gradient step of trpo changes the actor alone, so that the actor must not share a "
    "torso with the critic; use shared_torso=False"
)


def _gamma() -> Any:
    """The option for the discount factor."""
    return option(0.99, "discount factor gamma per environment step", low=0, high=1)


def _gae_lambda() -> Any:
    """The option for the parameter of generalised advantage estimation."""
    return option(0.95, "lambda of generalised advantage estimation (GAE)", low=0, high=1)


def _entropy_coef() -> Any:
    """The option for the entropy coefficient."""
    return option(0.0, "coefficient of the entropy bonus in the loss", low=0)


def _value_coef(doc: str = "coefficient of the value loss in the total loss") -> Any:
    """The option for the coefficient of the critic's loss."""
    return option(0.5, doc, low=0)


def check_normalizable(rows: int, minibatches: int = 1) -> None:
    """Reject minibatches of a single sample, whose advantages cannot be normalised.

    Args:
        rows: number of samples of a rollout.
        minibatches: number of minibatches, each of which is normalised separately.

    Raises:
        ValueError: if each minibatch has one sample.
    """
    if rows == minibatches:
        raise ValueError(
            "minibatches of a single sample have no standard deviation to normalise advantages; "
            "use longer rollouts, fewer minibatches or normalize_advantage=False"
        )


def check_gaussian(run: Any, env: Any) -> None:
    """Reject RPO for a policy that is no Gaussian.

    Args:
        run: TrainConfig with squash and action_distribution.
        env: environment with an action space, or None while it is unknown.

    Raises:
        ValueError: if the Gaussian is squashed, the distribution is another one, or the actions are
            discrete.
    """
    if run.squash:
        raise ValueError(
            "rpo_alpha is set, but RPO perturbs a Gaussian that is not squashed; use squash=False "
            "or rpo_alpha=None"
        )
    if run.policy is None and run.action_distribution in ("beta", "gsde"):
        raise ValueError(
            "rpo_alpha is set, but RPO perturbs the mean of a Gaussian, and action_distribution is "
            f"{run.action_distribution}; use gaussian or state_gaussian, or rpo_alpha=None"
        )
    if env is not None and not hasattr(env.action_space, "bounded"):
        raise ValueError(
            f"rpo_alpha is set, but RPO perturbs the mean of a Gaussian, and the actions are "
            f"{env.action_space}; use rpo_alpha=None"
        )


def check_length(num_steps: int, time_limit: int | None) -> int:
    """The time limit of REINFORCE, after rejecting rollouts that are shorter than it.

    Args:
        num_steps: number of steps of each environment per rollout.
        time_limit: number of steps of the longest possible episode, or None if it is unknown.

    Raises:
        ValueError: if the time limit is unknown, or rollouts are shorter than it.
    """
    if time_limit is None:
        raise ValueError(
            "reinforce learns from whole episodes, but their maximum length is unknown; set "
            "time_limit to the number of steps of the longest possible episode"
        )
    if num_steps < time_limit:
        raise ValueError(
            f"reinforce learns from whole episodes, which take up to {time_limit} steps here, but "
            f"num_steps is {num_steps}; num_steps must be at least {time_limit}"
        )
    return time_limit


def check_optimizer(config: Any) -> None:
    """Reject the restart of Adam's bias correction for another optimiser.

    Args:
        config: Config with optimizer and adam_reset.

    Raises:
        ValueError: if the options do not fit; the message states the correction.
    """
    if config.adam_reset and config.optimizer != "adam":
        raise ValueError(
            f"adam_reset restarts the bias correction of Adam, but optimizer is "
            f"{config.optimizer}; use optimizer=adam or adam_reset=False"
        )


def check_q_network(name: str, run: Any) -> None:
    """Reject networks that a Q-function cannot have: a shared torso and a recurrent cell.

    Args:
        name: name of the algorithm, for the message.
        run: TrainConfig with shared_torso and memory.

    Raises:
        ValueError: if the network does not fit; the message states the correction.
    """
    if run.shared_torso:
        raise ValueError(
            f"the critic of {name} is a Q-function, which cannot share a torso with the actor; use "
            "shared_torso=False"
        )
    if run.memory != "none":
        raise ValueError(
            f"the critic of {name} is a Q-function, which cannot be recurrent; use memory='none'"
        )


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """Hyperparameters of REINFORCE. Floats may be tracers: one program serves a whole sweep."""

    whole_episodes: ClassVar[bool] = True
    promises: ClassVar[dict[str, str]] = {
        "unfinished_episodes": "episodes were longer than the given time_limit, and were counted "
        "as if they had ended: set --time-limit to the number of steps of the longest episode"
    }

    learning_rate: Scheduled = standard.learning_rate(3e-3)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    gamma: float = _gamma()
    baseline: str = option("none", "baseline subtracted from the returns", choices=BASELINES)
    time_limit: int | None = option(
        None,
        "number of steps of the longest possible episode; None for the environment's time limit",
        low=1,
    )
    entropy_coef: Scheduled = _entropy_coef()
    value_coef: float = _value_coef("coefficient of the loss of a learned baseline")
    max_grad_norm: float = standard.max_grad_norm(float("inf"))
    adam_eps: float = standard.adam_eps()

    @property
    def critic(self) -> str:
        """The type of critic: only a learned baseline needs one."""
        return "v" if self.baseline == "value" else "none"

    def collector(self, collect: Any) -> Any:
        """Collect rollouts that start new episodes in every environment, as `estimate` requires.

        Args:
            collect: rollout.Collector of the run.
        """
        return collect.whole_episodes(self.time_limit)

    def resolve(self, env: Any) -> Self:
        """The Config with the environment's time limit, if it has one, where none was given.

        Args:
            env: environment with the attribute time_limit.
        """
        limit = env.time_limit
        if self.time_limit is not None or limit is None or math.isinf(limit):
            return self
        return dataclasses.replace(self, time_limit=int(limit))

    def check(self, run: Any, env: Any) -> None:
        """Reject rollouts in which an episode might not end.

        Args:
            run: TrainConfig with num_steps.
            env: environment with the attribute time_limit, or None while it is unknown.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        limit = None if env is None else env.time_limit
        if self.time_limit is not None and limit is not None and self.time_limit < limit < math.inf:
            raise ValueError(
                f"time_limit is {self.time_limit}, but an episode of this environment may take "
                f"{limit:g} steps; time_limit must be at least {limit:g}"
            )
        if env is not None or self.time_limit is not None:
            check_length(run.num_steps, self.time_limit)


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """Hyperparameters of the Q actor-critic. Floats may be tracers."""

    critic: ClassVar[str] = "q"

    learning_rate: Scheduled = standard.learning_rate(3e-3)
    actor_rate: float = option(
        0.1,
        "learning rate of the actor as a fraction of the critic's, which must be larger",
        low=0,
        high=1,
    )
    anneal_timesteps: float | None = standard.anneal_timesteps()
    gamma: float = _gamma()
    actor_weight: str = option(
        "q", "weight of the actor's log-likelihood: Q-value or TD error", choices=ACTOR_WEIGHTS
    )
    entropy_coef: Scheduled = _entropy_coef()
    value_coef: float = _value_coef("coefficient of the critic's loss")
    normalize_advantage: bool = option(
        True, "normalise the weights of the actor's log-likelihood over each rollout"
    )
    max_grad_norm: float = standard.max_grad_norm(0.5)
    adam_eps: float = standard.adam_eps()

    def check(self, run: Any, env: Any) -> None:
        """Reject a shared torso, a recurrent network, and rollouts of a single sample.

        Args:
            run: TrainConfig with shared_torso, memory, num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        check_q_network("actor_critic", run)
        if self.normalize_advantage:
            check_normalizable(run.num_envs * run.num_steps)


@dataclasses.dataclass(frozen=True)
class A2C:
    """Hyperparameters of A2C. Floats may be tracers, so one program serves a whole sweep."""

    learning_rate: Scheduled = standard.learning_rate(7e-4)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    gamma: float = _gamma()
    gae_lambda: float = _gae_lambda()
    entropy_coef: Scheduled = _entropy_coef()
    value_coef: float = _value_coef()
    normalize_advantage: bool = option(
        False, "normalise the advantages of each rollout to mean 0 and standard deviation 1"
    )
    max_grad_norm: float = standard.max_grad_norm(0.5)
    adam_eps: float = standard.adam_eps()

    def check(self, run: Any, env: Any) -> None:
        """Reject rollouts of a single sample, whose advantages cannot be normalised.

        Args:
            run: TrainConfig with num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        if self.normalize_advantage:
            check_normalizable(run.num_envs * run.num_steps)


@dataclasses.dataclass(frozen=True)
class TRPO:
    """Hyperparameters of TRPO. Floats may be tracers, so one program serves a whole sweep."""

    max_kl: float = option(
        0.01, "maximum mean KL divergence delta per update", low=0, open_low=True
    )
    cg_iterations: int = option(10, "number of conjugate-gradient iterations", low=1)
    cg_damping: float = option(0.1, "damping added to the diagonal of the Fisher matrix", low=0)
    backtrack_factor: float = option(
        0.8, "factor of the step length between trials of the line search", low=0, high=1
    )
    backtrack_trials: int = option(
        10, "maximum number of step lengths tried by the line search", low=1
    )
    gamma: float = _gamma()
    gae_lambda: float = _gae_lambda()
    normalize_advantage: bool = option(
        True, "normalise the advantages of each rollout to mean 0 and standard deviation 1"
    )
    learning_rate: Scheduled = standard.learning_rate(1e-3)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    critic_epochs: int = option(10, "number of epochs of the critic on each rollout", low=1)
    critic_minibatches: int = option(
        4, "number of minibatches per epoch of the critic, each one gradient step", low=1
    )
    max_grad_norm: float = standard.max_grad_norm(float("inf"))
    adam_eps: float = standard.adam_eps()

    def divisors(self) -> dict[str, int]:
        """The number of minibatches that the samples of a rollout divide into."""
        return {"critic_minibatches": self.critic_minibatches}

    def check(self, run: Any, env: Any) -> None:
        """Reject a shared torso, and rollouts of a single sample.

        Args:
            run: TrainConfig with shared_torso, num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        if run.shared_torso:
            raise ValueError(SHARED_TORSO)
        if self.normalize_advantage:
            check_normalizable(run.num_envs * run.num_steps)


@dataclasses.dataclass(frozen=True)
class PPOKL:
    """Hyperparameters of PPO with a KL penalty. Floats may be tracers."""

    learning_rate: Scheduled = standard.learning_rate(3e-4, adaptive=True)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    epochs: int = option(4, "number of epochs on each rollout", low=1)
    minibatches: int = option(4, "number of minibatches per epoch, each one gradient step", low=1)
    gamma: float = _gamma()
    gae_lambda: float = _gae_lambda()
    kl_coef: float = option(
        1.0, "coefficient of the KL penalty, or its initial value if it is adaptive", low=0
    )
    kl_target: float | None = option(
        0.01,
        "target KL divergence per update for the adaptive coefficient; None for a fixed one",
        low=0,
        open_low=True,
    )
    entropy_coef: Scheduled = _entropy_coef()
    value_coef: float = _value_coef()
    normalize_advantage: bool = option(
        True, "normalise the advantages of each minibatch to mean 0 and standard deviation 1"
    )
    max_grad_norm: float = standard.max_grad_norm(0.5)
    adam_eps: float = standard.adam_eps()

    def divisors(self) -> dict[str, int]:
        """The number of minibatches that the samples of a rollout divide into."""
        return {"minibatches": self.minibatches}

    def check(self, run: Any, env: Any) -> None:
        """Reject a coefficient that cannot adapt, and minibatches of a single sample.

        Args:
            run: TrainConfig with num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        if isinstance(self.kl_coef, int | float) and self.kl_coef == 0 and self.kl_target:
            raise ValueError(
                "kl_coef is 0 and cannot adapt, because doubling 0 gives 0; with a kl_target it "
                "must be > 0, and without a penalty kl_target must be None"
            )
        if self.normalize_advantage:
            check_normalizable(run.num_envs * run.num_steps, self.minibatches)


@dataclasses.dataclass(frozen=True)
class PPO:
    """Hyperparameters of PPO. Floats may be tracers, so one program serves a whole sweep."""

    learning_rate: Scheduled = standard.learning_rate(3e-4, adaptive=True)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    epochs: int = option(4, "number of epochs on each rollout", low=1)
    minibatches: int = option(4, "number of minibatches per epoch, each one gradient step", low=1)
    micro_batches: int = option(
        1, "number of parts of a minibatch whose gradients are accumulated", low=1
    )
    gamma: float = _gamma()
    gae_lambda: float = _gae_lambda()
    clip_eps: Scheduled = option(
        0.2, "epsilon: the probability ratio is clipped to [1 - eps, 1 + eps]", low=0, open_low=True
    )
    objective: str = option(
        "clip",
        "objective of the policy: clip (PPO), simple (SPO) or discovered (DPO's drift, in which "
        "clip_eps has no part)",
        choices=OBJECTIVES,
    )
    proximal_decay: float | None = option(
        None,
        "decay rate of the average of parameters around whose policy the clip range lies "
        "(PPO-EWMA), such as 0.9; None: the range lies around the policy that acted",
        low=0,
        high=1,
    )
    rpo_alpha: float | None = option(
        None,
        "largest absolute value of uniform noise on the mean of a Gaussian policy in the update "
        "(RPO), such as 0.5; None: no noise",
        low=0,
    )
    value_clip_eps: float | None = option(
        None,
        "clip range of the value function around its previous value; None for no clipping",
        low=0,
        open_low=True,
    )
    entropy_coef: Scheduled = _entropy_coef()
    value_coef: float = _value_coef()
    normalize_advantage: bool = option(
        True,
        "normalise the advantages of each minibatch, or micro-batch, to mean 0 and standard "
        "deviation 1",
    )
    max_grad_norm: float = standard.max_grad_norm(0.5)
    optimizer: str = standard.optimizer()
    adam_eps: float = standard.adam_eps()
    adam_reset: bool = standard.adam_reset()
    weight_decay: float | None = standard.weight_decay()
    target_kl: float | None = option(
        None,
        "threshold for early stopping: an update ends once approx_kl of a minibatch exceeds 1.5 "
        "times this value; None for no early stopping",
        low=0,
        open_low=True,
    )

    def divisors(self) -> dict[str, int]:
        """The numbers of minibatches and micro-batches that a rollout's samples divide into."""
        parts = self.minibatches * self.micro_batches
        more = {"minibatches x micro_batches": parts} if self.micro_batches > 1 else {}
        return {"minibatches": self.minibatches, **more}

    def check(self, run: Any, env: Any) -> None:
        """Reject minibatches of a single sample, whose advantages cannot be normalised, and options
        that have no effect.

        Args:
            run: TrainConfig with num_envs, num_steps and squash.
            env: environment with an action space, or None while it is unknown.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        check_optimizer(self)
        if self.rpo_alpha is not None:
            check_gaussian(run, env)
        if self.normalize_advantage:
            parts = self.minibatches * self.micro_batches
            check_normalizable(run.num_envs * run.num_steps, parts)


@dataclasses.dataclass(frozen=True)
class REPPO:
    """Hyperparameters of REPPO. Floats may be tracers, so one program serves a whole sweep."""

    critic: ClassVar[str] = "q"

    learning_rate: Scheduled = standard.learning_rate(3e-4)
    anneal_timesteps: float | None = standard.anneal_timesteps()
    epochs: int = option(4, "number of epochs on each rollout", low=1)
    minibatches: int = option(4, "number of minibatches per epoch, each one gradient step", low=1)
    gamma: float = _gamma()
    td_lambda: float = option(0.95, "lambda of the critic's targets, TD(lambda)", low=0, high=1)
    target_entropy: float = option(
        -0.5,
        "target of the policy's entropy per action dimension, in nats; with --squash that of "
        "actions scaled to [-1, 1]; a discrete action has one dimension, and an entropy above 0, "
        "so that its target must be positive to have an effect",
    )
    entropy_coef: float = option(
        0.01, "initial value of the learned coefficient alpha of the entropy", low=0, open_low=True
    )
    kl_bound: float = option(
        0.1,
        "bound of the KL divergence of each sample from the policy of the rollout, in nats",
        low=0,
        open_low=True,
    )
    kl_coef: float = option(
        0.01, "initial value of the learned coefficient beta of the KL divergence", low=0,
        open_low=True,
    )  # fmt: skip
    prediction_coef: float | None = option(
        None,
        "coefficient of the auxiliary loss, in which the critic predicts its own features at the "
        "next step, and the reward; None: no auxiliary loss",
        low=0,
    )
    max_grad_norm: float = standard.max_grad_norm(0.5)
    optimizer: str = standard.optimizer()
    adam_reset: bool = standard.adam_reset()
    weight_decay: float | None = standard.weight_decay()
    # The gradients of the multipliers are far smaller than those of the networks.
    adam_eps: float = option(
        1e-8, "Adam's epsilon, added to the denominator of each step", low=0, open_low=True
    )

    @property
    def self_prediction(self) -> bool:
        """Whether the critic has the outputs of the auxiliary loss."""
        return self.prediction_coef is not None

    def divisors(self) -> dict[str, int]:
        """The number of minibatches that the samples of a rollout divide into."""
        return {"minibatches": self.minibatches}

    def collector(self, collect: Any) -> Any:
        """Collect rollouts whose values include the entropy of the next action.

        Args:
            collect: rollout.Collector of the run.
        """
        from ppo_jax.algorithms.soft_values import with_entropy

        return with_entropy(collect)

    def check(self, run: Any, env: Any) -> None:
        """Reject networks that a Q-function cannot have, and actions of several discrete choices.

        Args:
            run: TrainConfig with shared_torso, memory and action_distribution.
            env: environment with the attribute action_space, or None while it is unknown.

        Raises:
            ValueError: if the run does not fit; the message states the correction.
        """
        check_q_network("reppo", run)
        check_optimizer(self)
        if run.policy is None and run.action_distribution in ("beta", "gsde"):
            raise ValueError(
                "reppo learns from the gradient of Q through sampled actions, which "
                f"action_distribution {run.action_distribution} does not have; use gaussian or "
                "state_gaussian"
            )
        space = None if env is None else env.action_space
        kind = type(space).__name__
        if kind in ("Discrete", "MultiDiscrete") and self.prediction_coef is not None:
            raise ValueError(
                "prediction_coef trains a prediction from states and actions of a Box, and the "
                f"action space is {space}; use prediction_coef=None"
            )
        if kind == "MultiBinary" or (
            kind == "MultiDiscrete" and not getattr(space, "joint", False)
        ):
            raise ValueError(
                f"reppo learns from the gradient of Q with respect to the action, or from the Q of "
                f"every discrete action, and the action space is {space}; it needs a Box or a "
                "Discrete space: use another algorithm, such as ppo"
            )


# Name -> Config. The order is that in which lists show the algorithms.
CONFIGS: dict[str, Any] = {
    "reinforce": Reinforce,
    "actor_critic": ActorCritic,
    "a2c": A2C,
    "trpo": TRPO,
    "ppo_kl": PPOKL,
    "ppo": PPO,
    "reppo": REPPO,
}
# Messages and the documentation show each class by its public name, ppo_jax.algorithms.ppo.Config.
for _name, _config in CONFIGS.items():
    _config.__module__, _config.__name__ = f"ppo_jax.algorithms.{_name}", "Config"
    _config.__qualname__ = "Config"
