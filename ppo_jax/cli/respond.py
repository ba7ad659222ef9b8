"""`ppo-jax rlhf generate` and `evaluate`: responses of a model to prompts, written and scored."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import precision
from ppo_jax.cli.rlhf import pick
from ppo_jax.config import ConfigError
from ppo_jax.config.rlhf import EvaluateOptions, SamplingOptions
from ppo_jax.rlhf import evaluation, respond, rollout
from ppo_jax.rlhf.data import Tokens, prompt_arrays
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.formats import Prompt, arguments, read
from ppo_jax.rlhf.hf_io import load_model
from ppo_jax.rlhf.policy import TokenInputs, log_prob_of
from ppo_jax.rlhf.respond import Batch, Sampling
from ppo_jax.rlhf.reward_functions import PromptTable
from ppo_jax.rlhf.roles import ends, model_folder, needed, prompt_room, rewards_of, writer
from ppo_jax.rlhf.stages import Language
from ppo_jax.runs import files, terminal
from ppo_jax.types import Params

Values = dict[str, Any]
Row = dict[str, Any]


class _Model(NamedTuple):
    """A model, the prompts it responds to, and how it responds.

    Attributes:
        decoder, params, language: the model and its tokenizer.
        prompts: N prompts as records of `formats.read`.
        arrays: the prompts as token ids.
        sampling: settings of the sampling.
    """

    decoder: Decoder
    params: Params
    language: Language
    prompts: list[Prompt]
    arrays: Tokens
    sampling: Sampling

    @property
    def total(self) -> int:
        """The number of responses."""
        return len(self.prompts) * self.sampling.repeat

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The responses from batch `first` on."""
        return respond.batches(
            self.decoder,
            self.params,
            self.arrays,
            self.sampling,
            eos_id=ends(self.decoder, self.language.tokenizer),
            valid_vocab=self.language.tokenizer.vocab_size,
            first=first,
        )

    def rows(self, batch: Batch) -> list[Row]:
        """The new responses of a batch, as lines of --out."""
        written = respond.texts(batch, self.language.tokenizer)
        ended = respond.ended(batch, ends(self.decoder, self.language.tokenizer))
        lengths = batch.written.mask.sum(axis=1)
        return [
            {
                "prompt": self.prompts[batch.rows[k]].prompt,
                "response": text,
                "tokens": int(lengths[k]),
                "ended": bool(ended[k]),
            }
            for k, text in enumerate(written)
        ]


def _model(values: Values, prompts: list[Prompt]) -> _Model:
    """The model of the command with its prompts.

    Raises:
        ConfigError, DataError, ModelError, TokenizerError: the model or a prompt cannot be used.
    """
    options: SamplingOptions = pick(SamplingOptions, values)
    decoder, params, language = writer({**values, "remat": False})
    room = prompt_room(decoder, options.max_new_tokens)
    arrays = prompt_arrays(prompts, language.tokenizer, room, options.truncate)
    sampling = Sampling(**{name: getattr(options, name) for name in Sampling._fields})
    return _Model(decoder, params, language, prompts, arrays, sampling)


def generate(values: Values, _: None) -> Callable[[], int]:
    """Write responses to prompts: to the terminal, or as JSON lines to a file."""
    prompts = [Prompt(text, "--prompt") for text in values["prompt"]]
    if values["prompts"] is not None and prompts:
        raise ConfigError("--prompt and --prompts are both given; give one of them")
    if values["prompts"] is not None:
        prompts = read(values["prompts"], "prompt", _template(values))
    if values["resume"] and values["out"] is None:
        raise ConfigError("--resume continues an --out file; also give --out FILE")
    _check_out(values["out"], replace=values["overwrite"] or values["resume"])
    model = _model(values, prompts or [Prompt("", "no prompt")])
    write = _write if values["out"] is not None else _say
    work = lambda: write(model, values)
    return precision.apply(values["matmul_precision"], work)


def _template(values: Values) -> dict[str, Any]:
    """The arguments of the chat template that the command gives."""
    return arguments(values["chat_template_kwargs"])


def _say(model: _Model, values: Values) -> int:
    """Print prompts and responses."""
    for batch in model.batches():
        for row in model.rows(batch):
            prompt = row["prompt"] if isinstance(row["prompt"], str) else ""
            terminal.say(f"{prompt}{row['response']}")
    return 0


def _write(model: _Model, values: Values) -> int:
    """Write responses to a file, batch by batch, so that an interrupted command can continue."""
    out: Path = values["out"]
    kept = _kept(model, out) if values["resume"] else []
    with files.replacing(out) as file:
        file.writelines(kept)
    done, size = len(kept), min(model.sampling.batch_size, model.total)
    if done < model.total:
        with (
            out.open("ab") as file,
            terminal.Display(model.total, done, "generate", unit="responses") as display,
        ):
            for batch, rate in _timed(model.batches(done // size)):
                file.writelines(map(_line, model.rows(batch)))
                file.flush()
                done += batch.new
                display.show(done, rate, "")
    terminal.say(f"wrote {out}: {model.total:,} responses to {len(model.prompts):,} prompts")
    return 0


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Batches with the number of responses per second."""
    started = time.perf_counter()
    for batch in batches:
        now = time.perf_counter()
        yield batch, batch.new / (now - started)
        started = now


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def _kept(model: _Model, out: Path) -> list[bytes]:
    """The complete batches of responses in a file, which are not sampled again.

    Raises:
        ConfigError: the file has responses to other prompts.
    """
    lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
    size, whole = min(model.sampling.batch_size, model.total), list[bytes]()
    for number, line in enumerate(lines):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            break  # the last line of an interrupted command
        place = number // model.sampling.repeat
        if place >= len(model.prompts) or prompt != model.prompts[place].prompt:
            raise ConfigError(
                f"line {number + 1} of {out} does not respond to the prompt of this command; give "
                "the same prompts and --repeat as before, or --overwrite"
            )
        whole.append(line)
    complete = len(whole) if len(whole) == model.total else len(whole) // size * size
    return whole[:complete]


def _check_out(out: Path | None, *, replace: bool) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        ConfigError: the file exists, is a directory, or its directory does not exist.
    """
    if out is None:
        return
    if out.is_dir():
        raise ConfigError(f"--out is {out}, which is a directory; give the name of a file")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {out}; there is no directory {out.absolute().parent}")
    if out.exists() and not replace:
        raise ConfigError(f"--out is {out}, which exists; give another name, or --overwrite")


def evaluate(values: Values, _: None) -> Callable[[], int]:
    """Score the responses of any model to the prompts of a file."""
    options: EvaluateOptions = pick(EvaluateOptions, values)
    _check_evaluation(options, values)
    _check_out(values["out"], replace=values["overwrite"])
    model = _model(values, read(needed(values, "prompts"), "prompt", _template(values)))
    scored = _Scored(model, values)
    return precision.apply(values["matmul_precision"], lambda: _evaluate(scored, options, values))


def _check_evaluation(options: EvaluateOptions, values: Values) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: the message names the options.
    """
    repeat = values["repeat"]
    if options.pass_at and options.threshold is None:
        raise ConfigError("--pass-at needs --threshold, the score from which a response is correct")
    bad = next((k for k in options.pass_at if not 1 <= k <= repeat), None)
    if bad is not None:
        raise ConfigError(
            f"--pass-at {bad} needs {max(bad, 1)} responses to each prompt, but --repeat is "
            f"{repeat}; values of k are from 1 to --repeat"
        )
    truncated = [n for n in ("top_k", "top_p") if values[n] is not None]
    truncated += ["temperature"] if values["temperature"] == 0 else []
    if options.reference is not None and truncated:
        raise ConfigError(
            "--reference measures the KL divergence of samples from the whole distribution of the "
            f"model; leave out --{truncated[0].replace('_', '-')}, or --reference"
        )


def _evaluate(scored: "_Scored", options: EvaluateOptions, values: Values) -> int:
    model, rows = scored.model, list[Row]()
    for batch, rate in _timed(model.batches()):
        rows += scored(batch)
        terminal.say(f"{len(rows):>12,} / {model.total:,} responses   {rate:,.1f} responses/s")
    if options.threshold is not None:
        rows = [{**row, "correct": row["score"] >= options.threshold} for row in rows]
    for name, value in _numbers(rows, options, model.sampling.repeat).items():
        terminal.say(
            f"{name:>26} {value:.4f}" if isinstance(value, float) else f"{name:>26} {value}"
        )
    if values["out"] is not None:
        with files.replacing(values["out"]) as file:
            file.writelines(map(_line, rows))
        terminal.say(f"wrote {values['out']}: {len(rows):,} responses with their scores")
    return 0


def _numbers(rows: Sequence[Row], options: EvaluateOptions, repeat: int) -> dict[str, float]:
    """The numbers of an evaluation, by name."""

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], float).reshape(-1, repeat)

    scores = column("score")
    found = evaluation.of_scores(scores, threshold=options.threshold, pass_at=options.pass_at)
    if options.reference is not None:
        found["kl"], found["kl_standard_error"] = evaluation.mean_over_prompts(column("kl"))
    for name in (n for n in rows[0] if n.startswith("score_")):
        given = [row[name] for row in rows if row[name] is not None]
        if given:
            found[name] = float(np.mean(given))
    return {
        **found,
        "response_length": float(column("tokens").mean()),
        "eos_rate": float(column("ended").mean()),
        "prompts": len(scores),
        "responses": scores.size,
    }


class _Scored:
    """The rows of a batch, with the score of each response and its KL divergence.

    Args:
        model: the model that responds.
        values: values of the options by name.
    """

    def __init__(self, model: _Model, values: Values) -> None:
        self.model, length = model, model.sampling.max_new_tokens
        table = PromptTable(model.prompts)
        self.reward, _ = rewards_of(values, model.language, model.decoder, table)
        self._score = jax.jit(
            lambda frozen, inputs: rollout.scores(self.reward.score(frozen, inputs, length))
        )
        self._reference: Params | None = None
        if values["reference"] is not None:
            reference, self._reference = _reference(values, model)
            self._log_prob = jax.jit(
                lambda params, inputs: log_prob_of(
                    reference,
                    params,
                    inputs,
                    length,
                    temperature=model.sampling.temperature,
                    valid_vocab=model.language.tokenizer.vocab_size,
                )
            )

    def __call__(self, batch: Batch) -> list[Row]:
        written, prompts = batch.written, batch.prompts
        inputs = TokenInputs(
            jnp.concatenate([prompts.tokens, written.tokens], axis=1)[:, None],
            jnp.concatenate([prompts.mask, written.mask], axis=1)[:, None],
            jnp.asarray(batch.rows),
        )
        rows = self.model.rows(batch)
        total, parts = jax.device_get(self._score(self.reward.frozen, inputs))
        columns = {"score": total, **{f"score_{name}": x for name, x in parts.items()}}
        rows = [
            {**row, **{name: _number(x[k]) for name, x in columns.items()}}
            for k, row in enumerate(rows)
        ]
        if self._reference is None:
            return rows
        theirs = np.asarray(self._log_prob(self._reference, inputs))
        kl = np.where(written.mask, written.log_prob - theirs, 0.0).sum(axis=1)
        return [{**row, "kl": float(kl[k])} for k, row in enumerate(rows)]


def _number(x: Any) -> float | None:
    """A score as JSON has it: None where a reward gives none."""
    return None if np.isnan(x) else float(x)


def _reference(values: Values, model: _Model) -> tuple[Decoder, Params]:
    """The model from which the KL divergence is measured.

    Raises:
        ConfigError: it is a reward model, or its vocabulary or context is too small.
    """
    folder = model_folder(values["reference"])
    decoder, params = load_model(folder, values["dtype"])
    if "score" in params:
        raise ConfigError(f"{folder} is a reward model; give a language model as --reference")
    for name in ("vocab_size", "max_positions"):
        theirs, ours = getattr(decoder.config, name), getattr(model.decoder.config, name)
        if theirs < ours:
            raise ConfigError(f"{name} of --reference {folder} is {theirs}, less than {ours}")
    return decoder, params
