"""Programs of language models on eight CPU devices, with the results as JSON.

This is a separate program, because the number of devices must be set before JAX is initialised:

    python several_language_devices.py NAME [FOLDER]

NAME is quick, flops, groups, supervised, function or memory; memory needs the folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ppo_jax.rlhf import algorithms, sharding, stages, supervised, train  # noqa: E402
from ppo_jax.rlhf.decoder import Decoder, small  # noqa: E402
from ppo_jax.rlhf.hf_io import load_model, save_model  # noqa: E402
from ppo_jax.rlhf.scoring import from_function, from_model  # noqa: E402
from ppo_jax.rlhf.tokenizer import CharTokenizer  # noqa: E402
from ppo_jax.rollout import sequences  # noqa: E402
from ppo_jax.runs.checkpoint import Checkpoints  # noqa: E402

OPTIONS = {"xla_backend_optimization_level": "0"}
WORDS = ("able", "about", "area", "code", "data", "eval", "idea", "none")


def mesh(data: int, model: int = 1) -> Any:
    """A mesh; None for one device."""
    return None if data * model == 1 else sharding.make_mesh(data, model)


def program(devices: Any, algorithm: str = "ppo", micro_batches: int = 1, **values: Any) -> Any:
    """A program of 128 responses by a small model, on the devices of a mesh."""
    decoder = Decoder(small(28, 32, 1, 4, num_kv_heads=4))
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.1 + jnp.zeros(x.shape, x.dtype), params)
    scored = decoder.with_score(params)
    critic = (decoder, scored) if algorithm == "ppo" else ("none", {})
    models = train.Models(decoder, params, *critic, params, from_model(decoder, scored))
    prompts = jnp.asarray([[1, 2], [1, 3], [1, 4], [1, 5]])
    return train.build(
        models,
        prompts,
        jnp.ones_like(prompts),
        train.Config(algorithm=algorithm, num_prompts=128, max_new_tokens=12, **values),
        hyper=algorithms.Config(micro_batches=micro_batches),
        eos_id=0,
        mesh=devices,
    )


def flops(lowered: Any) -> float:
    """Floating-point operations of the program of one device, by the compiler's cost analysis."""
    return lowered.compile(OPTIONS).cost_analysis()["flops"]


def lowered_update(built: Any, state: Any) -> Any:
    """The program of an update, before compilation."""
    shapes = jax.eval_shape(built.collect, state.key, state.learner.params, state.rollout,
                            built.frozen)[1]  # fmt: skip
    estimate = built.algorithm(built.frozen).estimate
    batch = jax.eval_shape(lambda trajectory: sequences(estimate(trajectory)), shapes)
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    update = lambda key, learner, batch, frozen: built.algorithm(frozen).update(key, learner, batch)
    return jax.jit(update).lower(state.key, state.learner, batch, built.frozen)


def lowered_collect(built: Any, state: Any) -> Any:
    """The program of a rollout, before compilation."""
    parts = state.key, state.learner.params, state.rollout, built.frozen
    return jax.jit(built.collect).lower(*parts)


def quick() -> list[float]:
    """Operations of an update with micro-batches on two devices: before and after the compiler
    distributes them."""
    built = program(mesh(2), "reinforce", micro_batches=2)
    state = sharding.shard(built.init(jax.random.key(0)), built.settings.mesh)
    lowered = lowered_update(built, state)
    return [lowered.cost_analysis()["flops"], flops(lowered)]


def all_flops() -> dict[str, list[float]]:
    """Operations of rollout and update, whole and in parts, by number of devices."""
    found: dict[str, list[float]] = {}
    for number in (1, 2, 4, 8):
        for micro_batches, rollout_batch in ((1, 128), (2, 32)):
            built = program(mesh(number), micro_batches=micro_batches, rollout_batch=rollout_batch)
            state = sharding.shard(built.init(jax.random.key(0)), built.settings.mesh)
            found[f"{number} devices, {micro_batches} micro-batches"] = [
                flops(lowered_collect(built, state)), flops(lowered_update(built, state))
            ]  # fmt: skip
    return found


def of_groups() -> dict[str, list[float]]:
    """Operations of a rollout with groups, and its gathered arrays, by number of devices."""
    found = {}
    for number in (1, 4):
        built = program(mesh(number), "grpo", group_size=4)
        state = sharding.shard(built.init(jax.random.key(0)), built.settings.mesh)
        compiled = lowered_collect(built, state).compile(OPTIONS)
        moved = compiled.as_text().count(" all-gather(")
        found[str(number)] = [compiled.cost_analysis()["flops"], moved]
    return found


def of_supervised() -> dict[str, float]:
    """Operations of a step of fine-tuning with micro-batches, by number of devices."""
    decoder, found = Decoder(small(28, 32, 1, 4)), {}
    params = decoder.init(jax.random.key(0))
    tokens = np.arange(64 * 16).reshape(64, 16) % 28
    rows = supervised.text_rows(tokens, np.ones_like(tokens), np.ones_like(tokens))
    config = supervised.Config(batch_size=64, micro_batches=2)
    for number in (1, 4):
        state = supervised.init(jax.random.key(0), params, config)
        step = supervised.make_step(supervised.make_text_loss(decoder), config, mesh(number))
        placed = sharding.shard((state, {"rows": rows}), mesh(number))
        found[str(number)] = flops(jax.jit(step).lower(*placed))
    return found


def bytes_by_device() -> list[int]:
    """Bytes of all live arrays on each device; several arrays may share a buffer."""
    buffers = {}
    for array in jax.live_arrays():
        if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            for shard in array.addressable_shards:
                buffers[shard.data.unsafe_buffer_pointer()] = (shard.device, shard.data.nbytes)
    found = dict.fromkeys(jax.devices(), 0)
    for device, size in buffers.values():
        found[device] += size
    return [*found.values()]


def memory(folder: Path) -> dict[str, Any]:
    """Live bytes of each device after a model is read, initialised and restored."""
    tokenizer = CharTokenizer("".join(WORDS))
    sizes = small(tokenizer.vocab_size - tokenizer.vocab_size % 4, 128, 2, 4, num_kv_heads=4)
    decoder = Decoder(sizes)
    params = decoder.init(jax.random.key(0))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    save_model(folder / "model", decoder, params)
    del params
    devices, found = mesh(1, 4), {"bytes": size, "nothing": bytes_by_device()}
    decoder, params = load_model(folder / "model", mesh=devices)
    found["read"] = bytes_by_device()
    config = supervised.Config(updates=2, batch_size=4)
    tokens = np.ones((4, 4), np.int32)
    job = stages.fine_tuning(
        decoder, params, supervised.text_rows(tokens, tokens, tokens), config, seed=0,
        language=stages.Language(tokenizer), mesh=devices,
    )  # fmt: skip
    state = job.placed(job.init())
    found["initialised"] = bytes_by_device()
    kept = Checkpoints(folder.absolute() / "checkpoints", {})
    kept.save(1, state)
    whole = [np.asarray(x) for x in jax.tree.leaves(state.learner)]
    del state
    restored = kept.restore(job.shapes)[1]
    found["restored"] = bytes_by_device()
    same = [
        np.array_equal(a, b) for a, b in zip(whole, jax.tree.leaves(restored.learner), strict=True)
    ]
    found["same"] = all(same)
    step = jax.jit(job.step, donate_argnums=0)
    for _ in range(2):
        restored = step(restored, job.frozen, ())[0]
    found["trained"] = bytes_by_device()
    return found


def with_a_function() -> dict[str, Any]:
    """Scores of a Python function on a mesh, and the numbers of responses of its calls."""
    decoder, calls = Decoder(small(12, 16, 1, 2)), []

    def score(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(len(responses))
        return [float(len(response)) for response in responses]

    params = decoder.init(jax.random.key(0))
    tokenizer = CharTokenizer("abcdefghi")
    models = train.Models(decoder, params, "none", {}, params, ())
    prompts, found = jnp.asarray([[1, 4], [1, 5]]), {}
    for number in (1, 4):
        models = models._replace(reward=from_function(score, tokenizer, mesh=mesh(number)))
        built = train.build(
            models, prompts, jnp.ones_like(prompts),
            train.Config(algorithm="reinforce", num_prompts=16, max_new_tokens=4, rollout_batch=8),
            hyper=algorithms.Config(), eos_id=0, mesh=mesh(number),
        )  # fmt: skip
        state = sharding.shard(built.init(jax.random.key(0)), built.settings.mesh)
        collect = jax.jit(built.collect)
        for _ in range(3):
            rollout = collect(state.key, state.learner.params, state.rollout, built.frozen)[0]
        found[str(number)] = float(rollout.metrics["score"])
    return found | {"calls": calls}


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    work = {"quick": quick, "flops": all_flops, "groups": of_groups, "supervised": of_supervised,
            "memory": lambda: memory(Path(rest[0])), "function": with_a_function}  # fmt: skip
    print(json.dumps(work[name]()))
