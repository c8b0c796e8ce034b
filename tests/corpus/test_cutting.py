"""Large files: cut while they are read, nothing lost, nothing twice."""

import gzip
import json
from pathlib import Path

import pytest

from cupola.corpus import cutting
from cupola.corpus.reading import Entry, Reading, Rules, read_portion

RULES = Rules(min_document_bytes=0, text_field="text")


def entry(path: Path, kind: str) -> Entry:
    return Entry(path, path.name, kind, "files", "mine", path.stat().st_size)


def read(path: Path, kind: str, report: Reading) -> tuple[list[tuple[str, str]], int]:
    """((id, text) of every document, number of portions)"""
    portions = list(cutting.portions([entry(path, kind)], report))
    found = [document for portion in portions for document in read_portion(portion, RULES).documents]
    return [(item.id, "".join(part.text for part in item.sections)) for item in found], len(portions)


@pytest.fixture(autouse=True)
def small_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "CUT_BYTES", 1000)


@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_a_large_file(tmp_path: Path, packed: bool) -> None:
    texts = [f"Line {number} " + "é" * (number % 90) + "." for number in range(1, 200)]
    data = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    found, portions = read(path, "jsonl", Reading())
    assert found == [(f"{path.name}:{number}", text) for number, text in enumerate(texts, 1)]
    assert portions > 5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", [0, 3, 40, 80])
@pytest.mark.parametrize("over", [0, 1, 700, 5000])
def test_a_line_that_is_too_long_costs_itself(tmp_path: Path, where: int, over: int, packed: bool) -> None:
    lines = [json.dumps({"text": f"Line {number}."}).encode() for number in range(1, 81)]
    empty = len(json.dumps({"text": ""}))
    lines.insert(where, json.dumps({"text": "x" * (1000 + over - empty)}).encode())
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(b"\n".join(lines)) if packed else b"\n".join(lines))
    report = Reading()
    portions = list(cutting._line_cuts(entry(path, "jsonl"), report))
    found = [item.id for portion in portions for item in read_portion(portion, RULES).documents]
    kept = [number for number in range(1, 82) if not over or number != where + 1]
    assert found == [f"{path.name}:{number}" for number in kept]
    assert max(len(portion.data or b"") for portion in portions) <= 2000
    assert report.skipped == {}
    if over:
        assert report.dropped == {"line of over 1 kB": 1}
        length = f"{(1000 + over) / 1000:.3g} kB"
        assert report.warnings == [f"{path.name}: line {where + 1} has {length} and was skipped"]
    else:
        assert report.dropped == {}


def test_the_costs_of_lines_are_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "some words"}) + "\n"
    path.write_text(line * 99 + "x" * 3500 + "\n" + line * 99)
    assert sum(part.cost for part in cutting.portions([entry(path, "jsonl")], Reading())) == len(
        path.read_bytes()
    )


def test_a_large_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number} " + "word " * (number % 30) + "end." for number in range(150)]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(paragraphs))
    found, _ = read(path, "text", Reading())
    assert [name for name, _ in found] == [f"a.txt@{number}" for number in range(len(found))]
    assert len(found) > 5
    assert [part for _, text in found for part in text.split("\n\n")] == paragraphs


def test_a_text_without_breaks_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 5500)
    found, _ = read(path, "text", Reading())
    assert "".join(text for _, text in found) == "x" * 5500


def test_small_files_travel_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(150)]
    for path in paths:
        path.write_text("Some words.")
    portions = list(cutting.portions([entry(path, "text") for path in paths], Reading()))
    assert [len(portion.entries) for portion in portions] == [64, 64, 22]
    assert sum(portion.cost for portion in portions) == 150 * 11


@pytest.mark.parametrize(
    ("name", "kind", "data", "reason"),
    [
        ("a.txt", "text", b"\x00" * 5000, "binary"),
        ("a.txt.gz", "text", b"\x1f\x8bnot gzip" * 500, "unreadable"),
        ("a.jsonl", "jsonl", b"\x00" * 5000, "binary"),
        ("a.parquet", "parquet", b"no", "unreadable"),
    ],
)
def test_a_bad_large_file_costs_itself(
    tmp_path: Path, name: str, kind: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    good = tmp_path / "good.txt"
    good.write_text("Some words.")
    report = Reading()
    portions = list(cutting.portions([entry(tmp_path / name, kind), entry(good, "text")], report))
    assert [portion.entries[0].id for portion in portions] == ["good.txt"]
    assert report.skipped == {reason: 1}
    assert name in report.warnings[0]
