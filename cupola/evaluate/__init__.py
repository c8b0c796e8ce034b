"""How good a model is: bits per byte of held-out text, beside what an ordinary compressor makes of it."""

from cupola.evaluate.answers import answer_bits
from cupola.evaluate.bits import BitsPerByte, bits_per_byte
from cupola.evaluate.compressors import xz_bits
from cupola.evaluate.heldout import choose_texts, combined, heldout_bits
from cupola.evaluate.preferences import Ranking, rank_pairs

__all__ = [
    "BitsPerByte",
    "Ranking",
    "answer_bits",
    "bits_per_byte",
    "choose_texts",
    "combined",
    "heldout_bits",
    "rank_pairs",
    "xz_bits",
]
