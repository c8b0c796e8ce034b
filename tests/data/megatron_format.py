"""Megatron's indexed format, written and read from its description alone, token by token."""

import struct
from pathlib import Path

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def plain_write(prefix: Path, documents: list[list[list[int]]], kind: str) -> None:
    """Documents, each a list of sequences, as the format's description says."""
    letter = {"uint8": "B", "int16": "h", "int32": "i", "int64": "q", "uint16": "H", "float32": "f"}[kind]
    size = struct.calcsize(letter)
    sequences = [sequence for document in documents for sequence in document]
    with open(f"{prefix}.bin", "wb") as file:
        for sequence in sequences:
            file.write(struct.pack(f"<{len(sequence)}{letter}", *sequence))
    boundaries = [0]
    for document in documents:
        boundaries.append(boundaries[-1] + len(document))
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", CODES[kind]))
        file.write(struct.pack("<QQ", len(sequences), len(boundaries)))
        file.write(b"".join(struct.pack("<i", len(sequence)) for sequence in sequences))
        at = 0
        for sequence in sequences:
            file.write(struct.pack("<q", at))
            at += len(sequence) * size
        file.write(b"".join(struct.pack("<q", boundary) for boundary in boundaries))


def plain_read(prefix: Path) -> tuple[int, list[list[int]], list[int]]:
    """(type code, sequences, document boundaries)."""
    raw, tokens = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<Q", raw, 9) == (1,)
    code, count, documents = struct.unpack_from("<BQQ", raw, 17)
    lengths = struct.unpack_from(f"<{count}i", raw, 34)
    pointers = struct.unpack_from(f"<{count}q", raw, 34 + 4 * count)
    boundaries = struct.unpack_from(f"<{documents}q", raw, 34 + 12 * count)
    assert len(raw) == 34 + 12 * count + 8 * documents
    letter = {8: "H", 4: "i"}[code]
    sequences = [
        list(struct.unpack_from(f"<{n}{letter}", tokens, at)) for n, at in zip(lengths, pointers, strict=True)
    ]
    return code, sequences, list(boundaries)


def damage(path: Path, at: int, new: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(new)] = new
    path.write_bytes(raw)
