"""Refusal of unknown names, the same for the options of all benchmarks."""

from collections.abc import Iterable

from ppo_jax.config.options import did_you_mean


def check_names(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that an option does not have.

    Args:
        option: name of the option.
        given: names given to it.
        known: all names that it has.

    Raises:
        SystemExit: a name is unknown; the message names the closest one, or all.
    """
    known = [*known]
    for name in given:
        if name not in known:
            raise SystemExit(f"--{option}: unknown {name!r}; {did_you_mean(name, known)}")
