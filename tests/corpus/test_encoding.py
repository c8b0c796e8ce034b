"""Gathered text to token stores: contents, the cache, kills and concurrent builders."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest

from cupola.corpus import encoding
from cupola.corpus.encoding import encode_source
from cupola.corpus.tokenizer import Tokenizer
from cupola.corpus.tokenizer_training import train
from cupola.data.store import TokenStore
from tests.corpus.corpus_fakes import gathered
from tests.displays import Heard

TEXTS = list(topics.topics.values())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 800).tokenizer


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    return gathered(tmp_path / "cache" / "text" / "t", TEXTS[5:], TEXTS[:5])


@pytest.mark.parametrize("chunk", [1, 10_000, 10**9])
def test_documents_and_delimiters(
    source: Path, tokenizer: Tokenizer, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", chunk)
    folder = encode_source(source, tokenizer)
    for split, texts in (("train", TEXTS[5:]), ("heldout", TEXTS[:5])):
        store = TokenStore(folder / split, tokenizer)
        store.verify()
        assert store.documents == len(texts)
        assert store.bytes == sum(len(text.encode()) for text in texts)
        for number, text in enumerate(texts):
            *ids, last = store.document(number)
            assert tokenizer.decode(ids) == text
            assert last == tokenizer.delimiter
        assert np.count_nonzero(store.tokens == tokenizer.delimiter) == len(texts)


def test_done_once_and_again_if_damaged(source: Path, tokenizer: Tokenizer) -> None:
    heard = Heard()
    folder = encode_source(source, tokenizer, heard)
    assert len(heard.said) == 2
    assert "bytes per token" in heard.said[0]
    assert "MB/s" in heard.said[0]
    assert encode_source(source, tokenizer, heard) == folder
    assert len(heard.said) == 2
    fingerprint = TokenStore(folder / "train").fingerprint
    path = folder / "train" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    encode_source(source, tokenizer, heard)
    assert len(heard.said) == 3
    assert "tokens.bin: has" in heard.warnings[0]
    assert heard.warnings[0].endswith("; it is made again")
    assert "delete" not in heard.warnings[0]  # that is for who has to mend it by hand
    assert TokenStore(folder / "train").fingerprint == fingerprint


def test_another_tokenizer_or_text_is_another_store(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = encode_source(source, tokenizer)
    other = gathered(tmp_path / "cache" / "text" / "u", TEXTS[6:], TEXTS[:5])
    assert encode_source(other, tokenizer) != folder
    assert encode_source(source, train(TEXTS, 900).tokenizer) != folder


def test_nothing_held_out_is_an_empty_store(tmp_path: Path, source: Path, tokenizer: Tokenizer) -> None:
    alone = gathered(tmp_path / "cache" / "text" / "alone", TEXTS[:1])
    store = TokenStore(encode_source(alone, tokenizer) / "heldout")
    store.verify()
    assert (store.length, store.documents, store.bytes) == (0, 0, 0)
    assert store.document_starts.tolist() == []


def test_a_large_vocabulary_takes_wide_tokens(source: Path, tokenizer: Tokenizer) -> None:
    """Ids beyond 65,535 survive."""
    spec = json.loads(tokenizer._text)
    spec["added_tokens"] += [
        {**spec["added_tokens"][0], "id": 65_000 + number, "content": f"<{number}>", "special": False}
        for number in range(600)
    ]
    spec["model"]["vocab"] |= {f"<{number}>": 65_000 + number for number in range(600)}
    wide = Tokenizer(json.dumps(spec))
    assert wide.size == 65_600
    text = gathered(source.parent / "wide", ["a <599> b"])
    store = TokenStore(encode_source(text, wide) / "train")
    store.verify()
    assert store.tokens.dtype == np.int32
    assert store.tokens.max() == 65_599
    assert wide.decode(store.tokens[:-1]) == "a <599> b"


SLOW_ENCODER = """
import sys, time
from pathlib import Path
from cupola.corpus import encoding
from cupola.corpus.tokenizer import Tokenizer
encoding.CHUNK_CHARACTERS = 1000
original = encoding._batches
def slowly(*arguments):
    for batch in original(*arguments):
        print("batch", flush=True)
        time.sleep(0.05)
        yield batch
encoding._batches = slowly
encoding.encode_source(Path(sys.argv[1]), Tokenizer.load(Path(sys.argv[2])))
"""


@pytest.mark.multiprocess
def test_a_kill_leaves_nothing_that_is_taken_for_a_store(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    arguments = [sys.executable, "-c", SLOW_ENCODER, source, tmp_path / "tokenizer"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(12):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    stores = tmp_path / "cache" / "stores"
    left = list(stores.rglob("tokens.bin"))
    assert left, "the kill came before anything was written"
    assert not list(stores.rglob("manifest.json"))
    folder = encode_source(source, tokenizer)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["heldout", "train"]
    TokenStore(folder / "train", tokenizer).verify()


def build_in_process(
    source: Path, tokenizer: Path, folder: str, results: "multiprocessing.Queue[str]"
) -> None:
    os.environ["CUPOLA_CACHE"] = folder
    heard = Heard()
    encode_source(source, Tokenizer.load(tokenizer), heard)
    results.put("".join("e" for line in heard.said if line.startswith("encoded")))


@pytest.mark.multiprocess
def test_two_processes_build_it_once(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    cache = os.environ["CUPOLA_CACHE"]
    workers = [
        context.Process(target=build_in_process, args=(source, tmp_path / "tokenizer", cache, results))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    encoded = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sum(map(len, encoded)) == 2  # each split once


def test_reading_does_not_run_ahead(tokenizer: Tokenizer) -> None:
    """Batches are taken a few at a time, however slowly they are consumed."""
    taken = 0

    def batches():
        nonlocal taken
        for text in TEXTS * 4:
            taken += 1
            yield [text]

    stream = tokenizer.encode_stream(batches())
    next(stream)
    time.sleep(0.1)
    assert taken < 2 * os.cpu_count() + 4
    stream.close()
