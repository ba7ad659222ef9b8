"""From the values of a command line to the four models, with a refusal for what does not fit."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import jax

from ppo_jax.config import ConfigError
from ppo_jax.rlhf import scoring, stages, train
from ppo_jax.rlhf.algorithms import ALGORITHMS
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.scoring import Reward
from ppo_jax.rlhf.stages import Language
from ppo_jax.rlhf.tokenizer import check_vocabulary, load_tokenizer
from ppo_jax.types import Params

# Two tokenizers are the same if they make the same of this.
PROBE = "The quick brown fox jumps over 0123456789 lazy dogs; étude, naïve."


def roles(
    values: dict[str, Any], decoder: Decoder, params: Params, language: Language
) -> train.Models:
    """The four models that the values of `ppo` name."""
    rewards, folders = _rewards(values, language, decoder)
    reference = params
    if values["reference"] is not None:
        other, reference = load_model(_model_folder(values["reference"]))
        if "score" in reference:
            raise ConfigError(f"{values['reference']} is a reward model, which does not write")
        if dataclasses.replace(other.config, dtype="float32") != dataclasses.replace(
            decoder.config, dtype="float32", remat=False
        ):
            raise ConfigError(f"{values['reference']} is not built as {values['model']} is")
    kind = values["critic"]
    if kind == "auto":
        kind = "none" if not ALGORITHMS[values["algorithm"]].critic else "model"
        kind = "reward" if folders and kind == "model" else kind
    critic: Decoder | str = kind
    critic_params: Params = {}
    if kind == "reward":
        if not folders:
            raise ConfigError("critic reward needs the folder of a reward model in --reward")
        critic, critic_params = load_model(folders[0], values["dtype"], remat=values["remat"])
        critic_params = stages.zero_head(critic_params)
    elif kind == "model":
        critic, critic_params = decoder, decoder.with_score(params)
    elif kind == "shared":
        critic_params = train.fresh_score(decoder)
    return train.Models(decoder, params, critic, critic_params, reference, rewards)


def _rewards(
    values: dict[str, Any], language: Language, actor: Decoder
) -> tuple[Reward, list[Path]]:
    """What is optimised, and the folders of models among it."""
    names, weights = values["reward"], values["reward_weights"]
    if not names:
        raise ConfigError("--reward is needed: the folder of a reward model, or module:function")
    if weights and len(weights) != len(names):
        raise ConfigError(f"{len(names)} rewards and {len(weights)} reward_weights")
    found, folders = [], []
    for name in names:
        if Path(name).is_dir():
            folder = _model_folder(Path(name))
            _check_vocabulary(folder, language)
            reward, decoder = stages.read_reward(folder)
            _check_fits(folder, decoder, actor)
            found.append(reward)
            folders.append(folder)
        else:
            if jax.device_count() > 1:
                raise ConfigError(
                    f"--reward {name}: a function of Python is called from one device, and there "
                    f"are {jax.device_count()}; let JAX see one of them (JAX_NUM_CPU_DEVICES=1, "
                    "CUDA_VISIBLE_DEVICES=0), or make a reward model of it"
                )
            found.append(scoring.from_function(_function(name), language.tokenizer))
    if len(found) == 1 and not weights:
        return found[0], folders
    return scoring.weighted(found, weights or [1.0] * len(found)), folders


def _check_vocabulary(folder: Path, language: Language) -> None:
    """Refuse a reward model that reads other tokens than the actor writes.

    Raises:
        ConfigError: its tokenizer differs.
    """
    if not (folder / "tokenizer.json").exists():
        return
    theirs, ours = load_tokenizer(folder), language.tokenizer
    # Of characters the alphabet; of others what they make of a text.
    kept = [getattr(x, "tokens", None) or x.encode(PROBE) for x in (theirs, ours)]
    if theirs.vocab_size != ours.vocab_size or kept[0] != kept[1]:
        raise ConfigError(
            f"the reward model {folder} has another tokenizer than the model "
            f"({theirs.vocab_size} tokens there, {ours.vocab_size} here)"
        )


def _check_fits(folder: Path, reward: Decoder, actor: Decoder) -> None:
    """Refuse a reward model that cannot read all that the actor can write."""
    for name in ("vocab_size", "max_positions"):
        theirs, ours = getattr(reward.config, name), getattr(actor.config, name)
        if theirs < ours:
            raise ConfigError(
                f"the reward model {folder} has {name} {theirs}, less than the model's {ours}"
            )


def _function(name: str) -> scoring.RewardFunction:
    """module:function.

    Raises:
        ConfigError: there is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"--reward {name}: neither a folder nor module:function")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises
        raise ConfigError(f"--reward {name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ConfigError(f"--reward {name} is no function but {function!r}")
    return function


def writer(values: dict[str, Any]) -> tuple[Decoder, Params, Language]:
    """A model that writes; a reward model does not."""
    decoder, params, language = model(values)
    if "score" in params:
        raise ConfigError(f"{values['model']} is a reward model, which does not write")
    return decoder, params, language


def model(values: dict[str, Any]) -> tuple[Decoder, Params, Language]:
    """The model of `--model`, with its tokenizer.

    Raises:
        ConfigError, ModelError, TokenizerError: there is none, or they do not fit.
    """
    folder = _model_folder(Path(needed(values, "model")))
    decoder, params = load_model(folder, values["dtype"], remat=values["remat"])
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, decoder.config.vocab_size)
    return decoder, params, Language(tokenizer, folder)


def _model_folder(folder: Path) -> Path:
    """The model of a run, or the folder itself."""
    inner = folder / "model"
    if inner.is_dir() and not (folder / "model.safetensors").exists():
        return inner
    if (folder / "checkpoints").is_dir() or (folder / "sft").is_dir():
        raise ConfigError(f"{folder} is a run without a model; finish it with --resume {folder}")
    return folder


def needed(values: dict[str, Any], name: str) -> Any:
    """The value of a flag that has no default.

    Raises:
        ConfigError: it was not given.
    """
    if values[name] is None:
        raise ConfigError(f"--{name.replace('_', '-')} is needed; see --help")
    return values[name]


def prompt_room(decoder: Decoder, max_new_tokens: int) -> int:
    """Tokens that a prompt may have.

    Raises:
        ConfigError: none.
    """
    room = decoder.config.max_positions - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}; the model's context holds "
            f"{decoder.config.max_positions}, prompt included"
        )
    return room


def ends(decoder: Decoder, tokenizer: Any) -> tuple[int, ...] | None:
    """What ends a response: all that the model's files call an end, and the tokenizer."""
    named = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tuple(sorted({*decoder.config.eos_ids, *named})) or None
