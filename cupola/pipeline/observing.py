"""What is looked at in the course of a stage: held-out bits per byte and samples, a line each and a record.

The held-out text in the course of training is a fixed choice of each source, so that figures can be
compared from one evaluation to the next; at the end of the stage all of it is read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cupola import json_lines
from cupola.display import Display
from cupola.evaluate import choose_texts, combined, heldout_bits
from cupola.generate import continue_texts
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision
from cupola.pipeline.folder import StageFolder
from cupola.pipeline.prepare import Prepared, heldout_texts
from cupola.recipe.schema import Evaluate

TEMPERATURE = 0.8  # of samples


class Observer:
    """Evaluates and samples one stage's model.

    Args:
        sequence_length: the context that the held-out text is read with.
    """

    def __init__(
        self,
        folder: StageFolder,
        settings: Evaluate,
        prepared: Prepared,
        module: LanguageModel,
        sequence_length: int,
        precision: Precision,
        seed: int,
        display: Display,
    ) -> None:
        self.folder, self.settings, self.prepared, self.module = folder, settings, prepared, module
        self.sequence_length = sequence_length
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
        total = combined(found)
        result = {
            "step": step,
            "tokens": tokens,
            "whole": whole,
            "bits_per_byte": total.facts()["bits_per_byte"],
            "bytes": total.bytes,
            "sources": {source: bits.facts() for source, bits in found.items()},
        }
        json_lines.append(self.folder.evaluations, result)
        by_source = ", ".join(f"{source} {bits.bits_per_byte:.3f}" for source, bits in found.items())
        self.display.say(f"  step {step}: held out {total.bits_per_byte:.3f} bits per byte ({by_source})")
        return result

    def _sample(self, step: int, tokens: int) -> None:
        continued = continue_texts(
            self.module,
            self.prepared.tokenizer,
            self.settings.prompts,
            self.settings.sample_tokens,
            self.precision,
            temperature=TEMPERATURE,
            seed=self.seed,
        )
        for done in continued:
            sample = {"step": step, "tokens": tokens, "prompt": done.prompt, "text": done.text}
            json_lines.append(self.folder.samples, sample)
        for done in continued[:1]:
            self.display.say(f"  sample: {' '.join((done.prompt + done.text).split())[:100]}")
