"""What a stage's answers were worth to the weights that it began from: computed once, kept in the cache.

    <cache>/reference/<hash of weights, rows and precision>/log_probs.f32    (tokens of the store,) fp32

A token that is not learnt has 0. Rows are read as training reads them, in the same precision, so that in the
first step policy and reference agree to rounding and DPO's loss is ln 2.
"""

from pathlib import Path

import numpy as np
import torch

from cupola import storage
from cupola.corpus.built import build_once
from cupola.data.loader import packed_rows
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.parallel.device import Precision, autocast
from cupola.paths import cache_root

VERSION = 1
"""Raised whenever the same weights would give other figures."""
FILE = "log_probs.f32"


class References:
    """The log-probabilities of answers under one set of weights.

    Args:
        weights: their digest.
        microbatch_tokens: rows are read in as large pieces as training reads them.
    """

    def __init__(self, weights: str, precision: Precision, microbatch_tokens: int) -> None:
        self.weights, self.precision, self.microbatch_tokens = weights, precision, microbatch_tokens

    def folder(self, store: TokenStore) -> Path:
        """Where those of a store lie."""
        made_from = {
            "version": VERSION,
            "weights": self.weights,
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

    @torch.no_grad()
    def _read(self, module: LanguageModel, store: TokenStore, display: Display, title: str) -> np.ndarray:
        length = store.row_length
        assert length is not None
        device = next(module.parameters()).device
        found = np.zeros(store.length, dtype=np.float32)
        at_once = max(1, self.microbatch_tokens // length)
        with (
            in_eval_mode(module),
            display.task(title, store.length, "tokens") as task,
            autocast(device, self.precision),
        ):
            for first in range(0, store.documents, at_once):
                rows = packed_rows(store, first, min(first + at_once, store.documents)).to(device)
                assert rows.answers is not None
                places = rows.answers.places
                hidden = module.hidden(rows.tokens, rows.documents)
                log_probs = answer_log_probabilities(module, hidden, rows)
                found[first * length + places.cpu().numpy()] = log_probs.cpu().numpy()
                task.advance(rows.tokens.numel())
        if not np.isfinite(found).all():
            raise CupolaError(f"{title}: log-probabilities are not finite; the weights hold NaN, or overflow")
        return found
