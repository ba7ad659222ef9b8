"""The contestant TRL: its PPOTrainer, SFTTrainer or RewardTrainer with the fastest settings.

All forward passes use the whole rollout as one batch (`local_rollout_forward_batch_size`) in
float32. Gradient checkpointing, samples, logs, reports and checkpoints are off. Attention uses the
kernel of torch, the key-value cache is used in generation only, and torch uses one thread per core.
`per_device_train_batch_size` is the whole rollout, and each minibatch takes one gradient step; with
several micro-batches TRL would take fewer steps. TRL generates `response_length` tokens for each
prompt, truncates at the first end of text, and applies the same penalty to responses without one.

SFTTrainer and RewardTrainer get tokenised texts of equal length, so that nothing is padded, and
clip gradients like ppo_jax.

Some properties cannot be changed: AdamW without gradient clipping, the logits of all texts in
memory at once, and an additional softmax for its statistics.
"""

import os
import tempfile
import threading
from argparse import Namespace
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.language.sizes import Size

PACKAGES = ("trl", "transformers", "accelerate", "datasets")
# Updates of the training run, more than are ever measured.
UPDATES = 10**6
PROMPT_BATCHES = 4


def model_config(size: Size) -> transformers.PretrainedConfig:
    """The architecture of all four models."""
    common = {
        "vocab_size": size.vocab_size,
        "bos_token_id": None,
        "eos_token_id": size.eos_id,
        "pad_token_id": size.eos_id - 1,
        "num_labels": 1,
        "use_cache": False,
    }
    if size.family == "gpt2":
        return transformers.GPT2Config(
            n_positions=size.max_positions,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.num_heads,
            n_inner=size.intermediate_size,
            activation_function=size.activation,
            **common,
        )
    return transformers.LlamaConfig(
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=size.max_positions,
        hidden_act=size.activation,
        tie_word_embeddings=False,
        **common,
    )


def tokenizer_of(size: Size) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers; TRL requires one even for prompts of token ids."""
    words = {str(i): i for i in range(size.vocab_size)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")),
        eos_token=str(size.eos_id),
        pad_token=str(size.eos_id - 1),
        padding_side="left",
    )


def arguments(size: Size, folder: str) -> PPOConfig:
    """The configuration of TRL's trainer."""
    return PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=size.episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=size.minibatches,
        num_ppo_epochs=size.epochs,
        total_episodes=UPDATES * size.episodes,
        local_rollout_forward_batch_size=size.episodes,
        num_sample_generations=0,
        response_length=size.response_length,
        stop_token="eos",
        temperature=1.0,
        missing_eos_penalty=size.missing_eos_penalty,
        kl_coef=size.kl_coef,
        cliprange=size.clip_eps,
        cliprange_value=size.clip_eps,
        vf_coef=size.value_coef,
        gamma=1.0,
        lam=size.gae_lambda,
        learning_rate=size.learning_rate,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="no",
    )


def supervised_trainer(
    size: Size,
    config: transformers.PretrainedConfig,
    folder: str,
    pause: transformers.TrainerCallback,
) -> transformers.Trainer:
    """SFTTrainer or RewardTrainer on random texts of equal length."""
    shape = (2, PROMPT_BATCHES * size.episodes, size.text_length)
    first, second = torch.randint(0, size.vocab_size - 2, shape).tolist()
    common = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": size.episodes,
        "gradient_accumulation_steps": size.micro_batches,
        "max_steps": UPDATES,
        "max_length": None,  # the texts have their final length
        "learning_rate": size.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    shared = {"processing_class": tokenizer_of(size), "callbacks": [pause]}
    if size.task == "sft":
        return SFTTrainer(
            args=SFTConfig(
                loss_type="nll",  # without recomputation of the logits
                dataset_kwargs={"skip_prepare_dataset": True},
                **common,
            ),
            model=transformers.AutoModelForCausalLM.from_config(config),
            train_dataset=Dataset.from_dict({"input_ids": first}),
            **shared,
        )
    return RewardTrainer(
        args=RewardConfig(**common),
        model=transformers.AutoModelForSequenceClassification.from_config(config),
        train_dataset=Dataset.from_dict({"chosen_ids": first, "rejected_ids": second}),
        **shared,
    )


class Pause(transformers.TrainerCallback):
    """A callback that blocks the training thread after each update until the next is requested."""

    def __init__(self) -> None:
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Signal the end of an update, and wait for the request of the next one."""
        del args, kwargs
        self.arrived.release()
        self.go.acquire()


class Program:
    """A training run in a separate thread, one update at a time; `compile` makes the first one."""

    compile_trains = True

    def __init__(self, size: Size) -> None:
        """Store the size; `compile` does the rest."""
        self.size, self.pause = size, Pause()
        self.failure: BaseException | None = None

    def compile(self) -> None:
        """Build models and trainer, and run the first update, which is not measured."""
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()
        self._wait()

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because nothing depends on the number of updates."""

    def run(self, updates: int) -> int:
        """Train for a number of updates."""
        for _ in range(updates):
            self.pause.go.release()
            self._wait()
        return updates

    def _wait(self) -> None:
        self.pause.arrived.acquire()
        if self.failure is not None:
            raise self.failure

    def _train(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._trainer(folder).train()
        except BaseException as failure:
            self.failure = failure
            self.pause.arrived.release()

    def _trainer(self, folder: str) -> transformers.Trainer:
        size = self.size
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        config = model_config(size)
        if size.task != "ppo":
            return supervised_trainer(size, config, folder, self.pause)
        actor = transformers.AutoModelForCausalLM.from_config(config)
        reference = transformers.AutoModelForCausalLM.from_config(config)
        reference.load_state_dict(actor.state_dict())
        reward = transformers.AutoModelForSequenceClassification.from_config(config)
        critic = transformers.AutoModelForSequenceClassification.from_config(config)
        critic.load_state_dict(reward.state_dict())
        actor.generation_config.use_cache = True
        shape = (PROMPT_BATCHES * size.episodes, size.prompt_length)
        prompts = torch.randint(0, size.vocab_size - 2, shape)
        return PPOTrainer(
            args=arguments(size, folder),
            processing_class=tokenizer_of(size),
            model=actor,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": prompts.tolist()}),
            callbacks=[self.pause],
        )


def prepare(size: Size, options: Namespace) -> Program:
    """The program of TRL."""
    del options
    return Program(size)
