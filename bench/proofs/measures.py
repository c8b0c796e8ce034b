"""What the proofs measure of a finished stage."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.proofs import garden
from cupola.chat.conversation import Conversation, from_json
from cupola.chat.encoding import encode
from cupola.chat.preference import from_json as pair_of
from cupola.corpus.documents import documents
from cupola.corpus.gathering import gather
from cupola.display import ConsoleDisplay, Display
from cupola.generate import answer
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import OpenRun, open_run

ANSWERS = 400
LENGTHS = (256, 1024, 2048, 4096)
"""Tokens: as in the rows of the first stage, on the way, as in those of the second, and twice as many."""
LONGEST = 40
"""Tokens of an answer of the garden, as in its recipe."""


def cupola(*arguments: str) -> dict[str, Any]:
    """What `cupola ... --json` prints."""
    command = [sys.executable, "-m", "cupola", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cupola {' '.join(arguments)}: ended with {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def sums(run: Path, stage: str) -> dict[str, float]:
    """Of held-out sums, how many are right: greedily, sampled, and at least one of eight samples."""
    asked = ("--tasks", "sums", "--samples", str(ANSWERS), "--attempts", "8", "--pass-at", "8")
    found = cupola("eval", str(run), "--stage", stage, *asked)["tasks"]["sums"]
    return {
        "greedy": found["accuracy"],
        "sampled": found["sampled"]["accuracy"],
        "pass@8": found["pass_at"]["8"]["accuracy"],
    }


def bits(run: Path, stage: str) -> dict[str, float]:
    """Held-out bits per byte of each source, as the stage's end found them."""
    (found,) = [each for each in RunFolder(run).stages() if each.name == stage]
    return {name: figure["bits_per_byte"] for name, figure in found.facts()["heldout"].items()}


def reach(run: Path, stage: str) -> dict[str, float]:
    """How often a pass key and the right one of four needles are found in texts of some lengths, and the loss
    (nats a token) of texts that repeat themselves, at the positions up to each."""
    asked = [option for length in LENGTHS for option in ("--length", str(length))]
    kinds = ("--probe", "passkey", "--probe", "needle")
    probed = cupola("eval", str(run), "--stage", stage, *kinds, *asked, "--samples", "10")["probes"]
    figures = {}
    for kind, cells in probed.items():
        for length in LENGTHS:
            found = [cell["accuracy"] for cell in cells if cell["length"] == length]
            figures[f"{kind} {length:,}"] = sum(found) / len(found)
    by_position = ("--by-position", "--length", str(LENGTHS[-1]))
    buckets = cupola("eval", str(run), "--stage", stage, *by_position)["buckets"]
    return figures | {f"loss {b['last']:,}": b["loss"] for b in buckets if b["last"] in LENGTHS}


@dataclass
class Taste:
    """How the answers of a stage compare with those of the stage that it came from.

    Attributes:
        base: the stage that the others came from.
    """

    base: str
    display: Display = field(default_factory=ConsoleDisplay)
    _before: dict[Path, tuple[list[list[float]], list[float]]] = field(default_factory=dict)

    def __call__(self, run: Path, stage: str) -> dict[str, float]:
        """Of held-out questions the mean true score of sampled answers, and the share of them that beat those
        of `base` (a tie is a half); of held-out pairs the share whose better half gained more on `base`."""
        if run not in self._before:
            self._before[run] = self._of(open_run(run, self.display, self.base), seed=1)
        before_pairs, before = self._before[run]
        pairs, scores = self._of(open_run(run, self.display, stage), seed=0)
        wins = [(new > old) + 0.5 * (new == old) for new, old in zip(scores, before, strict=True)]
        gains = [(new[0] - old[0]) - (new[1] - old[1]) for new, old in zip(pairs, before_pairs, strict=True)]
        right = [(gain > 0) + 0.5 * (gain == 0) for gain in gains]
        return {
            "true score": sum(scores) / len(scores),
            "win rate": sum(wins) / len(wins),
            "preference accuracy": sum(right) / len(right),
        }

    def _of(self, opened: OpenRun, seed: int) -> tuple[list[list[float]], list[float]]:
        """The log-probabilities of held-out pairs' answers, and the true scores of answers of its own."""
        pairs = []
        for document in _heldout(opened, "pairs", self.display):
            pairs.append([_log_probability(opened, talk) for talk in pair_of(document).conversations()])
        questions = [from_json(text).messages[:1] for text in _heldout(opened, "talks", self.display)]
        questions = (questions * (ANSWERS // len(questions) + 1))[:ANSWERS]
        said = answer(
            opened.module, opened.tokenizer, opened.template, questions, LONGEST, temperature=1.0, seed=seed
        )
        return pairs, [garden.score(one.text) for one in said]


def _heldout(opened: OpenRun, corpus: str, display: Display) -> list[str]:
    gathered = gather(corpus, opened.recipe.corpora[corpus], display)
    return [document.text for document in documents(gathered.path, "heldout")]


@torch.no_grad()
def _log_probability(opened: OpenRun, talk: Conversation) -> float:
    """Of the answer, read alone in a row of its own."""
    encoded = encode(opened.template, opened.tokenizer, talk)
    ids = torch.tensor([opened.tokenizer.delimiter, *encoded.ids.tolist()])
    logits = opened.module.logits(opened.module.hidden(ids[None]))[0, :-1].float()
    found = logits.log_softmax(-1).gather(1, ids[1:, None].long())[:, 0]
    return float(found[torch.from_numpy(encoded.mask)].sum())
