"""Write a small language model with random weights as a Hugging Face folder.

    python make_model.py model

It takes the place of a model of your own: the folder has the same three files, config.json,
model.safetensors and tokenizer.json.
"""

import sys
from pathlib import Path

import jax

from ppo_jax.rlhf import Decoder, save_model, small
from ppo_jax.rlhf.tokenizer import CharTokenizer


def main(folder):
    """A LLaMA of two layers that reads and writes digits, "+" and "="."""
    tokenizer = CharTokenizer("0123456789+=")
    size = small(tokenizer.vocab_size, max_positions=32, eos_ids=(tokenizer.eos_id,))
    decoder = Decoder(size)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, decoder, decoder.init(jax.random.key(0)))
    tokenizer.save(folder)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
