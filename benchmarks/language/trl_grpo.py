"""The contestant TRL in `benchmarks.reasoning`: its GRPOTrainer, in the environment of TRL.

python -m benchmarks.language.trl_grpo SETTINGS.json

The settings are those of the run of ppo_jax. `loss_type` "bnpo" averages over the tokens of a
minibatch as ppo_jax does, and `num_items`, dropout, checkpoints, samples and reports are off. Each
update generates all its responses at once. This module does not import ppo_jax.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.language.verifier import verify

# The number of tokens of the responses of each update, end of text included.
TOKENS: list[int] = []


class Clock(transformers.TrainerCallback):
    """A callback that records the time of every gradient step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the time."""
        del args, kwargs
        self.times.append(time.perf_counter())


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The reward of each response, as the task of ppo_jax gives it."""
    TOKENS.append(sum(map(len, columns["completion_ids"])))
    length = columns["response_length"]
    return [verify(*row) for row in zip(prompts, completions, length, strict=True)]


def arguments(settings: dict[str, Any], folder: Path) -> GRPOConfig:
    """The configuration of the trainer."""
    responses = settings["num_prompts"] * settings["group_size"]
    steps = settings["updates"] * settings["minibatches"] * settings["epochs"]
    return GRPOConfig(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=responses // settings["minibatches"],
        steps_per_generation=settings["minibatches"],
        gradient_accumulation_steps=1,
        num_iterations=settings["epochs"],
        max_steps=steps,
        num_generations=settings["group_size"],
        max_completion_length=settings["response_length"],
        shuffle_dataset=False,
        temperature=settings["temperature"],
        top_k=0,
        beta=settings["kl_coef"],
        epsilon=settings["clip_eps"],
        loss_type="bnpo",
        scale_rewards="group",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear" if settings["anneal"] else "constant",
        warmup_steps=round(settings["warmup"] * steps),
        max_grad_norm=settings["max_grad_norm"],
        adam_epsilon=settings["adam_eps"],
        weight_decay=0.0,
        seed=settings["seed"],
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
    )


def main(path: Path) -> None:
    """Train, save the model beside the settings, and write the measurements to measured.json."""
    settings, folder = json.loads(path.read_text()), path.parent
    torch.set_num_threads(torch.get_num_threads())
    prompts = json.loads((folder / "prompts.json").read_text())
    length = [settings["response_length"]] * len(prompts)
    clock = Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "start", padding_side="left")
    ids = tokenizer(prompts[0])["input_ids"]
    if ids != settings["first_prompt"]:
        raise SystemExit(
            f"the tokens of the first prompt are {ids}, not {settings['first_prompt']}"
        )
    trainer = GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder / "start"),
        reward_funcs=reward,
        args=arguments(settings, folder),
        train_dataset=Dataset.from_dict({"prompt": prompts, "response_length": length}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "model")
    # The first update, which loads and allocates, is not counted.
    per_update = settings["minibatches"] * settings["epochs"]
    times = clock.times[per_update - 1 :: per_update]
    import trl

    seconds = [after - before for before, after in itertools.pairwise(times)]
    rates = [tokens / each for tokens, each in zip(TOKENS[1:], seconds, strict=False)]
    measured = {
        "train_seconds": sum(seconds),
        "tokens_per_second": statistics.median(rates),
        "versions": f"trl={trl.__version__} transformers={transformers.__version__} "
        f"torch={torch.__version__}",
    }
    (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
