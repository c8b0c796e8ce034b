"""Token stores: round trips, Megatron's files both ways, damage."""

import json
import resource
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola import storage
from cupola.data.store import ForeignStore, StoreWriter, TokenStore, token_dtype
from cupola.errors import CupolaError, InputError
from tests.data.megatron_format import damage, plain_read, plain_write
from tests.displays import Heard


@dataclass
class Vocabulary:
    size: int = 1000
    delimiter: int = 0
    fingerprint: str = "f" * 64

    def token_bytes(self, number: int) -> bytes:
        return b"x" * (number % 7 + 1)


def write(folder: Path, documents: Iterable[list[int]], vocabulary: Vocabulary | None = None) -> Path:
    with StoreWriter(folder, vocabulary or Vocabulary(), {"name": "test"}) as writer:
        for document in documents:
            writer.append([np.array(document, dtype=np.int32)], len(document))
    return folder


DOCUMENTS = st.lists(st.lists(st.integers(1, 999), max_size=20), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS, st.integers(1, 10), st.sampled_from([1000, 65_536, 65_537, 131_072]))
def test_round_trip(tmp_path: Path, documents: list[list[int]], together: int, size: int) -> None:
    """However the documents are handed over, in our reader and in a plain reader of Megatron's format."""
    vocabulary = Vocabulary(size)
    with StoreWriter(tmp_path / "s", vocabulary) as writer:
        for start in range(0, len(documents), together):
            part = documents[start : start + together]
            writer.append([np.array(d, dtype=np.int32) for d in part], 3 * len(part))
    store = TokenStore(tmp_path / "s", vocabulary)
    store.verify()
    ended = [[*document, 0] for document in documents]
    assert store.tokens.tolist() == [token for document in ended for token in document]
    assert store.tokens.dtype == token_dtype(size)
    assert [store.document(n).tolist() for n in range(store.documents)] == ended
    assert (store.documents, store.length, store.bytes) == (
        len(documents),
        sum(map(len, ended)),
        3 * len(documents),
    )
    code, sequences, boundaries = plain_read(tmp_path / "s" / "tokens")
    assert (code, sequences) == (8 if size <= 65_536 else 4, ended)
    assert boundaries == list(range(len(documents) + 1))


def test_largest_ids(tmp_path: Path) -> None:
    for size in (65_536, 131_072):
        store = TokenStore(write(tmp_path / str(size), [[size - 1, 1]], Vocabulary(size)))
        assert store.tokens.tolist() == [size - 1, 1, 0]


def test_tokens_are_read_only(tmp_path: Path) -> None:
    store = TokenStore(write(tmp_path / "s", [[1, 2]]))
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 5


def test_many_documents(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 4, 50_000)
    with StoreWriter(tmp_path / "s", Vocabulary()) as writer:
        writer.append([np.full(n, 7, np.int32) for n in lengths], 0)
    store = TokenStore(tmp_path / "s")
    store.verify()
    assert np.array_equal(np.diff(store.document_starts), lengths[:-1] + 1)


def test_fingerprint_is_of_tokens_and_tokenizer(tmp_path: Path) -> None:
    prints = [
        TokenStore(write(tmp_path / name, documents, vocabulary)).fingerprint
        for name, documents, vocabulary in (
            ("a", [[1, 2], [3]], Vocabulary()),
            ("b", [[1, 2], [3]], Vocabulary()),
            ("c", [[1, 2], [4]], Vocabulary()),
            ("d", [[1, 2], [3]], Vocabulary(fingerprint="e" * 64)),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [[1, 2]])
    with pytest.raises(InputError, match=r"s: was made with another tokenizer \(ffffffffffff, not eeee"):
        TokenStore(folder, Vocabulary(fingerprint="e" * 64))


def test_ids_beyond_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    for bad in (1000, -1):
        with pytest.raises(CupolaError, match="not below the vocabulary's 1000"):
            write(tmp_path / "s", [[1, bad]])
    assert list(tmp_path.iterdir()) == []


def test_an_error_or_a_kill_leaves_no_store(tmp_path: Path) -> None:
    def documents() -> Iterator[list[int]]:
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", documents())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CupolaError, match="has no manifest"):
        TokenStore(tmp_path / "s")


@pytest.mark.parametrize("documents", [5, 5000])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, documents: int) -> None:
    """A limit on the size of files fails as a full disk does: at once, or when the last buffer is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(CupolaError, match=r"s: cannot be written \(File too large"):
            write(tmp_path / "s", [[1, 2, 3]] * documents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx", "manifest.json"])
def test_what_is_missing_or_cut_in_the_cache_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path))
    folder = write(tmp_path / "stores" / "0f3a" / "train", [[1, 2], [3]])
    path = folder / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CupolaError, match=f"{name}.*delete .*train and run again"):
        TokenStore(folder)
    path.unlink()
    with pytest.raises(CupolaError, match=f"{name}.*delete .*train and run again"):
        TokenStore(folder)


def test_nothing_outside_the_cache_is_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "s", [[1, 2], [3]])
    for name in ("tokens.bin", "manifest.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-2])
        with pytest.raises(CupolaError) as damaged:
            TokenStore(folder)
        assert name in str(damaged.value)
        assert "delete" not in str(damaged.value)


def test_a_folder_that_is_no_store_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path))
    (tmp_path / "texts").mkdir()
    write(tmp_path / "stores" / "0f3a" / "train", [[1]])
    for folder in ("texts", "stores", "stores/0f3a"):
        with pytest.raises(InputError, match=r"is no token store \(it has no manifest.json\)$"):
            TokenStore(tmp_path / folder)


def test_a_flipped_byte_is_found_by_verify(tmp_path: Path) -> None:
    for name in ("tokens.bin", "tokens.idx"):
        folder = write(tmp_path / name, [[1, 2], [3]])
        damage(folder / name, 0 if name == "tokens.bin" else 34, b"\x07")
        with pytest.raises(CupolaError, match=f"{name}: is damaged"):
            TokenStore(folder).verify()


def reseal(folder: Path, **facts: object) -> None:
    """Make the manifest agree with the files again, as a careless tool might."""
    manifest = storage.read_manifest(folder) | facts
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": storage.file_sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [(2, b"\xe8\x03", "token id is not below"), (4, b"\x05", "delimiter"), (2, b"\x00", "delimiter")],
)
def test_verify_reads_the_tokens(tmp_path: Path, at: int, new: bytes, message: str) -> None:
    folder = write(tmp_path / "s", [[1, 2], [3]])
    damage(folder / "tokens.bin", at, new)
    reseal(folder)
    with pytest.raises(CupolaError, match=message):
        TokenStore(folder).verify()


def test_an_index_of_another_store_is_refused(tmp_path: Path) -> None:
    folder, other = write(tmp_path / "s", [[1, 2], [3]]), write(tmp_path / "t", [[1], [2, 3]])
    shutil.copy(other / "tokens.idx", folder / "tokens.idx")
    reseal(folder)
    with pytest.raises(CupolaError, match="delimiter"):
        TokenStore(folder).verify()
    shutil.copy(write(tmp_path / "u", [[1, 2, 0, 3]]) / "tokens.idx", folder / "tokens.idx")
    reseal(folder)
    with pytest.raises(CupolaError, match="manifest and index disagree"):
        TokenStore(folder)


def test_another_artefact_is_no_store(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path / "s", {"kind": "tokenizer"}) as aside:
        (aside / "tokens.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"is no token store \(its manifest.json is of a tokenizer\)$"):
        TokenStore(tmp_path / "s")


# Megatron's own files


def test_foreign_store(tmp_path: Path) -> None:
    plain_write(tmp_path / "meg", [[[5, 6, 0]], [[7, 0]]], "uint16")
    heard = Heard()
    store = ForeignStore(tmp_path / "meg", Vocabulary(), heard)
    assert store.tokens.tolist() == [5, 6, 0, 7, 0]
    assert (store.documents, store.length, store.bytes, store.delimiter) == (2, 5, 6 + 7 + 1, 0)
    assert store.document(1).tolist() == [7, 0]
    assert heard.warnings == []
    store.verify()
    ours = TokenStore(write(tmp_path / "ours", [[5, 6], [7]]))
    assert store.fingerprint == ours.fingerprint
    assert ForeignStore(tmp_path / "ours" / "tokens", Vocabulary()).fingerprint == ours.fingerprint


def test_foreign_store_with_sentences_and_wide_tokens(tmp_path: Path) -> None:
    plain_write(tmp_path / "meg.v1", [[[5], [6, 0]], [[7], [8], [0]]], "int32")
    store = ForeignStore(tmp_path / "meg.v1", Vocabulary())
    assert store.document_starts.tolist() == [0, 3]
    assert store.document(1).tolist() == [7, 8, 0]


def test_foreign_store_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    plain_write(tmp_path / "meg", [[[5, 6]], [[7]]], "uint16")
    with pytest.raises(InputError, match=r"meg\.bin: the delimiter \(id 0\) does not occur"):
        ForeignStore(tmp_path / "meg", Vocabulary())
    plain_write(tmp_path / "meg", [[[5, 1000, 0]]], "uint16")
    with pytest.raises(InputError, match=r"meg\.bin: has token ids from 0 to 1000"):
        ForeignStore(tmp_path / "meg", Vocabulary())
    plain_write(tmp_path / "meg", [[[5, 0]], [[7]]], "uint16")
    heard = Heard()
    ForeignStore(tmp_path / "meg", Vocabulary(), heard)
    assert heard.warnings == [f"{tmp_path}/meg.bin: 2 documents, but 1 delimiters"]
    with pytest.raises(CupolaError, match=r"none\.bin: cannot be read"):
        ForeignStore(tmp_path / "none", Vocabulary())
