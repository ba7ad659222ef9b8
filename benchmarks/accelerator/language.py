"""Tokens per second of PPO on decoders of common shapes with random weights."""

import dataclasses
import statistics
import sys
import time
from typing import Any

import jax

from benchmarks.accelerator import roofline
from benchmarks.accelerator.control import host_transfers, rates
from benchmarks.accelerator.tasks import Context, Measured, NotAvailable, Task
from benchmarks.language import ours
from benchmarks.language.breakdown import flops_of_update
from benchmarks.language.sizes import SIZES, Size
from ppo_jax.rlhf.generate import generate
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.sweep.program import bytes_of, memory_of

# Frozen models, activations and products are bfloat16; trained parameters are float32. The critic
# of the large model is a head on its actor, because a second model of this size would not fit into
# the memory of an 80 GB device.
SHAPES = (
    dataclasses.replace(
        SIZES["gpt2"],
        name="gpt2-124m",
        episodes=256,
        prompt_length=64,
        response_length=128,
        minibatches=4,
        dtype="bfloat16",
    ),
    Size(
        "llama-1.3b",
        family="llama",
        vocab_size=32000,
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        intermediate_size=5504,
        max_positions=2048,
        activation="silu",
        episodes=64,
        prompt_length=64,
        response_length=64,
        epochs=1,
        minibatches=2,
        dtype="bfloat16",
        remat=True,
        shared_critic=True,
    ),
)
# The sizes of both in a smoke run.
TINY = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_size": 32,
    "max_positions": 32,
    "episodes": 8,
    "prompt_length": 2,
    "response_length": 4,
}


# XLA compiles dozens of Triton kernels for each shape of a matrix product and measures them, which
# takes longer than the measurement itself. cuBLAS computes these large products instead.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# Seconds of a round of updates, and the seconds that are left for the rounds after compilation.
ROUND, ROUNDS = 1.5, 15.0


def tasks() -> list[Task]:
    """Two tasks for each model, beginning with the small one: plain attention, and cuDNN's."""
    return [_task(size, attention) for size in SHAPES for attention in ("plain", "cudnn")]


def _task(size: Size, attention: str) -> Task:
    name = size.name if attention == "plain" else f"{size.name}-{attention}"

    def run(context: Context) -> Measured:
        chosen = dataclasses.replace(size, name=name, attention=attention)
        return measure(tiny(chosen) if context.smoke else chosen, context)

    return Task("language", name, run, patience=150.0, least=40.0)


def tiny(size: Size) -> Size:
    """The size of a smoke run. Without a GPU, XLA's implementation of the same function of JAX
    takes the place of cuDNN's."""
    attention = size.attention
    if attention == "cudnn" and jax.default_backend() != "gpu":
        attention = "xla"
    return dataclasses.replace(size, **TINY, attention=attention)


def measure(size: Size, context: Context) -> Measured:
    """Measure the speed of training and, if there is time to compile it alone, of generation.

    Raises:
        NotAvailable: the program needs more memory than the device has, or the time is up.
    """
    say = lambda line: print(f"{size.name}: {line}", file=sys.stderr, flush=True)
    options = GPU_OPTIONS if jax.default_backend() == "gpu" else {}
    program = ours.Program(size, options, say)
    started = time.perf_counter()
    left = lambda: context.seconds - (time.perf_counter() - started)
    program.compile()
    compiled = time.perf_counter() - started
    needed, there = bytes_of(program.chunk), memory_of(jax.devices())
    if needed > there:
        raise NotAvailable(f"needs {needed / 1e9:.0f} GB, and the device has {there / 1e9:.0f} GB")
    if left() < ROUNDS and not context.smoke:
        raise NotAvailable(f"no time left after compilation, which took {compiled:.0f} s")
    rounds = rates(program.run, 0.05 if context.smoke else ROUND, first=1)
    updates = statistics.median(rounds)
    say(f"{updates:.3g} updates/s; {left():.0f} s left")
    # Generation is about a third of the program; its compilation must not cost the row.
    writing = generation_seconds(program) if context.smoke or left() > compiled / 2 + 10 else None
    flops = flops_of_update(size, program.state.learner.params)
    achieved = flops * updates / 1e12
    row = {
        "value": round(updates * size.tokens_per_update, 1),
        "unit": "tokens/s",
        "low": round(min(rounds) * size.tokens_per_update, 1),
        "high": round(max(rounds) * size.tokens_per_update, 1),
        "compile_seconds": round(compiled, 2),
        "program_mb": round(needed / 2**20, 1),
        "host_transfers": host_transfers(program.chunk),
        "precision": "bfloat16" if size.dtype == "bfloat16" else "default",
        "tflops_per_second": roofline.significant(achieved),
        "generation_share": "" if writing is None else round(writing * updates, 3),
        "note": f"{size.episodes} x ({size.prompt_length} + {size.response_length}) tokens, "
        f"{size.dtype}, attention: {size.attention}",
    }
    if context.ceilings:
        row["of_matmul"] = roofline.significant(achieved / context.ceilings[row["precision"]])
    return row


def generation_seconds(program: ours.Program) -> float:
    """Seconds for generating the responses of one update."""
    size, decoder = program.size, ours.decoder_of(program.size)

    def write(key: jax.Array, params: Any, prompts: Any, mask: Any) -> Any:
        return generate(
            key,
            params,
            prompts,
            mask,
            decoder=decoder,
            max_new_tokens=size.response_length,
            eos_id=size.eos_id,
        )

    params = program.state.learner.params["actor"]
    prompts, mask = (program.frozen[n][: size.episodes] for n in ("prompts", "prompt_mask"))
    arguments = (jax.random.key(2), params, prompts, mask)
    compiled = jax.jit(write).lower(*arguments).compile(compiler_options() | program.options)
    jax.block_until_ready(compiled(*arguments))
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
