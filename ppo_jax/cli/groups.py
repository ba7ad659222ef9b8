"""The groups of options in `--help`."""

# Group -> the options in it; an option that is in none belongs to the group of its record.
GROUPS: dict[str, tuple[str, ...]] = {
    "start": ("preset", "config", "print_config"),
    "environment": (
        "env",
        "env_args",
        "num_envs",
        "normalize_obs",
        "normalize_reward",
        "reset_pool",
        "stagger",
        "env_timeout",
        "env_restarts",
    ),
    "network": (
        "policy",
        "network",
        "hidden",
        "activation",
        "norm",
        "residual",
        "memory",
        "memory_size",
        "memory_layers",
        "memory_heads",
        "memory_length",
        "frame_mix",
        "shared_torso",
        "value_head",
        "value_bins",
        "value_low",
        "value_high",
        "action_distribution",
        "squash",
        "log_std_init",
        "noise_steps",
        "map_actions",
        "network_dtype",
        "matmul_precision",
    ),
    "algorithm": ("algorithm", "num_steps"),
    "run": (
        "total_timesteps",
        "updates",
        "seed",
        "run_dir",
        "resume",
        "overwrite",
        "init_from",
        "eval_every",
        "eval_episodes",
        "final_model",
        "stop_at",
        "checkpoint_seconds",
        "devices",
        "parts",
        "callback",
        "debug_nans",
        "trust",
    ),
    "logging": ("log_every", "tensorboard", "wandb", "trackio", "sample_seconds", "samples"),
    "multi-process": (
        "distributed",
        "coordinator",
        "num_processes",
        "process_id",
        "heartbeat",
        "start_timeout",
    ),
}
# The order of groups; those that a command adds come before "run".
ORDER = ("start", "environment", "network", "algorithm", "", "run", "logging", "multi-process")


def group_of(name: str, otherwise: str) -> str:
    """The group of an option.

    Args:
        name: the option.
        otherwise: the group of its record.
    """
    return next((group for group, names in GROUPS.items() if name in names), otherwise)


def arranged(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Groups in the order of `ORDER`, and their options in the order of `GROUPS`.

    Args:
        groups: group -> its options, in the order in which their records have them.
    """
    own = [group for group in groups if group not in ORDER]
    order = [g for known in ORDER for g in (own if not known else [known]) if g in groups]
    return {group: _sorted(group, groups[group]) for group in order}


def _sorted(group: str, names: list[str]) -> list[str]:
    listed = GROUPS.get(group, ())
    return sorted(names, key=lambda n: listed.index(n) if n in listed else len(listed))
