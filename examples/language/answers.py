"""A rule as the reward: compare each response with the column "answer" of sums.jsonl."""

import json
from pathlib import Path

DATA = Path(__file__).with_name("sums.jsonl")
RECORDS = [json.loads(line) for line in DATA.read_text().splitlines()]
ANSWERS = {record["prompt"]: record["answer"] for record in RECORDS}


def score(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for the right answer, less than 0.5 for another number, 0 for anything else."""
    return [_one(ANSWERS[p], r) for p, r in zip(prompts, responses, strict=True)]


def _one(answer: str, response: str) -> float:
    if response == answer:
        return 1.0
    if not response.isdigit():
        return 0.0
    return max(0.0, 0.5 - 0.05 * abs(int(response) - int(answer)))
