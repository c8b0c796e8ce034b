"""What a stage's answers were worth to the weights that it began from: computed once, kept in the cache.

    <cache>/reference/<hash of weights, rows and precision>/log_probs.f32    (tokens of the store,) fp32

A token that is not learnt has 0. Rows are read as training reads them, in the same precision, so that in the
first step policy and reference agree to rounding and DPO's loss is ln 2.
"""

from pathlib import Path
from typing import cast

import numpy as np

from cupola import storage
from cupola.corpus.built import build_once
from cupola.data.batch import Answers
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.evaluate.reading import reading
from cupola.models.stack import LanguageModel
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.parallel.device import Precision
from cupola.paths import cache_root
from cupola.recipe.model import Model

VERSION = 1
"""Raised whenever the same weights would give other figures."""
FILE = "log_probs.f32"


class References:
    """The log-probabilities of answers under one set of weights.

    Args:
        weights: their digest.
        model: as it reads them: other rotary positions find other figures.
        microbatch_tokens: rows are read in as large pieces as training reads them.
    """

    def __init__(self, weights: str, model: Model, precision: Precision, microbatch_tokens: int) -> None:
        self.weights, self.model = weights, model.model_dump(mode="json")
        self.precision, self.microbatch_tokens = precision, microbatch_tokens

    def folder(self, store: TokenStore) -> Path:
        """Where those of a store lie."""
        made_from = {
            "version": VERSION,
            "weights": self.weights,
            "model": self.model,
            "store": store.fingerprint,
            "precision": self.precision,
        }
        return cache_root() / "reference" / storage.digest(made_from)[:32]

    def missing(self, stores: list[TokenStore]) -> bool:
        """Has one of the stores to be read by the model?"""
        try:
            for store in stores:
                storage.verify(self.folder(store))
        except CupolaError:
            return True
        return False

    def make(self, module: LanguageModel, store: TokenStore, display: Display, title: str) -> None:
        """Let the model, which has the weights, read a store, unless that has been done.

        Raises:
            CupolaError: a figure is not finite; the disk is full.
        """
        target = self.folder(store)

        def work() -> None:
            with storage.new_folder(target, {"store": store.fingerprint}) as aside:
                self._read(module, store, display, title).tofile(aside / FILE)

        build_once(target, work, display, lambda: storage.verify(target))

    def load(self, store: TokenStore) -> np.ndarray:
        """(tokens of the store,) fp32, a read-only memory map."""
        folder = self.folder(store)
        storage.verify(folder)
        return np.memmap(folder / FILE, dtype=np.float32, mode="r")

    def _read(self, module: LanguageModel, store: TokenStore, display: Display, title: str) -> np.ndarray:
        found, first = np.zeros(store.length, dtype=np.float32), 0
        with reading(
            module, store, None, self.precision, display, title, batch_tokens=self.microbatch_tokens
        ) as rows:
            for microbatch in rows:
                places = cast(Answers, microbatch.answers).places
                hidden = module.hidden(microbatch.tokens, microbatch.documents)
                log_probs = answer_log_probabilities(module, hidden, microbatch)
                found[first + places.cpu().numpy()] = log_probs.cpu().numpy()
                first += microbatch.tokens.numel()
        if not np.isfinite(found).all():
            raise CupolaError(f"{title}: log-probabilities are not finite; the weights hold NaN, or overflow")
        return found
