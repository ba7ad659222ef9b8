"""The contestant ppo_jax: updates of `ppo_jax.rlhf.train`, or gradient steps of
`ppo_jax.rlhf.supervised`, compiled as one loop."""

import functools
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.language.sizes import Size
from ppo_jax.rlhf import algorithms, supervised, train
from ppo_jax.rlhf.decoder import Decoder, DecoderConfig
from ppo_jax.rlhf.scoring import from_model
from ppo_jax.runs.chunk import compiler_options

PACKAGES = ("flax", "optax")
# Number of prompts in the data, more than one update uses.
PROMPTS = 2048


def decoder_of(size: Size) -> Decoder:
    """The architecture of all four models."""
    return Decoder(
        DecoderConfig(
            family=size.family,
            vocab_size=size.vocab_size,
            hidden_size=size.hidden_size,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            num_kv_heads=size.num_kv_heads,
            head_dim=size.hidden_size // size.num_heads,
            intermediate_size=size.intermediate_size,
            max_positions=size.max_positions,
            activation=size.activation,
            tied=size.family == "gpt2",
            eos_ids=(size.eos_id,),
            dtype=size.dtype,
            remat=size.remat,
            attention=size.attention,
        )
    )


def build(size: Size) -> tuple[train.LanguageProgram, train.Config, algorithms.Config]:
    """Four models with random weights, and the program that trains actor and critic."""
    decoder = decoder_of(size)
    actor_key, critic_key, reward_key, key = jax.random.split(jax.random.key(0), 4)
    params = jax.jit(decoder.init)(actor_key)
    score = decoder.with_score(jax.jit(decoder.init)(reward_key), reward_key)
    # Under jit the cast is one program; otherwise each shape of an array is compiled separately.
    cast = jax.jit(functools.partial(jax.tree.map, lambda x: x.astype(size.dtype)))
    frozen = (lambda params: params) if size.dtype == "float32" else cast
    models = train.Models(
        actor=decoder,
        actor_params=params,
        critic="shared" if size.shared_critic else decoder,
        critic_params=train.fresh_score(decoder)
        if size.shared_critic
        else decoder.with_score(score, critic_key),
        reference_params=frozen(params),
        reward=from_model(decoder, frozen(score)),
    )
    config = train.Config(
        num_prompts=size.episodes,
        max_new_tokens=size.response_length,
        kl_coef=size.kl_coef,
        missing_eos_penalty=size.missing_eos_penalty,
    )
    hyper = algorithms.Config(
        learning_rate=size.learning_rate,
        anneal=False,
        epochs=size.epochs,
        minibatches=size.minibatches,
        micro_batches=size.micro_batches,
        gae_lambda=size.gae_lambda,
        clip_eps=size.clip_eps,
        value_clip_eps=size.clip_eps,
        value_coef=size.value_coef,
    )
    prompts = jax.random.randint(key, (PROMPTS, size.prompt_length), 0, size.vocab_size - 1)
    mask = jnp.ones(prompts.shape, jnp.int32)
    program = train.build(models, prompts, mask, config, hyper=hyper, eos_id=size.eos_id)
    return program, config, hyper


class Program:
    """A training run that continues from round to round."""

    def __init__(
        self,
        size: Size,
        options: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Store the arguments; `compile` does the rest.

        Args:
            size: models and update.
            options: additional options of the compiler.
            say: function that prints a line of text, called after each part of `compile`.
        """
        self.size, self.options, self.say = size, dict(options or {}), say

    def compile(self) -> None:
        """Build the models and the initial state, and compile the program."""
        started = time.perf_counter()
        update, state, self.frozen = self._build()
        self.state = jax.block_until_ready(state)
        self.say(f"initial models after {time.perf_counter() - started:.1f} s")

        def chunk(state: Any, frozen: Any, count: jax.Array) -> tuple[Any, Any]:
            # With jit, the step is traced once and not again inside the loop.
            step = jax.jit(update)
            metrics = jax.eval_shape(step, state, frozen)[1]
            empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), metrics)
            body = lambda _, carry: step(carry[0], frozen)
            return jax.lax.fori_loop(0, count, body, (state, empty))

        lowered = jax.jit(chunk, donate_argnums=0).lower(self.state, self.frozen, jnp.int32(1))
        self.say(f"program traced after {time.perf_counter() - started:.1f} s")
        self.chunk = lowered.compile(compiler_options() | self.options)
        self.say(f"program compiled after {time.perf_counter() - started:.1f} s")

    def _build(self) -> tuple[Any, Any, Any]:
        """(step, initial state, frozen arrays)."""
        program, *_ = build(self.size)
        # Not under jit: the initial weights would become constants of the compiled program.
        return program.step, program.init(jax.random.key(1)), program.frozen

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because the number of updates is an argument of the program."""

    def run(self, updates: int) -> int:
        """Train for a number of updates, and copy the metrics of the last one to the host."""
        self.state, metrics = self.chunk(self.state, self.frozen, jnp.int32(updates))
        jax.device_get(metrics)
        return updates


class Supervised(Program):
    """Gradient steps on random texts, or pairs of texts, as of `ppo_jax.rlhf.supervised`."""

    def _build(self) -> tuple[Any, Any, Any]:
        """(step, initial state, frozen arrays)."""
        size, decoder = self.size, decoder_of(self.size)
        params = decoder.init(jax.random.key(0))
        rows, loss = _texts(size), supervised.make_text_loss(decoder)
        if size.task == "reward":
            params = decoder.with_score(params, jax.random.key(1))
            loss = supervised.make_preference_loss(decoder)
        config = supervised.Config(
            learning_rate=size.learning_rate,
            batch_size=size.episodes,
            updates=10**6,
            micro_batches=size.micro_batches,
        )
        step = supervised.make_step(loss, config)
        state = supervised.init(jax.random.key(2), params, config)
        return lambda state, frozen: step(state, frozen)[:2], state, {"rows": rows}


def _texts(size: Size) -> Any:
    """Random texts without padding, or pairs of them."""
    shape = (2, PROMPTS, size.text_length)
    tokens = jax.random.randint(jax.random.key(3), shape, 0, size.vocab_size - 1)
    mask = jnp.ones(shape[1:], jnp.int32)
    if size.task == "reward":
        pair = ((tokens[0], mask), (tokens[1], mask))
        return supervised.preference_rows(*pair, margin=jnp.zeros(PROMPTS))
    return supervised.text_rows(tokens[0], mask, mask)


def prepare(size: Size, options: Namespace) -> Program:
    """The program of ppo_jax."""
    del options
    return Program(size) if size.task == "ppo" else Supervised(size)
