"""A tokenizer of one token a byte and a tiny causal model, for tests of scoring."""

import numpy as np
import torch

DELIMITER = 256
VOCABULARY = 260


class ByteTokenizer:
    """One token a byte; enough of a tokenizer for scoring."""

    delimiter = DELIMITER

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        return bytes(int(number) for number in ids).decode("utf-8", errors="replace")


class TinyCausalModel(torch.nn.Module):
    """Attention over learned positions, so that both context and place in the window matter."""

    def __init__(self, longest: int, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding = torch.nn.Embedding(VOCABULARY, width)
        self.positions = torch.nn.Embedding(longest, width)
        self.layer = torch.nn.TransformerEncoderLayer(width, 2, 32, dropout=0.5, batch_first=True)
        self.head_weight = torch.nn.Parameter(torch.randn(VOCABULARY, width))
        self.longest_seen = 0

    def hidden(self, tokens: torch.Tensor, documents=None, cache=None) -> torch.Tensor:
        length = tokens.shape[1]
        self.longest_seen = max(self.longest_seen, length)
        hidden = self.embedding(tokens) + self.positions(torch.arange(length))
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
        return self.layer(hidden, src_mask=mask, is_causal=True)
