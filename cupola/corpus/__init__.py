"""Text in: sources, readers, cleaning, the held-out split; and the tokenizer.

`gather` makes a source's folder of clean text, `documents` reads it.
"""

from cupola.corpus.documents import Document, documents, totals
from cupola.corpus.gathering import Gathered, gather

__all__ = ["Document", "Gathered", "documents", "gather", "totals"]
