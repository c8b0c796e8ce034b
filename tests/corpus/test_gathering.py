"""Gathering files: formats, dirt, duplicates, limits, the split, the cache, kills, and two at once."""

import glob
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from cupola.corpus import documents, gather, totals
from cupola.corpus.gathering import text_root
from cupola.corpus.splitting import is_heldout, text_hash
from cupola.errors import CupolaError, InputError
from cupola.recipe.corpora import Corpus
from cupola.storage import ASIDE
from tests.corpus.corpus_fakes import page, prose
from tests.displays import Heard


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def texts(path: Path) -> dict[str, str]:
    """id -> text of both splits."""
    return {item.id: item.text for split in ("train", "heldout") for item in documents(path, split)}


def numbered(count: int) -> dict[str, bytes | str]:
    return {f"d{number:03}.txt": prose(f"matter {number}") for number in range(count)}


def test_every_format_gives_its_text(tmp_path: Path, cache: Path, heard: Heard) -> None:
    table = pyarrow.table({"text": [prose("table one"), prose("table two"), None], "other": [1, 2, 3]})
    lines = [json.dumps({"text": prose("line one")}), "", "{broken", json.dumps({"text": prose("line two")})]
    folder = write(
        tmp_path / "in",
        {
            "a.txt": prose("plain"),
            "b.md": "# Title\n\n" + prose("markdown"),
            "sub/c.html": page("hypertext"),
            "sub/deep/d.txt.gz": gzip.compress(prose("gzipped").encode()),
            "e.txt.zst": zstandard.ZstdCompressor().compress(prose("zstandard").encode()),
            "f.jsonl": "\n".join([*lines, json.dumps({"body": "no"}), json.dumps([1])]),
            "g.jsonl.gz": gzip.compress(json.dumps({"text": prose("packed line")}).encode()),
            "picture.png": b"\x89PNG\x00\x00",
            ".hidden.txt": prose("hidden"),
        },
    )
    pyarrow.parquet.write_table(table, folder / "h.parquet", row_group_size=1)
    found = gather("mine", Corpus(files=str(folder), licence="mine alone"), heard)
    subjects = {
        name: text.split("about the ")[1].split(" in this book")[0]
        for name, text in texts(found.path).items()
    }
    assert subjects == {
        "in/a.txt": "plain",
        "in/b.md": "markdown",
        "in/sub/c.html": "hypertext",
        "in/sub/deep/d.txt.gz": "gzipped",
        "in/e.txt.zst": "zstandard",
        "in/f.jsonl:1": "line one",
        "in/f.jsonl:4": "line two",
        "in/g.jsonl.gz:1": "packed line",
        "in/h.parquet:0.0": "table one",
        "in/h.parquet:1.0": "table two",
    }
    assert found.facts["dropped"] == {"empty": 1, "malformed JSON": 1, "no text in field 'text'": 2}
    assert found.facts["skipped_files"] == {"unknown kind of file": 1}
    assert found.facts["licences"] == {"mine alone": 10}
    assert any("picture.png" in line for line in heard.warnings)
    assert any("f.jsonl: 1 lines are not JSON and were skipped, the first is 3" in w for w in heard.warnings)


def test_totals_are_those_of_the_files(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", numbered(40))
    found = gather("mine", Corpus(files=f"{folder}/*.txt", heldout=0.3), heard)
    for split in ("train", "heldout"):
        items = list(documents(found.path, split))
        assert totals(found.path, split) == (len(items), sum(len(item.text.encode()) for item in items))
    assert sum(found.facts["documents"].values()) == 40


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", {"a.txt"}),
        ("**/*.txt", {"a.txt", "sub/b.txt", "sub/deep/c.txt"}),
        ("sub", {"sub/b.txt", "sub/d.md", "sub/deep/c.txt"}),
        ("sub/*", {"sub/b.txt", "sub/d.md", "sub/deep/c.txt"}),
        ("log.out", {"log.out"}),
        ("*.out", {"log.out"}),
    ],
)
def test_patterns(tmp_path: Path, cache: Path, heard: Heard, pattern: str, names: set[str]) -> None:
    files = ("a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/d.md", "log.out")
    folder = write(tmp_path / "in", {name: prose(name) for name in files})
    found = gather("mine", Corpus(files=f"{folder}/{pattern}"), heard)
    paths = {name for name in files if prose(name) in texts(found.path).values()}
    assert paths == names


@pytest.mark.parametrize("name", ["$HOME", "~", "[old]", "a*b?"])
@pytest.mark.parametrize("pattern", ["in", "in/*.txt", "**/*.txt"])
def test_any_character_in_a_folder(
    tmp_path: Path, cache: Path, heard: Heard, name: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / name / "in", {"a.txt": prose("a")})
    monkeypatch.chdir(tmp_path / name)
    folder = tmp_path / name
    whole = f"{glob.escape(str(folder))}/{pattern}" if "*" in pattern else f"{folder}/{pattern}"
    expected = {"in": "in/a.txt", "in/*.txt": "a.txt", "**/*.txt": "in/a.txt"}[pattern]
    for files in (whole, pattern):
        found = gather("mine", Corpus(files=files), heard)
        assert texts(found.path) == {expected: prose("a")}


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt", "/*", "/**/deep/*"])
def test_links_are_followed_and_each_file_is_read_once(
    tmp_path: Path, cache: Path, heard: Heard, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", {"deep/a.txt": prose("a"), "deep/deep/b.txt": prose("b")})
    elsewhere = write(tmp_path / "elsewhere", {"c.txt": prose("c")})
    for name in ("up", "deep/up", "deep/again", "deep/deep/again"):  # exponential for whoever goes round
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "deep" / "out").symlink_to(elsewhere, target_is_directory=True)
    (folder / "deep" / "z.txt").symlink_to(folder / "deep" / "a.txt")
    (folder / "nowhere.txt").symlink_to(tmp_path / "nothing")
    found = gather("mine", Corpus(files=f"{folder}{pattern}", heldout=0), heard)
    assert sorted(texts(found.path).values()) == sorted(prose(name) for name in "abc")
    assert found.facts["dropped"] == {}
    assert found.facts["skipped_files"] == {}


def test_pages_without_text_of_ones_own_are_no_index_pages(tmp_path: Path, cache: Path, heard: Heard) -> None:
    links = "".join(f'<li><a href="{n}.html">Chapter {n} of the book</a></li>' for n in range(50))
    files: dict[str, bytes | str] = {
        "a.html": page("a"),
        "empty.html": "<html><body></body></html>",
        "links.html": f"<html><body><ul>{links}</ul></body></html>",
    }
    found = gather("mine", Corpus(files=str(write(tmp_path / "in", files))), heard)
    assert found.facts["dropped"] == {"no text beside links": 2}


def test_exclude(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", {"a.txt": prose("a"), "old/b.txt": prose("b"), "c.txt": prose("c")})
    found = gather("mine", Corpus(files=f"{folder}/**/*.txt", exclude=["**/old/**", "c.*"]), heard)
    assert list(texts(found.path)) == ["a.txt"]
    assert found.facts["skipped_files"] == {"excluded": 2}


def test_dirty_files_cost_themselves_and_a_line(tmp_path: Path, cache: Path, heard: Heard) -> None:
    latin = (prose("café") + " naïve").encode("latin-1")
    folder = write(
        tmp_path / "in",
        {
            "binary.txt": b"\x00\x01\x02" * 400,
            "cut.txt.gz": gzip.compress(os.urandom(3000))[:-200],
            "empty.txt": b" \n",
            "good.txt": prose("good"),
            "latin.txt": latin,
            "not.parquet": b"PAR0 nothing",
            "short.txt": b"Too short.",
            "wrong.jsonl.zst": b"not zstandard",
        },
    )
    found = gather("mine", Corpus(files=str(folder)), heard)
    assert set(texts(found.path)) == {"in/good.txt", "in/latin.txt"}
    assert texts(found.path)["in/latin.txt"] == latin.decode("latin-1")
    assert found.facts["decoded"] == {"windows-1252": 1}
    assert found.facts["dropped"] == {"empty": 1, "shorter than min_document_bytes": 1}
    assert found.facts["skipped_files"] == {"binary": 1, "unreadable": 3}
    for name in ("binary.txt", "cut.txt.gz", "not.parquet", "wrong.jsonl.zst"):
        assert sum(name in line for line in heard.warnings) == 1


def test_a_wrong_column_is_named(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", {"a.txt": prose("a")})
    pyarrow.parquet.write_table(pyarrow.table({"content": [prose("b")]}), folder / "b.parquet")
    gather("mine", Corpus(files=str(folder)), heard)
    assert any("no column 'text' (it has content); set text_field" in line for line in heard.warnings)
    found = gather("mine", Corpus(files=f"{folder}/*.parquet", text_field="content"), heard)
    assert list(texts(found.path).values()) == [prose("b")]


def test_exact_duplicates_are_dropped(tmp_path: Path, cache: Path, heard: Heard) -> None:
    same = prose("same")
    folder = write(
        tmp_path / "in",
        {"a.txt": same, "b.txt": same.upper(), "c.md": same.replace(" ", "  "), "d.txt": prose("d")},
    )
    found = gather("mine", Corpus(files=str(folder)), heard)
    assert set(texts(found.path)) == {"in/a.txt", "in/d.txt"}
    assert found.facts["dropped"] == {"exact duplicate": 2}


def split_of(path: Path) -> dict[str, str]:
    """text -> side"""
    return {item.text: split for split in ("train", "heldout") for item in documents(path, split)}


def test_the_split_does_not_move(tmp_path: Path, cache: Path, heard: Heard) -> None:
    few = write(tmp_path / "few", numbered(60))
    reordered = write(
        tmp_path / "more",
        {f"{999 - int(name[1:4])}{name}": data for name, data in numbered(120).items()},
    )
    before = split_of(gather("a", Corpus(files=str(few), heldout=0.2), heard).path)
    after = split_of(gather("b", Corpus(files=str(reordered), heldout=0.2), heard).path)
    assert 0 < sum(side == "heldout" for side in before.values()) < 60
    assert {text: after[text] for text in before} == before
    assert before == {text: "heldout" if is_heldout(text_hash(text), 0.2) else "train" for text in before}


def test_at_least_one_document_is_held_out(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", numbered(9))
    found = gather("mine", Corpus(files=str(folder), heldout=1e-9), heard)
    held = [item.text for item in documents(found.path, "heldout")]
    assert held == [min(split_of(found.path), key=text_hash)]
    assert found.facts["documents"] == {"train": 8, "heldout": 1}


def test_one_document_stays_for_training_and_the_run_says_so(
    tmp_path: Path, cache: Path, heard: Heard
) -> None:
    folder = write(tmp_path / "in", {"a.txt": prose("only")})
    found = gather("mine", Corpus(files=str(folder), heldout=0.01), heard)
    assert found.facts["documents"] == {"train": 1, "heldout": 0}
    for _ in range(2):  # also when it comes from the cache
        heard.warnings.clear()
        found = gather("mine", Corpus(files=str(folder), heldout=0.01), heard)
        assert "one piece of text; add another" in found.facts["nothing_held_out"]
        (line,) = [line for line in heard.warnings if "nothing is held out" in line]
        assert found.facts["nothing_held_out"] in line


def test_heldout_zero_holds_nothing_out(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", numbered(5))
    found = gather("mine", Corpus(files=str(folder), heldout=0), heard)
    assert found.facts["documents"] == {"train": 5, "heldout": 0}
    assert found.facts["nothing_held_out"] == "heldout: 0"


def test_a_book_is_held_out_in_part_and_else_stays_whole(tmp_path: Path, cache: Path, heard: Heard) -> None:
    book = "\n\n".join(prose(f"chapter {number}", 40) for number in range(400))
    folder = write(tmp_path / "in", {"book.txt": book, "short.txt": prose("short")})
    found = gather("mine", Corpus(files=str(folder), heldout=0.1), heard)
    pieces = [item for item in documents(found.path, "train") if item.id.startswith("in/book")]
    held = [item for item in documents(found.path, "heldout") if item.id.startswith("in/book")]
    assert len(held) >= 1
    assert all(is_heldout(text_hash(item.text), 0.1) for item in held)
    assert len(pieces) <= len(held) + 1
    assert max(len(item.text) for item in pieces) > 200_000

    def first_section(identifier: str) -> int:
        return int(identifier.partition("#")[2].partition("-")[0])

    joined = "\n\n".join(item.text for item in sorted(pieces + held, key=lambda item: first_section(item.id)))
    assert joined == book


def test_max_bytes_stops_after_whole_documents(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", numbered(30))
    size = len(prose("matter 0").encode())
    found = gather("mine", Corpus(files=str(folder), max_bytes=5 * size - 1), heard)
    assert sorted(texts(found.path)) == [f"in/d{number:03}.txt" for number in range(5)]
    assert found.facts["cut_at_max_bytes"] is True


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "corpora.mine: cannot be had: .*there is no such file"),
        (
            {"a.txt": "short", "b.png": b"\x00"},
            "no text remains of .*: 1 shorter than min_document_bytes, 1 files",
        ),
        ({"a.txt": b"\x00" * 300}, "no text remains of .*1 files binary"),
    ],
)
def test_an_empty_corpus_is_an_error_that_says_why(
    tmp_path: Path, cache: Path, heard: Heard, files: dict[str, bytes | str], line: str
) -> None:
    folder = write(tmp_path / "in", files)
    with pytest.raises(InputError, match=line):
        gather("mine", Corpus(files=f"{folder}/*"), heard)
    assert not list(text_root().glob("*/manifest.json"))


def test_the_second_time_comes_from_the_cache_until_a_file_changes(
    tmp_path: Path, cache: Path, heard: Heard
) -> None:
    folder = write(tmp_path / "in", numbered(5))
    corpus = Corpus(files=str(folder))
    first = gather("mine", corpus, heard)
    stamp = (first.path / "train.parquet").stat().st_mtime_ns
    again = gather("other name", corpus, heard)
    assert again.path == first.path
    assert (first.path / "train.parquet").stat().st_mtime_ns == stamp
    assert heard.said[-1].endswith("from the cache")
    write(folder, {"d000.txt": prose("something else")})
    changed = gather("mine", corpus, heard)
    assert changed.path != first.path
    assert prose("something else") in texts(changed.path).values()


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_damaged_text_is_made_again(tmp_path: Path, cache: Path, heard: Heard, damage: str) -> None:
    corpus = Corpus(files=str(write(tmp_path / "in", numbered(5))))
    first = gather("mine", corpus, heard)
    expected = texts(first.path)
    target = first.path / "train.parquet"
    data = target.read_bytes()
    if damage == "missing":
        target.unlink()
    else:
        target.write_bytes(
            data[:-5] if damage == "shorter" else data[:50] + bytes([data[50] ^ 1]) + data[51:]
        )
    from cupola.corpus import gathering

    gathering._verified.cache_clear()  # a flipped byte is found once a process
    again = gather("mine", corpus, heard)
    assert texts(again.path) == expected
    assert any("gathering it again" in line for line in heard.warnings)


def test_unreadable_parquet_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(CupolaError, match="cannot be read as gathered text"):
        list(documents(tmp_path, "train"))


def test_processes_give_what_one_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    files = numbered(300)
    files["lines.jsonl"] = "\n".join(json.dumps({"text": prose(f"line {n}")}) for n in range(300))
    folder = write(tmp_path / "in", files)
    corpus = Corpus(files=str(folder), heldout=0.1)
    found = {}
    for processes in (1, 2):
        monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / f"cache{processes}"))
        monkeypatch.setattr("cupola.corpus.pool.processes_for", lambda cost, n=processes: n)
        path = gather("mine", corpus, heard).path
        found[processes] = [(path / f"{split}.parquet").read_bytes() for split in ("train", "heldout")]
    assert found[1] == found[2]


GATHER = """
import sys, time
import cupola.corpus.gathering as gathering
from cupola.corpus import gather
from cupola.corpus.collecting import Collector
from cupola.display import ConsoleDisplay
from cupola.recipe.corpora import Corpus

if __name__ == "__main__":
    add = Collector.add
    def slow(self, read):
        time.sleep(float(sys.argv[2]))
        add(self, read)
    Collector.add = slow
    print(gather("mine", Corpus(files=sys.argv[1], heldout=0.1), ConsoleDisplay()).path)
"""


@pytest.mark.multiprocess
def test_killed_in_the_middle_nothing_is_taken_for_whole(tmp_path: Path, cache: Path, heard: Heard) -> None:
    folder = write(tmp_path / "in", numbered(50))
    script = tmp_path / "gather_slowly.py"
    script.write_text(GATHER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(text_root().glob(f"{ASIDE}*/train.parquet")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(text_root().glob(f"{ASIDE}*"))
    assert not list(text_root().glob("*/manifest.json"))
    found = gather("mine", Corpus(files=str(folder), heldout=0.1), heard)
    assert found.facts["documents"]["train"] + found.facts["documents"]["heldout"] == 50
    assert not list(text_root().glob(f"{ASIDE}*"))


@pytest.mark.multiprocess
def test_two_at_once_make_it_once(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "in", numbered(40))
    script = tmp_path / "gather_slowly.py"
    script.write_text(GATHER)
    command = [sys.executable, str(script), str(folder), "0.05"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert sorted("from the cache" in error for _, error in outputs) == [False, True]
