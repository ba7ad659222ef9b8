"""The rewards of the addition task in plain Python, for environments without ppo_jax.

`tests/test_reasoning_benchmark.py` compares them with those of `ppo_jax.rlhf.tasks`.
"""

import re


def verify(prompt: str, response: str, length: int) -> float:
    """1 if a response is the sum, least significant digit first, otherwise 0.

    Args:
        prompt: text such as "12+34=", with or without the name of the token that begins a text.
        response: text of the response, without special tokens.
        length: maximum number of tokens of a response; one of that many characters has no end.
    """
    summands = re.fullmatch(r"(?:<bos>)?([0-9]+)\+([0-9]+)=", prompt)
    if summands is None:
        raise ValueError(f"{prompt!r} is not a sum")
    if not re.fullmatch("[0-9]+", response) or len(response) >= length:
        return 0.0
    return float(int(response[::-1]) == int(summands[1]) + int(summands[2]))
