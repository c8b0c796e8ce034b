"""How much text there is, as far as that is known before anything is read.

What an earlier run of the recipe counted, where it read the same sources with the same tokenizer; or the
sizes of plain files, at a usual number of bytes a token. Of packages, datasets and what is generated nothing
is known until they are gathered.
"""

import glob
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cupola.paths import runs_root
from cupola.recipe.document import read_plain
from cupola.recipe.loading import dump
from cupola.recipe.schema import Recipe, Stage

BYTES_PER_TOKEN = 4.0
"""Of English under a vocabulary of some tens of thousands; a small one takes more tokens."""
PLAIN = (".txt", ".md")
"""Files whose size is nearly that of their text."""


@dataclass(frozen=True)
class Stock:
    """Of one source.

    Attributes:
        tokens: that train.
        counted: an earlier run counted them; else they follow from the size of its files.
    """

    tokens: int
    counted: bool


def stocks(recipe: Recipe) -> dict[str, Stock]:
    """Every source of which something is known."""
    found = {}
    for name in recipe.sources():
        if size := _plain_bytes(recipe, name):
            tokens = size * (1 - recipe.corpora[name].heldout) / BYTES_PER_TOKEN
            found[name] = Stock(max(1, round(tokens)), counted=False)
    return found | {name: Stock(tokens, counted=True) for name, tokens in _counted(recipe).items()}


def _counted(recipe: Recipe) -> dict[str, int]:
    """Tokens by source that an earlier run of this recipe recorded, where the source is still the same."""
    folder = runs_root() / recipe.name
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        earlier = read_plain((folder / "recipe.yaml").read_text(encoding="utf-8"))
        now = dump(recipe)
        if earlier["tokenizer"] != now["tokenizer"]:
            return {}
        same = [name for name, corpus in now["corpora"].items() if earlier["corpora"].get(name) == corpus]
        found = {name: record["sources"][name]["tokens"] for name in same if name in record["sources"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}  # no run yet, or one that was damaged or hasn't read its sources: nothing is known
    return {name: tokens for name, tokens in found.items() if isinstance(tokens, int) and tokens > 0}


def _plain_bytes(recipe: Recipe, name: str) -> int:
    """Bytes of a source's files where all are plain text; 0 where that isn't known."""
    corpus = recipe.corpora[name]
    if corpus.kinds() != ["files"] or corpus.holds() != "text" or corpus.exclude:
        return 0
    patterns = [corpus.files] if isinstance(corpus.files, str) else corpus.files or []
    paths = {path for pattern in patterns for path in _files(pattern)}
    if not paths or any(path.suffix not in PLAIN for path in paths):
        return 0
    size = sum(path.stat().st_size for path in paths)
    return min(size, corpus.max_bytes) if corpus.max_bytes else size


def _files(pattern: str) -> Iterator[Path]:
    for match in glob.iglob(os.path.expanduser(pattern), recursive=True):
        path = Path(match)
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from (one for one in inside if one.is_file() and not one.name.startswith("."))


@dataclass(frozen=True)
class Repeated:
    """How often a stage reads a source.

    Attributes:
        asked: tokens that the stage takes of it.
    """

    source: str
    asked: float
    stock: Stock

    @property
    def epochs(self) -> float:
        return self.asked / self.stock.tokens


def repetitions(stage: Stage, tokens: int, known: Mapping[str, Stock]) -> list[Repeated]:
    """How often a stage of so many tokens reads each source of which something is known."""
    changes = stage.data.starts(tokens)
    ends = [start for start, _ in changes[1:]] + [tokens]
    asked: dict[str, float] = {}
    for (start, weights), end in zip(changes, ends, strict=True):
        for name, weight in weights.items():
            asked[name] = asked.get(name, 0.0) + (end - start) * weight / sum(weights.values())
    return [Repeated(name, asked[name], known[name]) for name in asked if name in known]
