"""What is looked at in the course of a stage: held-out bits per byte and samples, a line each and a record.

A stage that learns from conversations is judged by the answers in those that are held out, and its samples
are answers; text is evaluated as well, since what a model has learnt before it may forget.

The held-out text in the course of training is a fixed choice of each source, so that figures can be
compared from one evaluation to the next; at the end of the stage all of it is read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cupola import json_lines
from cupola.characters import shown
from cupola.display import Display
from cupola.evaluate import BitsPerByte, choose_texts, combined, heldout_bits
from cupola.generate import answer, continue_texts
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision
from cupola.pipeline.folder import StageFolder
from cupola.pipeline.judging import Judge, Subject
from cupola.pipeline.prepare import Prepared, heldout_texts
from cupola.recipe.schema import Evaluate, Stage

TEMPERATURE = 0.8  # of samples
QUESTIONS = 3
"""Held-out conversations of each source whose beginning is answered."""
SAMPLE_SHOWN = 100


class Observer:
    """Evaluates and samples one stage's model.

    The context that the held-out text is read with is the stage's longest row.
    """

    def __init__(
        self,
        folder: StageFolder,
        settings: Evaluate,
        prepared: Prepared,
        module: LanguageModel,
        stage: Stage,
        judge: Judge,
        precision: Precision,
        seed: int,
        display: Display,
    ) -> None:
        self.folder, self.settings, self.prepared, self.module = folder, settings, prepared, module
        self.sequence_length = stage.longest_row()
        self.judge = judge
        self.precision, self.seed, self.display = precision, seed, display
        self._chosen: dict[str, list[str]] = {}

    def look(self, step: int, tokens: int) -> dict[str, Any]:
        """Evaluate on the fixed choice of held-out text and write samples."""
        if not self._chosen:
            tokenizer, limit = self.prepared.tokenizer, self.settings.tokens
            self._chosen = {
                source: choose_texts(texts, tokenizer, limit) for source, texts in self._heldout().items()
            }
        result = self._evaluate(step, tokens, self._chosen, whole=False)
        self._sample(step, tokens)
        return result

    def finish(self, step: int, tokens: int) -> dict[str, Any]:
        """Evaluate on all the held-out text and write samples; what the stage is judged by."""
        result = self._evaluate(step, tokens, self._heldout(), whole=True)
        self._sample(step, tokens)
        return result

    def _heldout(self) -> dict[str, Iterable[str]]:
        return {source: heldout_texts(self.prepared.gathered[source]) for source in self.prepared.stores}

    def _evaluate(
        self, step: int, tokens: int, texts: Mapping[str, Iterable[str]], whole: bool
    ) -> dict[str, Any]:
        found = heldout_bits(
            self.module,
            self.prepared.tokenizer,
            texts,
            self.sequence_length,
            precision=self.precision,
            display=self.display if whole else None,
        )
        limit, display = (None, self.display) if whole else (self.settings.tokens, None)
        subject = Subject(self.module, self.prepared.tokenizer, self.precision, limit, display)
        judged = self.judge.judge(subject)
        total = combined(judged.bits or found)
        sources = {**found, **judged.bits}
        result = {
            "step": step,
            "tokens": tokens,
            "whole": whole,
            "bits_per_byte": total.facts()["bits_per_byte"],
            "bytes": total.bytes,
            "sources": {source: bits.facts() for source, bits in sources.items()},
            "metrics": judged.metrics,
        }
        json_lines.append(self.folder.evaluations, result)
        by_source = ", ".join(f"{source} {_shown(bits)}" for source, bits in sources.items())
        what = "held-out answers" if judged.bits else "held out"
        more = f"; {judged.said}" if judged.said else ""
        self.display.say(f"  step {step}: {what} {_shown(total)} bits per byte ({by_source}){more}")
        return result

    def _sample(self, step: int, tokens: int) -> None:
        if not self.judge.writes:
            return
        samples = self._answered() if self.judge.stores else self._continued()
        for sample in samples:
            json_lines.append(self.folder.samples, {"step": step, "tokens": tokens, **sample})
        for sample in samples[:1]:
            said = " ".join(shown(f"{sample['prompt']} {sample['text']}").split())
            self.display.say(f"  sample: {said[:SAMPLE_SHOWN]}")

    def _continued(self) -> list[dict[str, str]]:
        continued = continue_texts(
            self.module,
            self.prepared.tokenizer,
            self.settings.prompts,
            self.settings.sample_tokens,
            self.precision,
            temperature=TEMPERATURE,
            seed=self.seed,
        )
        return [{"prompt": done.prompt, "text": done.text} for done in continued]

    def _answered(self) -> list[dict[str, str]]:
        """Answers to what the first held-out conversations of each source begin with."""
        opened = [
            opening
            for source in self.judge.stores
            for opening in self.prepared.heldout_openings(source, QUESTIONS)
        ]
        answered = answer(
            self.module,
            self.prepared.tokenizer,
            self.prepared.template,
            opened,
            self.settings.sample_tokens,
            self.precision,
            temperature=TEMPERATURE,
            seed=self.seed,
        )
        return [
            {"prompt": messages[-1].content, "text": done.text}
            for messages, done in zip(opened, answered, strict=True)
        ]


def _shown(bits: BitsPerByte) -> str:
    return f"{bits.bits_per_byte:.3f}" if bits.bytes else "–"
