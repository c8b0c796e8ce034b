"""A tokenizer of one token a byte, a tiny causal model and one that looks things up, for tests of scoring."""

import re

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

    def unwritten(self, vocabulary: int) -> frozenset[int]:
        return frozenset(range(DELIMITER + 1, vocabulary))

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


class Finder(torch.nn.Module):
    """Answers as a reader with a ruler would: it looks for what was asked for among the last `sees` bytes.

    Where no answer is due, every token is equally likely.
    """

    max_positions = None
    QUESTION = re.compile(r"\? The (pass key|number of the \w+ \w+) is((?: \d)*)( ?)$")

    def __init__(self, sees: int | None = None) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.sees = sees
        self.lengths: list[int] = []

    def hidden(self, tokens: torch.Tensor, documents=None, cache=None) -> torch.Tensor:
        out = torch.zeros(*tokens.shape, VOCABULARY)
        for row, ids in enumerate(tokens.tolist()):
            text = bytes(number for number in ids if number < DELIMITER).decode().rstrip("\0")
            first = len(ids) - len([number for number in ids if number < DELIMITER])
            self.lengths.append(first + len(text))
            for end in range(1, len(text) + 1):
                asked = self.QUESTION.search(text[max(0, end - 100) : end])
                if asked:
                    start = 0 if self.sees is None else max(0, end - self.sees)
                    said = re.search(rf"The {asked[1]} is((?: \d)+)\.", text[start : end - 1])
                    written = asked[2] + asked[3]
                    if said and said[1].startswith(written):
                        out[row, first + end - 1, (said[1] + ".").encode()[len(written)]] = 30.0
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden
