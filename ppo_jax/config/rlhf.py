"""The options of training language models, `ppo_jax.rlhf`, read before JAX is imported."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from ppo_jax.algorithms import configs
from ppo_jax.config import standard
from ppo_jax.config.options import option
from ppo_jax.config.schedules import Scheduled

# Each algorithm, and the options in which it differs from the others. An option that is None has
# the value given here, or else that in COMMON. Sources: docs/rlhf.md, "Algorithms".
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "reinforce": {},
    "rloo": {"advantage_scale": "none"},
    "grpo": {"advantage_scale": "group"},
    "dr_grpo": {"advantage_scale": "none", "aggregation": "constant"},
    "dapo": {"advantage_scale": "group", "clip_eps_high": 0.28, "dynamic_sampling": "redraw"},
    "gspo": {"advantage_scale": "group", "aggregation": "sequence", "ratio": "sequence"},
    "cispo": {"advantage_scale": "group", "objective": "cispo", "clip_eps_high": 4.0},
    "reinforce_pp": {},
    "maxrl": {"advantage_scale": "mean"},
}
COMMON = {
    "aggregation": "token",
    "ratio": "token",
    "objective": "clip",
    "dynamic_sampling": "off",
}
ALGORITHMS = tuple(METHODS)
AGGREGATIONS = ("token", "sequence", "constant")
ADVANTAGE_SCALES = ("group", "batch", "mean", "none")
DYNAMIC_SAMPLING = ("off", "mask", "redraw")
ADAMS = ("optax", "tensorflow")
CRITICS = ("auto", "reward", "model", "shared", "none")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
PARAM_DTYPES = ("float32", "bfloat16", "float16", "file")
FROZEN_DTYPES = ("auto", "float32", "bfloat16", "float16")
# Values of options in runs that are older than the options, where they are not the defaults.
OLDER = {"frozen_dtype": "float32"}


LORA_TARGETS = ("q", "v")


def _lora_rank() -> int:
    return option(
        0, "rank of the LoRA adapters that are trained; 0: all parameters are trained", low=0
    )


def _lora_alpha() -> float:
    return option(16.0, "scale of the LoRA adapters, divided by their rank", low=0, open_low=True)


def _lora_targets() -> tuple[str, ...]:
    return option(
        LORA_TARGETS,
        "matrices of each layer that get adapters: q, k, v, o, gate, up, down",
    )


def _weight_decay() -> float:
    return option(
        0.0,
        "weight decay of AdamW, which is multiplied by the learning rate; biases and normalisation "
        "layers are not decayed",
        low=0,
    )


def _top_k() -> Any:
    return option(
        None, "number of the most likely tokens that are sampled from; None: no limit", low=1
    )


def _top_p() -> Any:
    return option(
        None,
        "total probability of the most likely tokens that are sampled from; None: no limit",
        low=0,
        open_low=True,
        high=1,
    )


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Which responses are sampled, and how they are rewarded: `ppo_jax.rlhf.train.Config`."""

    algorithm: str = option(
        "ppo", "algorithm, which estimates the advantage of a token", choices=ALGORITHMS
    )
    updates: int = option(
        100, "number of rollouts of the whole run, each followed by an update", low=1
    )
    anneal_updates: int | None = standard.anneal_updates()
    num_prompts: int = option(256, "number of prompts per rollout", low=1)
    group_size: int = option(
        1, "number of responses to each prompt; the algorithms with a group compare them", low=1
    )
    max_new_tokens: int = option(32, "number of tokens of the longest response", low=1)
    rollout_batch: int | None = option(
        None,
        "number of responses that are sampled and scored at a time, which bounds the memory of a "
        "rollout; None: as many as fit into a cache of the size of the model, or of 1 GiB",
        low=1,
    )
    temperature: float = option(
        1.0,
        "temperature that divides the logits of all models, in sampling and in training",
        low=0,
        open_low=True,
    )
    kl_coef: float = option(
        0.05, "beta, the coefficient of the KL divergence from the reference model", low=0
    )
    kl_kind: str = option(
        "k1",
        "estimator of the KL divergence of a token; in the loss it determines the value alone, and "
        "the gradient is always that of k2",
        choices=KL_ESTIMATORS,
    )
    kl_in: str = option(
        "reward",
        "place of the KL penalty: in the rewards, or as a term of the loss",
        choices=("reward", "loss"),
    )
    kl_target: float | None = option(
        None,
        "KL divergence per response, in nats, that beta adapts to; None: a fixed beta",
        low=0,
        open_low=True,
    )
    kl_horizon: float = option(10_000.0, "number of responses over which beta adapts", low=1)
    reward_clip: float = option(
        float("inf"),
        "largest absolute value of a score, to which scores are clipped",
        low=0,
        high=float("inf"),
        open_low=True,
    )
    scale_scores: bool = option(False, "divide scores by their running standard deviation")
    missing_eos_penalty: float = option(
        0.0, "number subtracted from the score of a response without an end token", low=0
    )
    missing_eos_score: float | None = option(
        None,
        "score of every response without an end token; None: the score that it was given",
    )
    length_penalty: float = option(
        0.0, "number subtracted from the score of a response of the maximum length", low=0
    )
    length_penalty_start: float = option(
        0.8,
        "fraction of --max-new-tokens up to which responses have no length penalty; it then grows "
        "linearly with the length",
        low=0,
        high=0.99,
    )
    mask_truncated: bool = option(
        False, "leave responses without an end token out of the losses, but not out of their group"
    )
    dynamic_sampling: str | None = option(
        None,
        "treatment of groups whose responses all have the same score; mask: they are left out of "
        "the losses; redraw: they are replaced by responses to further prompts; None: that of the "
        "algorithm",
        choices=DYNAMIC_SAMPLING,
    )
    max_draws: int = option(
        4, "maximum number of times that responses are drawn for an update of redraw", low=2
    )
    entropy_top_fraction: float | None = option(
        None,
        "fraction of the tokens of a rollout, those with the highest entropy, that the policy is "
        "trained on; None: all tokens",
        low=0,
        open_low=True,
        high=1,
    )
    importance_cap: float | None = option(
        None,
        "largest importance weight, by which the loss of a token is multiplied: its probability "
        "under the policy at the start of the update, divided by that in sampling; None: no "
        "weights",
        low=0,
        open_low=True,
    )
    stale: bool = option(
        False, "sample each rollout with the parameters before the last update, one update behind"
    )
    sampling_temperature: float | None = option(
        None,
        "temperature in sampling alone, not in training; None: --temperature",
        low=0,
        open_low=True,
    )
    top_k: int | None = _top_k()
    top_p: float | None = _top_p()
    lora_rank: int = _lora_rank()
    lora_alpha: float = _lora_alpha()
    lora_targets: tuple[str, ...] = _lora_targets()
    lora_critic: bool = option(
        False, "train the critic as adapters and a head too, instead of all its parameters"
    )


@dataclasses.dataclass(frozen=True)
class Update(configs.PPO):
    """Hyperparameters of an update, `ppo_jax.rlhf.algorithms.Config`: those of PPO, some with other
    defaults, and those of tokens."""

    # These options of PPO do not exist here: the horizon is counted in updates, advantages are
    # normalised once per rollout, no update ends early, the clip range is that around the policy
    # that sampled the tokens, the policy is no Gaussian, and every stage is trained by Adam.
    anneal_timesteps: ClassVar[None] = None  # type: ignore[misc]
    normalize_advantage: ClassVar[bool] = False  # type: ignore[misc]
    target_kl: ClassVar[None] = None  # type: ignore[misc]
    proximal_decay: ClassVar[None] = None  # type: ignore[misc]
    rpo_alpha: ClassVar[None] = None  # type: ignore[misc]
    optimizer: ClassVar[str] = "adam"  # type: ignore[misc]

    minibatches: int = option(2, "number of minibatches per epoch, each one gradient step", low=1)
    gamma: float = option(1.0, "discount factor gamma per token", low=0, high=1)
    value_clip_eps: float | None = option(
        0.2,
        "range around the old value to which new values are clipped; None: no clipping",
        low=0,
        open_low=True,
    )
    learning_rate: Scheduled = standard.learning_rate(1e-5, adaptive=True)
    max_grad_norm: float = standard.max_grad_norm(1.0)
    critic_rate: float = option(
        1.0, "learning rate of the critic as a multiple of the actor's", low=0
    )
    anneal: bool = option(
        True, "decay the learning rate linearly to 0 over the run, unless it is a schedule"
    )
    whiten_advantages: bool | None = option(
        None,
        "normalise advantages over all tokens of a rollout; None: unless groups of responses are "
        "compared",
    )
    advantage_scale: str | None = option(
        None,
        "number that divides the advantages of a group: the standard deviation of its returns, "
        "that of the returns of the whole rollout, or the mean return of the group; None: that of "
        "the algorithm",
        choices=ADVANTAGE_SCALES,
    )
    aggregation: str | None = option(
        None,
        "mean that the loss is: over all tokens; over responses, of the mean over the tokens of "
        "each; or over responses, of the sum over their tokens divided by --max-new-tokens; None: "
        "that of the algorithm",
        choices=AGGREGATIONS,
    )
    ratio: str | None = option(
        None,
        "probability ratio that is clipped: that of each token, or the geometric mean of those of "
        "a response; None: that of the algorithm",
        choices=("token", "sequence"),
    )
    objective: str | None = option(  # type: ignore[assignment]
        None,
        "objective of the policy; clip: the clipped objective of PPO; cispo: the log-probability "
        "times the advantage and the ratio, of which the ratio is bounded and has no gradient; "
        "simple: that of SPO; discovered: that of discovered policy optimisation; None: that of "
        "the algorithm",
        choices=(*configs.OBJECTIVES, "cispo"),
    )
    clip_eps_high: float | None = option(
        None,
        "epsilon of the upper bound 1 + eps of the ratio; None: that of the algorithm, or else "
        "--clip-eps",
        low=0,
        open_low=True,
    )
    dual_clip: float | None = option(
        None,
        "largest ratio that counts where the advantage is negative; None: no bound",
        low=1,
        open_low=True,
    )
    whiten_rewards: bool = option(
        False, "scale token rewards to standard deviation 1, and keep their mean"
    )
    adam: str = option(
        "optax", "version of Adam, which differ in where epsilon is added", choices=ADAMS
    )
    weight_decay: float = _weight_decay()


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Hyperparameters of supervised training, `ppo_jax.rlhf.supervised.Config`."""

    learning_rate: Scheduled = standard.learning_rate(2e-5)
    batch_size: int = option(64, "number of samples per gradient step", low=1)
    updates: int = option(500, "number of gradient steps of the whole run", low=1)
    epochs: float | None = option(
        None,
        "number of passes over the training data, in place of --updates; None: --updates decides",
        low=0,
        open_low=True,
    )
    anneal_updates: int | None = standard.anneal_updates()
    weight_decay: float = _weight_decay()
    length_buckets: int = option(
        4,
        "maximum number of groups of texts of similar length; a text is padded to the longest of "
        "its group, and each group is compiled separately",
        low=1,
        high=32,
    )
    micro_batches: int = option(
        1, "number of parts of a batch whose gradients are accumulated", low=1
    )
    max_grad_norm: float = standard.max_grad_norm(1.0)
    adam_eps: float = standard.adam_eps()


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of supervised training."""

    lora_rank: int = _lora_rank()
    lora_alpha: float = _lora_alpha()
    lora_targets: tuple[str, ...] = _lora_targets()


@dataclasses.dataclass(frozen=True)
class Demo:
    """The size of the demonstration; with the defaults it takes less than five minutes on two CPU
    cores."""

    data: Path | None = option(
        None, "text file to imitate, one example a line; None: words of Python's language reference"
    )
    seed: int = option(0, "seed of all random numbers of the run", low=0, high=2**32 - 1)
    sft_updates: int = option(500, "number of gradient steps of supervised fine-tuning", low=1)
    reward_updates: int = option(300, "number of gradient steps of the reward model", low=1)
    updates: int = option(60, "number of updates of PPO", low=1)
    responses: int = option(512, "number of responses per update", low=2)
    preferences: int = option(6000, "number of pairs of responses with a preference", low=16)
    kl_coef: float = option(
        0.5, "beta, the coefficient of the KL divergence from the reference model", low=0.01
    )
    learning_rate: float = option(
        5e-4, "learning rate of PPO, which decays to 0", low=0, open_low=True
    )
    reference_samples: int = option(
        2048, "number of samples per first letter with which the optimum is estimated", low=16
    )
    matmul_precision: str = standard.matmul_precision()


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The model, the data, and how the model is computed."""

    model: Path | None = option(None, "folder of a model in the format of Hugging Face's libraries")
    data: Path | None = option(
        None, "training data: a file of JSON lines, a JSON array, Parquet or plain text"
    )
    chat_template_kwargs: tuple[str, ...] = option(
        (), "arguments of the chat template as NAME=VALUE, such as enable_thinking=false"
    )
    max_length: int = option(512, "maximum number of tokens of a text", low=2)
    truncate: bool = option(False, "truncate longer texts instead of refusing them")
    seed: int = option(0, "seed of all random numbers of the run", low=0, high=2**32 - 1)
    dtype: str = option("float32", "data type of the computation", choices=("float32", "bfloat16"))
    param_dtype: str = option(
        "float32",
        "data type of the parameters that are trained and saved; file: that of the model's files",
        choices=PARAM_DTYPES,
    )
    matmul_precision: str = standard.matmul_precision()
    remat: bool = option(False, "recompute activations in the backward pass, which saves memory")
    attention: str = option(
        "plain",
        "implementation of attention; cudnn: the fused kernel of NVIDIA GPUs, for dtype bfloat16; "
        "xla: the same function compiled by XLA",
        choices=("plain", "xla", "cudnn"),
    )
    model_parallel: int = option(
        1,
        "number of devices that share each weight matrix; the batch is divided over the others",
        low=1,
    )


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Options of fine-tuning alone."""

    assistant_only_loss: bool = option(
        False,
        "predict only the assistant's turns of conversations, those in {% generation %} blocks of "
        "the chat template or else all of them",
    )


@dataclasses.dataclass(frozen=True)
class HeldOutOptions:
    """The data on which a stage is evaluated."""

    eval_data: Path | None = option(
        None, "held-out data in the format of --data; None: a part of --data is held out"
    )
    eval_fraction: float = option(
        0.05,
        "fraction of --data that is held out from training if there is no --eval-data; 0: none",
        low=0,
        high=0.5,
    )


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """Options of a reward model alone."""

    center: float = option(
        0.0, "coefficient of the auxiliary loss that keeps the mean score at 0", low=0
    )


@dataclasses.dataclass(frozen=True)
class PPOOptions:
    """The reward, the critic and the reference."""

    reward: tuple[str, ...] = option(
        (),
        "rewards: folders of reward models, or functions of (prompts, completions, columns of the "
        "data) as MODULE:FUNCTION",
    )
    reward_weights: tuple[float, ...] = option((), "weight of each reward; by default 1 for each")
    critic: str = option(
        "auto",
        "initial critic; reward: the reward model with a new head; model: the model with a new "
        "head; shared: a head on the actor; auto: reward if --reward names a model, otherwise "
        "model",
        choices=CRITICS,
    )
    reference: Path | None = option(
        None, "folder of the reference model of the KL penalty; None: --model"
    )
    frozen_dtype: str = option(
        "auto",
        "data type of the parameters of the reference and of reward models; auto: bfloat16 on "
        "accelerators, float32 on CPUs; with adapters, the reference has --param-dtype",
        choices=FROZEN_DTYPES,
    )
    eval_responses: int = option(
        256, "number of responses to held-out prompts in an evaluation", low=2
    )


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled."""

    chat_template_kwargs: tuple[str, ...] = option(
        (), "arguments of the chat template as NAME=VALUE, such as enable_thinking=false"
    )
    max_new_tokens: int = option(64, "number of tokens of the longest response", low=1)
    temperature: float = option(
        1.0, "temperature that divides the logits; 0: the most likely token", low=0
    )
    top_k: int | None = _top_k()
    top_p: float | None = _top_p()
    repeat: int = option(1, "number of responses to each prompt", low=1)
    batch_size: int = option(64, "number of responses that are sampled at a time", low=1)
    truncate: bool = option(False, "truncate long prompts instead of refusing them")
    seed: int = option(0, "seed of the sampling", low=0, high=2**32 - 1)
    dtype: str = option("float32", "data type of the computation", choices=("float32", "bfloat16"))
    matmul_precision: str = standard.matmul_precision()
    out: Path | None = option(None, "file for the responses, one JSON object per line")
    overwrite: bool = option(False, "replace an existing --out file")


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Which responses are written."""

    model: Path | None = option(None, "folder of a model, or of a run of a language model")
    prompt: tuple[str, ...] = option((), "prompts to respond to")
    prompts: Path | None = option(None, "file of prompts, instead of --prompt")
    resume: bool = option(False, "continue an --out file that an interrupted command left")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and how responses are scored."""

    model: Path | None = option(None, "folder of a model, or of a run of a language model")
    prompts: Path | None = option(
        None, "file of prompts; None: a run is evaluated on its own held-out data"
    )
    reward: tuple[str, ...] = option(
        (),
        "rewards: folders of reward models, or functions of (prompts, completions, columns of the "
        "prompts) as MODULE:FUNCTION; without --prompts, the reward functions of the run, named "
        "again",
    )
    reward_weights: tuple[float, ...] = option((), "weight of each reward; by default 1 for each")
    reference: Path | None = option(
        None, "folder of a model from which the KL divergence is measured; None: it is not measured"
    )
    threshold: float | None = option(
        None, "score from which a response counts as correct; None: no accuracy and no pass@k"
    )
    pass_at: tuple[int, ...] = option(
        (), "values of k of pass@k, at most --repeat; empty: 1 and --repeat"
    )
    responses: int = option(
        256, "without --prompts, number of responses with which a policy is evaluated", low=2
    )
    trust: bool = option(False, "allow the folder of the run to name code to import")


@dataclasses.dataclass(frozen=True)
class ProblemOptions:
    """Which problems of a reasoning task are written."""

    task: str | None = option(
        None, "reasoning task, such as addition or reasoning_gym:chain_sum; docs/reasoning_tasks.md"
    )
    difficulty: tuple[str, ...] = option(
        (), "numbers that state the difficulty as NAME=VALUE, such as digits=3"
    )
    number: int = option(1000, "number of problems", low=1, high=10**6)
    held_out: bool = option(
        False, "write problems that are held out from training, which no training file contains"
    )
    seed: int = option(0, "seed of the problems", low=0, high=2**32 - 1)
    out: Path | None = option(None, "file for the problems, one JSON object per line")
    overwrite: bool = option(False, "replace an existing --out file")


def settled(record: Any, algorithm: str) -> Any:
    """A record of options in which those of the algorithm replace None.

    The `clip_eps_high` of an algorithm applies to its own objective alone: the number has another
    meaning, and another size, for other objectives.

    Args:
        record: `Rollouts` or `Update`, or another record with some of their options.
        algorithm: name of the algorithm, a key of METHODS.
    """
    names = {f.name for f in dataclasses.fields(record) if getattr(record, f.name) is None}
    values = COMMON | METHODS[algorithm]
    if getattr(record, "objective", None) not in (None, values["objective"]):
        names.discard("clip_eps_high")
    return dataclasses.replace(record, **{n: x for n, x in values.items() if n in names})


# Messages and the documentation show these classes by their public names.
for _config, _module in ((Rollouts, "train"), (Update, "algorithms"), (Supervised, "supervised")):
    _config.__module__, _config.__name__ = f"ppo_jax.rlhf.{_module}", "Config"
    _config.__qualname__ = "Config"
