"""How good a model is: bits per byte of held-out text, beside what an ordinary compressor makes of it; what
it finds in a long context; how many questions it answers rightly."""

from cupola.evaluate.answers import answer_bits
from cupola.evaluate.bits import BitsPerByte, bits_per_byte
from cupola.evaluate.compressors import xz_bits
from cupola.evaluate.heldout import choose_texts, combined, heldout_bits
from cupola.evaluate.long_context import LossByPosition, loss_by_position, probe, refuse_beyond_positions
from cupola.evaluate.preferences import Ranking, rank_pairs
from cupola.evaluate.ratings import Rating, read_ratings
from cupola.evaluate.scores import PairScores, score_pairs

__all__ = [
    "BitsPerByte",
    "LossByPosition",
    "PairScores",
    "Ranking",
    "Rating",
    "answer_bits",
    "bits_per_byte",
    "choose_texts",
    "combined",
    "heldout_bits",
    "loss_by_position",
    "probe",
    "rank_pairs",
    "read_ratings",
    "refuse_beyond_positions",
    "score_pairs",
    "xz_bits",
]
