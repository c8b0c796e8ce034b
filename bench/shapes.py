"""The shapes that are measured, and what a step of one costs on paper."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder-only Transformer and its batch; every contender builds the nearest that it can."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    sequence: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.sequence * self.batch

    @property
    def gated_feedforward(self) -> int:
        """Hidden width of SwiGLU: 8/3 of the width, rounded up to a multiple of 64; three matrices of it
        hold what two of 4 times the width hold."""
        return -(-8 * self.width // 3 // 64) * 64

    @property
    def flops(self) -> float:
        """FLOPs of one training step (forward and twice that backward): 6 for each weight of a matrix
        (12 width^2 a layer, and the head) and each token, and attention's two products, of which causal
        masking leaves half."""
        matrices = self.layers * 12 * self.width**2 + self.vocabulary * self.width
        attention = self.layers * self.width * self.sequence
        return 6.0 * self.tokens * (matrices + attention)


SHAPES = {
    "S": Shape(layers=6, width=384, heads=6, vocabulary=8192, sequence=256, batch=8),
    "M": Shape(layers=12, width=768, heads=12, vocabulary=32768, sequence=1024, batch=2),
}
