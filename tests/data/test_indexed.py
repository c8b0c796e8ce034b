"""Megatron's format against a reader and a writer made here from the description alone."""

from pathlib import Path

import numpy as np
import pytest

from cupola.data import indexed
from cupola.data.indexed import DTYPES, Index, mapped_tokens, write_index
from cupola.errors import CupolaError
from tests.data.megatron_format import CODES, damage, plain_read, plain_write


def opened(prefix: Path) -> Index:
    return Index(prefix.with_suffix(".idx"), prefix.with_suffix(".bin").stat().st_size)


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "int64", "uint16"])
def test_reads_what_the_description_says(tmp_path: Path, kind: str) -> None:
    documents = [[[1, 2, 3], [4]], [], [[5, 6]], [[7], [8], [9, 100]]]
    plain_write(tmp_path / "a", documents, kind)
    index = opened(tmp_path / "a")
    index.check()
    assert index.dtype == np.dtype(kind)
    assert index.documents == 4
    assert index.lengths.tolist() == [3, 1, 2, 1, 1, 2]
    assert index.document_starts().tolist() == [0, 4, 4, 6]
    assert mapped_tokens(tmp_path / "a.bin", index.dtype).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 100]


def test_type_codes_are_megatrons() -> None:
    assert {dtype.name: code for code, dtype in DTYPES.items()} == CODES


@pytest.mark.parametrize("at_once", [1, 2, 3, 1000])
def test_writes_what_the_description_says(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "AT_ONCE", at_once)
    documents = [[3, 4, 5], [6], [], [7, 65535], [1]]
    tokens = np.concatenate([np.array(d, dtype="<u2") for d in documents])
    tokens.tofile(tmp_path / "a.bin")
    np.array([len(d) for d in documents], "<i4").tofile(tmp_path / "lengths")
    write_index(tmp_path / "a.idx", np.dtype("<u2"), tmp_path / "lengths")
    assert plain_read(tmp_path / "a") == (8, documents, [0, 1, 2, 3, 4, 5])
    index = opened(tmp_path / "a")
    index.check()
    assert index.document_starts().tolist() == [0, 3, 4, 4, 6]


def test_no_documents(tmp_path: Path) -> None:
    for name in ("a.bin", "lengths"):
        (tmp_path / name).touch()
    write_index(tmp_path / "a.idx", np.dtype("<i4"), tmp_path / "lengths")
    assert plain_read(tmp_path / "a") == (4, [], [0])
    index = opened(tmp_path / "a")
    index.check()
    assert index.documents == 0
    assert index.document_starts().tolist() == []


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"X", "not a Megatron index"),
        (9, b"\x02", "version 2"),
        (17, b"\x09", "no integer tokens"),
        (17, b"\x07", "no integer tokens"),
        (17, b"\x05", "bytes"),
        (18, b"\xff", "cut off"),
        (18, b"\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (34, b"\x04", "sequence 1 does not lie behind"),
        (38, b"\xff\xff\xff\xff", "sequence 1 does not lie behind|sequence 2 does not lie"),
        (46, b"\x02", "sequence 0 does not lie behind"),
        (62, b"\x00", "ends at byte"),
        (70, b"\x01", "documents are not in order"),
        (78, b"\x04", "documents are not in order"),
        (86, b"\x02", "documents are not in order"),
    ],
)
def test_damage_is_named(tmp_path: Path, at: int, new: bytes, message: str) -> None:
    plain_write(tmp_path / "a", [[[1, 2, 3], [4]], [[5, 6]]], "uint16")
    damage(tmp_path / "a.idx", at, new)
    with pytest.raises(CupolaError, match=message) as error:
        opened(tmp_path / "a").check()
    assert "a.idx" in str(error.value)


@pytest.mark.parametrize("keep", [0, 10, 33, 34, 60])
def test_a_cut_index_is_refused(tmp_path: Path, keep: int) -> None:
    plain_write(tmp_path / "a", [[[1, 2, 3], [4]], [[5, 6]]], "uint16")
    path = tmp_path / "a.idx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CupolaError, match=r"a\.idx"):
        opened(tmp_path / "a")


def test_a_bin_of_another_length_is_refused(tmp_path: Path) -> None:
    plain_write(tmp_path / "a", [[[1, 2, 3], [4]], [[5, 6]]], "uint16")
    path = tmp_path / "a.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CupolaError, match=r"ends at byte 12, but the \.bin has 10"):
        opened(tmp_path / "a")


def test_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(CupolaError, match=r"a\.idx: cannot be read"):
        Index(tmp_path / "a.idx", 0)
