"""The names that other libraries give to options, and our names for the same.

CleanRL, Stable-Baselines3 with its zoo, PureJaxRL, Brax, RLlib and TRL. A command line or a file
that uses one of their names is refused with the name that the option has here.
"""

import difflib
import re
from collections.abc import Callable, Collection, Container, Mapping

# How similar a known option is that may be meant; the most algorithms or commands in a hint.
CUTOFF, MOST = 0.65, 2
# Their name, in lower case and with underscores -> our options, the likeliest first.
SAME: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "step_size": ("learning_rate",),
    "actor_lr": ("learning_rate",),
    "policy_lr": ("learning_rate",),
    "critic_lr": ("learning_rate", "critic_rate"),
    "env_id": ("env",),
    "env_name": ("env",),
    "environment": ("env",),
    "gym_id": ("env",),
    "task": ("env",),
    "env_kwargs": ("env_args",),
    "algo": ("algorithm",),
    "agent": ("algorithm",),
    "n_timesteps": ("total_timesteps",),
    "num_timesteps": ("total_timesteps",),
    "timesteps": ("total_timesteps",),
    "total_steps": ("total_timesteps",),
    "steps": ("total_timesteps", "updates"),
    "max_steps": ("total_timesteps", "updates"),
    "n_envs": ("num_envs",),
    "nenvs": ("num_envs",),
    "num_workers": ("num_envs",),
    "num_env_runners": ("num_envs",),
    "n_steps": ("num_steps",),
    "nsteps": ("num_steps",),
    "unroll_length": ("num_steps",),
    "rollout_length": ("num_steps",),
    "rollout_fragment_length": ("num_steps",),
    "horizon": ("num_steps",),
    "n_epochs": ("epochs",),
    "update_epochs": ("epochs",),
    "ppo_epochs": ("epochs",),
    "num_ppo_epochs": ("epochs",),
    "num_sgd_iter": ("epochs",),
    "num_updates_per_batch": ("epochs",),
    "num_epochs": ("epochs", "updates"),
    "num_train_epochs": ("epochs", "updates"),
    "num_minibatches": ("minibatches",),
    "n_minibatches": ("minibatches",),
    "num_mini_batches": ("minibatches",),
    "nminibatches": ("minibatches",),
    "gradient_accumulation_steps": ("micro_batches",),
    "discount": ("gamma",),
    "discounting": ("gamma",),
    "discount_factor": ("gamma",),
    "lam": ("gae_lambda",),
    "lambda": ("gae_lambda",),
    "clip_coef": ("clip_eps",),
    "clip_range": ("clip_eps",),
    "cliprange": ("clip_eps",),
    "clip_param": ("clip_eps",),
    "clip_ratio": ("clip_eps",),
    "clip_epsilon": ("clip_eps",),
    "clipping_epsilon": ("clip_eps",),
    "epsilon": ("clip_eps",),
    "clip_vloss": ("value_clip_eps",),
    "clip_range_vf": ("value_clip_eps",),
    "cliprange_value": ("value_clip_eps",),
    "vf_clip_param": ("value_clip_eps",),
    "ent_coef": ("entropy_coef",),
    "entropy_coeff": ("entropy_coef",),
    "entropy_cost": ("entropy_coef",),
    "entropy_bonus": ("entropy_coef",),
    "vf_coef": ("value_coef",),
    "vf_loss_coeff": ("value_coef",),
    "value_loss_coef": ("value_coef",),
    "norm_adv": ("normalize_advantage",),
    "normalize_advantages": ("normalize_advantage",),
    "whiten_advantage": ("whiten_advantages",),
    "normalize_observations": ("normalize_obs",),
    "norm_obs": ("normalize_obs",),
    "normalize_rewards": ("normalize_reward",),
    "norm_reward": ("normalize_reward",),
    "reward_scaling": ("normalize_reward",),
    "grad_clip": ("max_grad_norm",),
    "max_gradient_norm": ("max_grad_norm",),
    "optimizer_eps": ("adam_eps",),
    "adam_epsilon": ("adam_eps",),
    "kl_coeff": ("kl_coef",),
    "init_kl_coef": ("kl_coef",),
    "beta": ("kl_coef",),
    "kl_estimator": ("kl_kind",),
    "hidden_size": ("hidden",),
    "hidden_sizes": ("hidden",),
    "hidden_dim": ("hidden",),
    "hidden_layers": ("hidden",),
    "hidden_layer_sizes": ("hidden",),
    "policy_hidden_layer_sizes": ("hidden",),
    "layer_size": ("hidden",),
    "net_arch": ("hidden",),
    "fsdim": ("hidden",),
    "activation_fn": ("activation",),
    "rnn": ("memory",),
    "random_seed": ("seed",),
    "num_seeds": ("seeds", "seed"),
    "n_seeds": ("seeds", "seed"),
    "output_dir": ("run_dir",),
    "out_dir": ("run_dir",),
    "save_dir": ("run_dir",),
    "save_path": ("run_dir",),
    "log_dir": ("run_dir",),
    "logdir": ("run_dir",),
    "log_folder": ("run_dir",),
    "exp_name": ("run_dir",),
    "name": ("run_dir",),
    "continue": ("resume",),
    "resume_from": ("resume",),
    "resume_from_checkpoint": ("resume",),
    "load": ("init_from", "resume"),
    "load_model": ("init_from", "model"),
    "checkpoint": ("resume", "init_from"),
    "trained_agent": ("init_from",),
    "restore_checkpoint_path": ("init_from", "resume"),
    "eval_freq": ("eval_every",),
    "eval_interval": ("eval_every",),
    "eval_steps": ("eval_every",),
    "num_evals": ("eval_every",),
    "n_eval_episodes": ("eval_episodes",),
    "num_eval_episodes": ("eval_episodes",),
    "save_freq": ("checkpoint_seconds",),
    "save_steps": ("checkpoint_seconds",),
    "save_interval": ("checkpoint_seconds",),
    "checkpoint_frequency": ("checkpoint_seconds",),
    "log_interval": ("log_every",),
    "log_freq": ("log_every",),
    "logging_steps": ("log_every",),
    "track": ("wandb",),
    "use_wandb": ("wandb",),
    "report_to": ("wandb", "tensorboard"),
    "tensorboard_log": ("tensorboard",),
    "num_gpus": ("devices",),
    "num_devices": ("devices",),
    "max_devices_per_host": ("devices",),
    "model_name_or_path": ("model",),
    "model_name": ("model",),
    "sft_model_path": ("model",),
    "dataset": ("data",),
    "dataset_name": ("data",),
    "train_file": ("data",),
    "data": ("prompts",),
    "input": ("prompts", "data"),
    "prompt_file": ("prompts",),
    "prompts_file": ("prompts",),
    "validation_file": ("eval_data",),
    "eval_file": ("eval_data",),
    "eval_dataset": ("eval_data",),
    "validation_fraction": ("eval_fraction",),
    "validation_split": ("eval_fraction",),
    "test_size": ("eval_fraction",),
    "pass_k": ("pass_at",),
    "pass_at_k": ("pass_at",),
    "load_best_model_at_end": ("final_model",),
    "num_samples": ("repeat", "episodes"),
    "reward_model_path": ("reward",),
    "reward_model": ("reward",),
    "reward_funcs": ("reward",),
    "ref_model": ("reference",),
    "num_generations": ("group_size",),
    "rloo_k": ("group_size",),
    "epsilon_high": ("clip_eps_high",),
    "clip_range_high": ("clip_eps_high",),
    "clip_ratio_high": ("clip_eps_high",),
    "delta": ("dual_clip",),
    "clip_ratio_c": ("dual_clip",),
    "loss_type": ("algorithm", "aggregation"),
    "loss_agg_mode": ("aggregation",),
    "importance_sampling_level": ("ratio",),
    "scale_rewards": ("advantage_scale",),
    "mask_truncated_completions": ("mask_truncated",),
    "top_entropy_quantile": ("entropy_top_fraction",),
    "entropy_coefficient": ("entropy_coef",),
    "vllm_importance_sampling_cap": ("importance_cap",),
    "tis_imp_ratio_cap": ("importance_cap",),
    "filter_groups": ("dynamic_sampling",),
    "max_completion_length": ("max_new_tokens",),
    "response_length": ("max_new_tokens",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "per_device_train_batch_size": ("batch_size", "num_prompts"),
    "train_batch_size": ("batch_size", "num_prompts"),
    "torch_dtype": ("dtype",),
    "gradient_checkpointing": ("remat",),
    "use_peft": ("lora_rank",),
    "lora_r": ("lora_rank",),
    "lora_target_modules": ("lora_targets",),
    "attn_implementation": ("attention",),
    "ent": ("entropy_coef",),
    "vf": ("value_coef",),
    "tau": ("gae_lambda",),
    "anneal_lr": ("anneal",),
    "num_iterations": ("updates",),
    "iterations": ("updates",),
    "num_updates": ("updates",),
    "total_episodes": ("updates",),
    "total_env_steps": ("total_timesteps",),
    "num_env_steps": ("total_timesteps",),
    "max_env_steps": ("total_timesteps",),
    "episodes": ("episodes", "eval_episodes"),
    "num_episodes": ("episodes", "eval_episodes"),
    "n_episodes": ("episodes", "eval_episodes"),
    "output": ("run_dir", "out"),
    "restore": ("resume", "init_from"),
    "load_path": ("init_from", "model"),
    "pretrained": ("init_from", "model"),
    "num_return_sequences": ("repeat", "group_size"),
    "trials": ("sample",),
    "n_trials": ("sample",),
    "num_trials": ("sample",),
}
# What to add where our option has another unit or meaning than theirs. Of several texts, the first
# is shown whose options the command has: those that it names, and those of NEEDS.
COUNTS = "--eval-every counts updates"
INTERVAL = "--eval-every is an interval in updates, not a number of evaluations"
SECONDS = "--checkpoint-seconds counts seconds"
LENGTH = "the length of a run is --total-timesteps, a number of environment steps"
GRADIENT_STEPS = "--updates counts gradient steps, each on --batch-size samples"
ROLLOUTS = "--updates counts rollouts, each with --num-prompts prompts"
SWITCH = "--normalize-reward is a switch, without a factor"
NOTES: dict[str, tuple[str, ...]] = {
    "num_evals": (INTERVAL,),
    **dict.fromkeys(("eval_freq", "eval_interval", "eval_steps"), (COUNTS,)),
    **dict.fromkeys(("save_freq", "save_steps", "save_interval", "checkpoint_frequency"),
        (SECONDS,)),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), (GRADIENT_STEPS, ROLLOUTS)),
    **dict.fromkeys(("total_episodes", "num_iterations", "iterations", "num_updates", "max_steps",
        "steps"), (GRADIENT_STEPS, ROLLOUTS)),
    "reward_scaling": (SWITCH,),
    **dict.fromkeys(("episodes", "num_episodes", "n_episodes"), (LENGTH,)),
}  # fmt: skip
# Their names for what is not an option here, and what to do instead.
ROLLOUT = (
    "a gradient step uses num_envs x num_steps / minibatches samples: set --num-envs, --num-steps "
    "and --minibatches"
)
RESPONSES = (
    "a gradient step uses num_prompts x group_size / minibatches responses: set --num-prompts, "
    "--group-size and --minibatches"
)
UPDATES = "set --total-timesteps: the number of updates x --num-envs x --num-steps"
DEVICE = (
    "JAX chooses the device; JAX_PLATFORMS=cpu or cuda in front of the command chooses another, "
    "and CUDA_VISIBLE_DEVICES selects GPUs"
)
TRACKER = (
    "--wandb logs to Weights & Biases; WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE configure it"
)
GIF = "--gif FILE records an episode"
VIDEO = "ppo-jax evaluate RUN --gif FILE records an episode after training"
SCHEDULE = (
    "a learning rate that is a plain number decays linearly to 0 over the run; give "
    '--learning-rate "constant(3e-4)" for a constant one'
)
KEPT = "checkpoints are always saved in the folder of the run; ppo-jax export writes the agent"
MODEL = "the model is always saved in the folder of the run"
OPTIMIZER = "the optimiser is Adam; another one is an argument of the algorithm in Python"
ADAM = "the optimiser is Adam"
LAYERS = "--hidden 64 64 describes two layers of 64 units each"
LOW_PRECISION = ("write --network-dtype bfloat16", "write --dtype bfloat16")
WARMUP = '--learning-rate takes a schedule: --learning-rate "cosine(3e-4, 0, warmup=0.05)"'
SAME_NUMBERS = "a run with the same seed computes the same numbers; leave the flag out"
INSTEAD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("batch_size", "minibatch_size", "sgd_minibatch_size", "train_batch_size"),
        (ROLLOUT, RESPONSES)),
    **dict.fromkeys(("device", "cuda", "gpu", "gpus", "no_cuda", "use_gpu", "backend", "platform",
        "accelerator"), (DEVICE,)),
    **dict.fromkeys(
        ("wandb_project_name", "wandb_project", "wandb_entity", "wandb_mode", "wandb_run_name",
         "wandb_group", "project_name", "project", "entity"), (TRACKER,),
    ),
    **dict.fromkeys(("capture_video", "render", "record_video", "video", "render_mode"),
        (GIF, VIDEO)),
    **dict.fromkeys(
        ("anneal_lr", "lr_schedule", "learning_rate_schedule", "use_linear_lr_decay", "lr_decay"),
        (SCHEDULE,),
    ),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "lr_scheduler_type"), (WARMUP,)),
    **dict.fromkeys(("save_model", "save", "upload_model", "push_to_hub", "hf_entity"),
        (KEPT, MODEL)),
    **dict.fromkeys(("optimizer", "weight_decay", "momentum", "beta1", "beta2"),
        (OPTIMIZER, ADAM)),
    **dict.fromkeys(("lstm", "use_lstm", "recurrent"), ("write --memory lstm",)),
    "gru": ("write --memory gru",),
    **dict.fromkeys(("num_iterations", "iterations", "num_updates", "updates"), (UPDATES,)),
    **dict.fromkeys(("episodes", "num_episodes", "n_episodes", "total_episodes"), (LENGTH,)),
    **dict.fromkeys(("layers", "num_layers", "n_layers"), (LAYERS,)),
    **dict.fromkeys(("bf16", "fp16"), LOW_PRECISION),
    "no_clip_vloss": ("--value-clip-eps None does not clip the loss of the value function",),
    "torch_deterministic": (SAME_NUMBERS,),
    "deterministic": ("greedy actions are the default; --stochastic samples them", SAME_NUMBERS),
    "use_gae": ("generalised advantage estimation is always on; --gae-lambda sets lambda",),
    "policy_kwargs": ("--hidden, --activation, --network and --memory describe the network",),
    "episode_length": ("environments take their arguments in --env-args, as episode_length=1000",),
    "action_repeat": ("environments take their arguments in --env-args",),
    "frame_stack": ("environments take their arguments in --env-args, as frames=4",),
    "verbose": ("progress is shown on a terminal; leave the flag out",),
    "debug": ("--debug-nans finds the origin of numbers that are not finite",),
}  # fmt: skip
# Options that a command must have for a text, besides those that the text names.
NEEDS = {
    VIDEO: ("num_envs",),
    SCHEDULE: ("anneal_timesteps",),
    KEPT: ("num_envs", "run_dir"),
    MODEL: ("model", "run_dir"),
    OPTIMIZER: ("num_envs",),
    ADAM: ("learning_rate",),
    SAME_NUMBERS: ("seed",),
    LENGTH: ("total_timesteps",),
}
COMMAND = re.compile(r"ppo-jax [a-z-]+(?: (?:[A-Z]+|--[a-z-]+))*")


def plain(name: str) -> str:
    """A name in lower case, with underscores."""
    return name.lower().replace("-", "_")


def flag(name: str) -> str:
    """An option's flag: "num_envs" -> "--num-envs"."""
    return f"--{name.replace('_', '-')}"


def named(text: str) -> set[str]:
    """The options whose flags a text names, without those of another command."""
    flags = re.findall(r"--([a-z][a-z-]*)", COMMAND.sub("", text))
    return {plain(name) for name in flags}


def hint(
    name: str,
    known: Collection[str],
    others: Mapping[str, Container[str]] | None = None,
    show: Callable[[str], str] = flag,
    *,
    switches: Collection[str] = (),
    commands: Mapping[str, Container[str]] | None = None,
) -> str:
    """What to write in place of an unknown option.

    Args:
        name: the unknown option, as it was written.
        known: the options that there are.
        others: algorithm -> the options that it has; None: not relevant.
        show: option -> how it is written; by default as a flag.
        switches: those of `known` that are true or false.
        commands: another command -> the options that it has; None: not relevant.

    Returns:
        A hint, or "" where nothing is similar.
    """
    written = plain(name)
    found = _ours(written, known, show) or _fitting(INSTEAD.get(written, ()), known)
    if not found and written.startswith("no_"):
        found = _negated(written.removeprefix("no_"), known, show, switches)
    for option in (written, *SAME.get(written, ())):
        found = found or _belongs(option, others or {}, show, "the algorithm ")
    found = found or _belongs(written, commands or {}, show, "")
    if found:
        return found
    near = difflib.get_close_matches(written, known, n=3, cutoff=CUTOFF)
    return f"did you mean {' or '.join(map(show, near))}?" if near else ""


def _ours(written: str, known: Collection[str], show: Callable[[str], str]) -> str:
    """Our options of the same meaning, with a note where the meaning differs a little."""
    if written in known:
        return f"write it as {show(written)}"
    ours = [option for option in SAME.get(written, ()) if option in known]
    note = _fitting(NOTES.get(written, ()), known)
    return f"here it is {' or '.join(map(show, ours))}{note and '; '}{note}" if ours else ""


def _fitting(texts: tuple[str, ...], known: Collection[str]) -> str:
    """The first text that names no option which the command lacks; "" if there is none."""
    return next((t for t in texts if {*named(t), *NEEDS.get(t, ())} <= {*known}), "")


def _negated(
    written: str, known: Collection[str], show: Callable[[str], str], switches: Collection[str]
) -> str:
    """What to write in place of --no-NAME for a name that is unknown here."""
    ours = [option for option in (written, *SAME.get(written, ())) if option in switches]
    if ours:
        return f"here it is {' or '.join(show(f'no_{option}') for option in ours)}"
    return _fitting(INSTEAD.get(written, ()), known)


def _belongs(
    option: str, having: Mapping[str, Container[str]], show: Callable[[str], str], what: str
) -> str:
    """The algorithms or commands that have the option."""
    names = [name for name, options in having.items() if option in options]
    return f"{show(option)} is an option of {what}{' or '.join(names[:MOST])}" if names else ""
