"""The names that other libraries give to options, and our names for the same.

CleanRL, Stable-Baselines3 with its zoo, PureJaxRL, Brax, RLlib and TRL. A command line or a file
that uses one of their names is refused with the name that the option has here.
"""

import difflib
from collections.abc import Callable, Collection, Container, Mapping

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
    "num_train_epochs": ("updates",),
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
    "recurrent": ("memory",),
    "use_lstm": ("memory",),
    "lstm": ("memory",),
    "gru": ("memory",),
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
    "reward_model_path": ("reward",),
    "reward_model": ("reward",),
    "reward_funcs": ("reward",),
    "ref_model": ("reference",),
    "num_generations": ("group_size",),
    "rloo_k": ("group_size",),
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
}
# Their names for what is not an option here, and what to do instead.
ROLLOUT = (
    "a gradient step uses num_envs x num_steps / minibatches samples: set --num-envs, --num-steps "
    "and --minibatches"
)
DEVICE = (
    "JAX chooses the device; JAX_PLATFORMS=cpu or cuda in front of the command chooses another, "
    "and CUDA_VISIBLE_DEVICES selects GPUs"
)
TRACKER = (
    "--wandb logs to Weights & Biases; WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE configure it"
)
VIDEO = "ppo-jax evaluate RUN --gif FILE records an episode after training"
SCHEDULE = (
    "a learning rate that is a plain number decays linearly to 0 over the run; give "
    '--learning-rate "constant(3e-4)" for a constant one'
)
KEPT = "checkpoints are always saved in the folder of the run; ppo-jax export writes the agent"
INSTEAD: dict[str, str] = {
    **dict.fromkeys(("batch_size", "minibatch_size", "sgd_minibatch_size"), ROLLOUT),
    "train_batch_size": ROLLOUT,
    **dict.fromkeys(("device", "cuda", "gpu", "no_cuda", "use_gpu", "backend", "platform"), DEVICE),
    **dict.fromkeys(
        ("wandb_project_name", "wandb_project", "wandb_entity", "wandb_mode", "wandb_run_name",
         "wandb_group", "project_name", "project", "entity"), TRACKER,
    ),
    **dict.fromkeys(("capture_video", "render", "record_video", "video", "render_mode"), VIDEO),
    **dict.fromkeys(
        ("anneal_lr", "lr_schedule", "learning_rate_schedule", "use_linear_lr_decay", "lr_decay"),
        SCHEDULE,
    ),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "lr_scheduler_type"),
        '--learning-rate takes a schedule: --learning-rate "cosine(3e-4, 0, warmup=0.05)"'),
    **dict.fromkeys(("save_model", "save", "upload_model", "push_to_hub", "hf_entity"), KEPT),
    "torch_deterministic": "a run with the same seed computes the same numbers; leave the flag out",
    "policy_kwargs": "--hidden, --activation, --network and --memory describe the network",
    "episode_length": "environments take their arguments in --env-args, as episode_length=1000",
    "action_repeat": "environments take their arguments in --env-args",
    "frame_stack": "environments take their arguments in --env-args, as frames=4",
    "verbose": "progress is shown on a terminal; leave the flag out",
    "debug": "--debug-nans finds the origin of numbers that are not finite",
    "optimizer": "the optimiser is Adam; another one is an argument of the algorithm in Python",
    "bf16": "--network-dtype bfloat16, or --dtype bfloat16 for language models",
    "fp16": "--network-dtype bfloat16, or --dtype bfloat16 for language models",
    "episodes": "the length of a run is --total-timesteps, a number of environment steps",
    "num_episodes": "the length of a run is --total-timesteps, a number of environment steps",
}  # fmt: skip


def plain(name: str) -> str:
    """A name in lower case, with underscores."""
    return name.lower().replace("-", "_")


def flag(name: str) -> str:
    """An option's flag: "num_envs" -> "--num-envs"."""
    return f"--{name.replace('_', '-')}"


def hint(
    name: str,
    known: Collection[str],
    others: Mapping[str, Container[str]] | None = None,
    show: Callable[[str], str] = flag,
) -> str:
    """What to write in place of an unknown option.

    Args:
        name: the unknown option, as it was written.
        known: the options that there are.
        others: algorithm -> the options that it has; None: not relevant.
        show: option -> how it is written; by default as a flag.

    Returns:
        A hint, or "" where nothing is similar.
    """
    written = plain(name)
    if written in known:
        return f"write it as {show(written)}"
    ours = [option for option in SAME.get(written, ()) if option in known]
    if ours:
        return f"here it is {' or '.join(map(show, ours))}"
    for option in (written, *SAME.get(written, ())):
        having = [algorithm for algorithm, names in (others or {}).items() if option in names]
        if having:
            return f"{show(option)} is an option of the algorithm {' or '.join(having)}"
    if written in INSTEAD:
        return INSTEAD[written]
    near = difflib.get_close_matches(written, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(show, near))}?" if near else ""
