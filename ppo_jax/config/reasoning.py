"""The options of `ppo-jax rlhf reason`, read before JAX is imported."""

import dataclasses
from typing import Annotated, Any

import tyro

from ppo_jax.config import standard
from ppo_jax.config.options import option
from ppo_jax.config.schedules import Schedule

Words = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class Reason:
    """The task, the model, the fine-tuning before reinforcement learning, and the evaluations."""

    task: str = option("addition", "task whose answers are verified, a name in ppo_jax.rlhf.tasks")
    difficulty: tuple[str, ...] = option(
        (), "numbers that determine the difficulty of the task, as NAME=VALUE such as digits=2"
    )
    hidden_size: int = option(64, "size of the hidden states of the decoder", low=4)
    num_layers: int = option(2, "number of blocks of the decoder", low=1)
    num_heads: int = option(4, "number of attention heads of the decoder", low=1)
    worked_examples: int = option(
        1500, "number of worked examples, the training data of the fine-tuning", low=1
    )
    sft_updates: int = option(
        600,
        "largest number of gradient steps of the fine-tuning on worked examples, a multiple of 10",
        low=10,
    )
    sft_batch_size: int = option(
        128, "number of worked examples per gradient step of the fine-tuning", low=1
    )
    sft_learning_rate: float = option(
        1e-3, "learning rate of the fine-tuning, which is constant", low=0, open_low=True
    )
    start_at: float | None = option(
        0.36,
        "pass@1 at which the fine-tuning of an agent ends; None: all --sft-updates are made",
        low=0,
        high=1,
        open_low=True,
    )
    seed: int = option(0, "seed of the first agent", low=0, high=2**31 - 1)
    seeds: int = option(
        1, "number of agents, which one program trains and whose seeds follow --seed", low=1
    )
    vary: Words = option(
        (),
        "real-valued option to vary, as NAME=A,B,C; given several times, all combinations are "
        "trained in the same program",
    )
    eval_problems: int = option(512, "number of held-out problems of an evaluation", low=2)
    eval_samples: int = option(
        8, "k, the number of sampled responses to each held-out problem for pass@k", low=2
    )
    matmul_precision: str = standard.matmul_precision()


# Values of options that other stages have with other defaults.
DEFAULTS: dict[str, Any] = {
    "algorithm": "grpo",
    "updates": 400,
    "num_prompts": 64,
    "group_size": 8,
    "kl_coef": 0.0,
    # At the full rate, the first steps of Adam destroy some of the fine-tuned models.
    "learning_rate": Schedule("linear", (6e-4, 0.0, 0.1)),
    "epochs": 1,
    "minibatches": 4,
    "eval_every": 50,
}
# Options of rollouts and of stages that this command does not have: the task determines the length
# of a response, all parameters are trained, and the last state is the result.
WITHOUT = (
    "max_new_tokens",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_critic",
    "final_model",
    "preset",
)
