"""The reward that both sides give: one function, as Cupola and TRL call it alike."""

from typing import Any


def overlap(prompts: list[Any], completions: list[str], answers: list[str], **rest: Any) -> list[float]:
    """Share of the words of the corpus's answer that an answer says."""
    found = []
    for completion, answer in zip(completions, answers, strict=True):
        words = set(answer.split())
        found.append(len(words & set(completion.split())) / len(words))
    return found
