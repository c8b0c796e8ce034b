"""Training: deterministic, bounded, only on training text; the cache."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import pytest

from cupola import storage
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import RESERVED, quotas, sample, train, train_for
from cupola.errors import InputError
from cupola.recipe import schema
from tests.corpus.corpus_fakes import gathered
from tests.displays import Heard

ENGLISH = list(topics.topics.values())


@pytest.mark.parametrize("vocabulary", [300, 512, 4000])
def test_size_reached(vocabulary: int) -> None:
    trained = train(ENGLISH, vocabulary)
    assert trained.tokenizer.size == vocabulary
    assert trained.bytes == sum(len(text.encode()) for text in ENGLISH)
    assert trained.tokenizer.engine == "tiktoken"


def test_more_tokens_pack_more_bytes() -> None:
    small, large = train(ENGLISH, 300), train(ENGLISH, 4000)
    assert small.bytes_per_token < 1.3
    assert 3.5 < large.bytes_per_token < 5


def test_same_text_gives_the_same_file_in_any_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pydoc_data.topics import topics;"
        "from cupola.corpus.tokenizer_training import train;"
        "train(topics.values(), 1000).tokenizer.save(Path(sys.argv[1]))"
    )
    files = []
    for threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", program, tmp_path / threads], check=True, env=environment)
        files.append((tmp_path / threads / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_order_of_documents_does_not_matter() -> None:
    assert train(ENGLISH[::-1], 1000).tokenizer.fingerprint == train(ENGLISH, 1000).tokenizer.fingerprint


def test_too_little_text_gives_a_smaller_vocabulary_and_a_warning() -> None:
    heard = Heard()
    trained = train(["the cat sat on the mat, the cat"], 5000, heard)
    assert 288 < trained.tokenizer.size < 320
    assert re.search(
        rf"too few repeated strings for 5000 .* has {trained.tokenizer.size}$", heard.warnings[0]
    )
    assert trained.tokenizer.decode(trained.tokenizer.encode("dog 中")) == "dog 中"


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to train"):
        train(texts, 512)


def test_an_error_in_the_text_comes_through() -> None:
    def texts() -> Iterator[str]:
        yield "the cat"
        raise InputError("the file is gone")

    with pytest.raises(InputError, match="the file is gone"):
        train(texts(), 512)


def test_reserved_names_in_the_text_are_not_merged() -> None:
    tokenizer = train(["<|endoftext|> <think> <|im_start|>"] * 100, 400).tokenizer
    for name in RESERVED:
        assert tokenizer.special[name] not in tokenizer.encode(name)
        assert tokenizer.decode(tokenizer.encode(name)) == name


def test_quotas_follow_the_weights() -> None:
    assert quotas({"a": 3, "b": 1}, {"a": 10_000, "b": 10_000}, 4000) == {"a": 3000, "b": 1000}
    assert quotas({"a": 3, "b": 1}, {"a": 1000, "b": 10_000}, 4000) == {"a": 1000, "b": 3000}
    assert quotas({"a": 3, "b": 1}, {"a": 1000, "b": 500}, 4000) == {"a": 1000, "b": 500}
    assert quotas({"a": 1, "b": 1, "c": 2}, {"a": 100, "b": 9000, "c": 9000}, 3100) == {
        "a": 100,
        "b": 1000,
        "c": 2000,
    }
    assert quotas({"a": 1, "b": 0, "c": 1}, {"a": 500, "b": 500, "c": 0}, 100) == {"a": 100}
    with pytest.raises(InputError, match="every source is empty"):
        quotas({"a": 1}, {"a": 0}, 100)


@pytest.mark.parametrize("quota", [1, 999, 5000, 20_000, 39_999, 40_000])
def test_sample_keeps_the_quota_and_spreads_over_the_source(tmp_path: Path, quota: int) -> None:
    texts = [f"{number:03d}" + "é" * ((number * 37) % 200) for number in range(200)]
    size = sum(len(text.encode()) for text in texts)
    quota = quota * size // 40_000
    taken = list(sample(gathered(tmp_path / "g", texts), quota, size))
    taken_bytes = sum(len(text.encode()) for text in taken)
    assert quota - 1 <= taken_bytes <= quota
    assert taken[:-1] == [text for text in texts if text in set(taken[:-1])]
    if quota == size:
        assert taken == texts
    if 5000 <= quota < size:
        numbers = [int(text[:3]) for text in taken[:-1]]
        assert numbers[0] == 0
        assert max(numbers) > 160
        middle = sum(len(text.encode()) for text in taken if int(text[:3]) < 100) / taken_bytes
        assert 0.4 < middle < 0.6


def test_a_long_document_does_not_stand_for_its_source(tmp_path: Path) -> None:
    long, short = "long words\n" * 40_000, [f"short {number}" * 200 for number in range(200)]
    size = len(long) + sum(map(len, short))
    taken = list(sample(gathered(tmp_path / "g", [long, *short]), size // 2, size))
    of_long = sum(len(text) for text in taken if text.startswith("long"))
    assert 0.8 < of_long / (size / 2) / (len(long) / size) < 1.2
    assert any(text in short for text in taken)


def test_trained_once_and_never_on_heldout_text(tmp_path: Path, cache: Path) -> None:
    settings = schema.Tokenizer(vocabulary=600)
    sources = {
        "a": gathered(cache / "text" / "a", ENGLISH[:30], ["zqzqzq " * 5000]),
        "b": gathered(cache / "text" / "b", ENGLISH[30:50]),
    }
    heard = Heard()
    first = train_for(settings, sources, {"a": 1, "b": 1}, heard)
    assert not any(b"zq" in first.token_bytes(number) for number in range(first.size))
    assert re.search(r"600 tokens from .*B of text, .* bytes per token, .*B/s", heard.said[-1])
    said = len(heard.said)
    again = train_for(settings, sources, {"a": 1, "b": 1}, heard)
    assert again.fingerprint == first.fingerprint
    assert len(heard.said) == said
    (folder,) = [path for path in (cache / "tokenizers").iterdir() if path.is_dir()]
    assert Tokenizer.load(folder).fingerprint == first.fingerprint
    assert storage.read_manifest(folder)["fingerprint"] == first.fingerprint
    train_for(settings, sources, {"a": 1}, heard)
    assert len(heard.said) == said + 1


def test_damaged_in_the_cache_is_trained_again(cache: Path) -> None:
    sources = {"a": gathered(cache / "text" / "a", ENGLISH[:10])}
    heard = Heard()
    first = train_for(schema.Tokenizer(vocabulary=400), sources, {"a": 1}, heard)
    (file,) = (cache / "tokenizers").glob("*/tokenizer.json")
    file.write_text(file.read_text().replace("<|pad|>", "<|bad|>"))
    assert (
        train_for(schema.Tokenizer(vocabulary=400), sources, {"a": 1}, heard).fingerprint == first.fingerprint
    )
    assert "is damaged" in heard.warnings[0]
    assert "made again" in heard.warnings[0]


def test_sources_that_fell_back_to_the_same_text_count_once(cache: Path) -> None:
    sources = {"a": gathered(cache / "text" / "a", ENGLISH[:10])}
    sources["b"] = sources["a"]
    heard = Heard()
    train_for(schema.Tokenizer(vocabulary=400, train_bytes=10**9), sources, {"a": 1, "b": 2}, heard)
    (manifest,) = (cache / "tokenizers").glob("*/manifest.json")
    assert storage.read_manifest(manifest.parent)["bytes"] == sum(len(t.encode()) for t in ENGLISH[:10])


def test_a_file_is_loaded(tmp_path: Path, cache: Path) -> None:
    tokenizer = train(ENGLISH[:5], 400).tokenizer
    tokenizer.save(tmp_path / "t")
    heard = Heard()
    settings = schema.Tokenizer(kind="file", path=str(tmp_path / "t" / "tokenizer.json"))
    assert train_for(settings, {}, {}, heard).fingerprint == tokenizer.fingerprint
    assert "400 tokens, encoded by tiktoken" in heard.said[0]
    with pytest.raises(InputError, match="there is no such tokenizer"):
        train_for(schema.Tokenizer(kind="file", path=str(tmp_path / "none.json")), {}, {}, heard)


@pytest.mark.slow
def test_a_large_vocabulary_on_manuals_and_dictionaries(cache: Path) -> None:
    """32,768 tokens on perl-doc, the PostgreSQL manual and a dictionary: size, both engines, compression."""
    from cupola.corpus import documents, gather

    corpora = {"manuals": {"apt": ["perl-doc", "postgresql-doc-15"]}, "dictionary": {"apt": ["dict-gcide"]}}
    heard = Heard()
    try:
        sources = {name: gather(name, schema.Corpus(**block), heard).path for name, block in corpora.items()}
    except (InputError, storage.CupolaError) as error:
        pytest.skip(f"the packages cannot be had: {error}")
    settings = schema.Tokenizer(vocabulary=32_768, train_bytes=30_000_000)
    tokenizer = train_for(settings, sources, {"manuals": 2, "dictionary": 1}, heard)
    assert tokenizer.size == 32_768
    assert tokenizer.engine == "tiktoken"
    texts = [document.text for folder in sources.values() for document in documents(folder, "heldout")]
    encoded = tokenizer.encode_batch(texts)
    library = tokenizer._reference
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    assert sum(len(text.encode()) for text in texts) / sum(map(len, encoded)) > 3.5
