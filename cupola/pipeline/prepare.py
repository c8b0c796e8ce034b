"""From a recipe's corpora to token stores: gather, train the tokenizer, encode. All of it from the cache
when nothing has changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.corpus import documents, gather
from cupola.corpus.encoding import encode_source
from cupola.corpus.separating import separate
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train_for
from cupola.data.store import TokenStore
from cupola.display import Display, count
from cupola.errors import InputError
from cupola.paths import cache_root
from cupola.recipe.schema import Recipe, Stage
from cupola.storage import read_manifest


@dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
        gathered: source -> folder of clean text.
        stores: source -> folder of its two token stores.
        vocabulary: rows of embedding and head.
        facts: for the run's record: what each source took, documents, bytes, tokens, fingerprint.
    """

    tokenizer: Tokenizer
    vocabulary: int
    gathered: dict[str, Path]
    stores: dict[str, Path]
    facts: dict[str, Any]

    def train_stores(self, stage: Stage) -> dict[str, TokenStore]:
        """The stores that a stage reads, by source."""
        return {source: TokenStore(self.stores[source] / "train") for source in stage.sources()}

    def heldout_facts(self) -> dict[str, dict[str, str]]:
        """Of each source that is evaluated: its folder in the cache, and the SHA-256 of its held-out text."""
        return {
            name: {
                "folder": str(self.gathered[name].relative_to(cache_root())),
                "sha256": read_manifest(self.gathered[name])["files"]["heldout.parquet"]["sha256"],
            }
            for name in self.stores
        }


def heldout_texts(gathered: Path) -> Iterator[str]:
    """The held-out documents of a gathered source."""
    return (document.text for document in documents(gathered, "heldout"))


def _check_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> None:
    rows = recipe.model.rows(tokenizer.size)
    if rows < tokenizer.size:
        raise InputError(
            f"model.vocabulary: {rows} is less than the tokenizer's {tokenizer.size}; leave it out, or lower"
            " tokenizer.vocabulary"
        )


def prepare(recipe: Recipe, display: Display) -> Prepared:
    """Gather, tokenize and store every source that a stage reads."""
    sources = recipe.sources()
    mixture = recipe.tokenizer_mixture()
    wanted = [*sources, *(name for name in mixture if name not in sources)]
    gathered = {name: gather(name, recipe.corpora[name], display) for name in wanted}
    texts = separate({name: item.path for name, item in gathered.items()}, display)
    tokenizer = train_for(recipe.tokenizer, texts, mixture, display)
    _check_vocabulary(recipe, tokenizer)
    stores = {name: encode_source(texts[name], tokenizer, display, name) for name in sources}
    facts = {}
    for name in sources:
        store = TokenStore(stores[name] / "train")
        facts[name] = {**gathered[name].facts, "tokens": store.length, "fingerprint": store.fingerprint}
        display.say(f"{name}: {count(store.length)} tokens, {store.bytes / store.length:.2f} bytes per token")
    return Prepared(tokenizer, recipe.model.rows(tokenizer.size), texts, stores, facts)
