"""What an ordinary compressor makes of the same text: the yardstick beside a model's bits per byte.

`xz -9` sees all documents of a source in one stream, so it may use the earlier ones; a model sees one
document at a time, and what it learnt from the training text. The container's few dozen bytes count.
"""

import lzma
from collections.abc import Iterable

from cupola.evaluate.bits import BitsPerByte


def xz_bits(texts: Iterable[str]) -> BitsPerByte:
    """The texts, end to end, through `xz -9`; `tokens` is 0. About 3 MB/s and 700 MB of memory."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=9)
    compressed = size = 0
    for text in texts:
        data = text.encode("utf-8")
        size += len(data)
        compressed += len(compressor.compress(data))
    compressed += len(compressor.flush())
    return BitsPerByte(bits=8.0 * compressed, bytes=size)
