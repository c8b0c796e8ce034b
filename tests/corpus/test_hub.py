"""The `huggingface` source: on a dataset that lies on this machine, without its library, without the hub."""

import json
import sys
from pathlib import Path

import pytest

from cupola.corpus import documents, gather
from cupola.corpus.reading import Reading
from cupola.corpus.sources.hub import HuggingFaceSource
from cupola.errors import InputError
from cupola.recipe.corpora import Corpus
from tests.corpus.corpus_fakes import prose
from tests.displays import Heard


def test_a_data_set_is_streamed(tmp_path: Path, cache: Path, heard: Heard) -> None:
    pytest.importorskip("datasets")
    rows = [{"body": prose(f"row {number}"), "n": number} for number in range(30)] + [{"body": None, "n": 30}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    corpus = Corpus(huggingface=str(tmp_path / "set"), text_field="body", heldout=0.1, licence="CC0")
    found = gather("web", corpus, heard)
    items = [item for split in ("train", "heldout") for item in documents(found.path, split)]
    assert sorted(item.text for item in items) == sorted(row["body"] for row in rows[:30])
    assert {item.licence for item in items} == {"CC0"}
    assert found.facts["dropped"] == {"no text in field 'body'": 1}
    assert heard.warnings == []  # a folder is no stream without end
    assert gather("web", corpus, heard).path == found.path


def test_a_changed_folder_is_noticed_and_an_unchanged_one_not_read(
    tmp_path: Path, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "set" / "train.jsonl"
    file.parent.mkdir()
    corpus = Corpus(huggingface=str(file.parent), heldout=0)
    load, loaded = datasets.load_dataset, []

    def counted(*arguments: object, **options: object) -> object:
        loaded.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", counted)
    for number, subjects in enumerate((["one"], ["one", "two"], ["one", "six"]), 1):
        file.write_text("".join(json.dumps({"text": prose(subject)}) + "\n" for subject in subjects))
        for _ in range(2):
            found = gather("web", corpus, heard)
            assert [item.text for item in documents(found.path, "train")] == [prose(s) for s in subjects]
        assert len(loaded) == number


def test_a_folder_that_is_no_dataset_takes_the_fallback(tmp_path: Path, cache: Path, heard: Heard) -> None:
    pytest.importorskip("datasets")
    corpus = Corpus(huggingface=str(tmp_path), fallback=Corpus(python="code", max_bytes=20_000))
    found = gather("web", corpus, heard)
    assert found.facts["taken"]["fallback"] is True
    assert f"{tmp_path} cannot be read by datasets" in found.facts["taken"]["because"][0]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("b.txt", b"\x8a\xff\x00 binary"),
        ("b.jsonl", b'{"text": "aa"}\n{"text": oops\n'),
        ("b.parquet", b"no table at all"),
    ],
)
def test_the_file_that_cannot_be_read_is_named(
    tmp_path: Path, cache: Path, heard: Heard, name: str, data: bytes
) -> None:
    datasets = pytest.importorskip("datasets")
    verbosity = datasets.logging.get_verbosity()
    good = {".txt": b"fine\n", ".jsonl": b'{"text": "fine"}\n', ".parquet": b""}[Path(name).suffix]
    if good:
        (tmp_path / f"a{Path(name).suffix}").write_bytes(good)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as refused:
        gather("web", Corpus(huggingface=str(tmp_path), min_document_bytes=0), heard)
    line = str(refused.value)
    assert f"{tmp_path / name}: cannot be read by datasets (" in line
    assert "mend or remove it" in line
    assert "gather it again" not in line
    assert datasets.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("name", ["/tmp/nosuch", "./nosuch", "../a/b", "~/nosuch", "a/b/c"])
def test_a_missing_folder_is_not_asked_of_the_hub(cache: Path, heard: Heard, name: str) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"nosuch: no such folder|a/b.*: no such folder"):
        gather("web", Corpus(huggingface=name), heard)


def test_a_file_is_no_folder(tmp_path: Path, cache: Path, heard: Heard) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl: is no folder; a single file is given by `files`"):
        gather("web", Corpus(huggingface=str(tmp_path / "a.jsonl")), heard)


def test_a_stream_of_the_hub_warns_where_it_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("cupola.corpus.sources.hub.HuggingFaceSource._rows", lambda self: iter(()))
    report = Reading()
    HuggingFaceSource(Corpus(huggingface="a/b")).open(Path(), report)
    assert report.warnings == ["without max_bytes the whole dataset is streamed"]


def test_without_the_library_the_fallback_is_taken(
    cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    corpus = Corpus(huggingface="a/b", fallback=Corpus(python="code", max_bytes=20_000))
    found = gather("web", corpus, heard)
    assert found.facts["taken"]["fallback"] is True
    assert "pip install 'cupola[huggingface]'" in found.facts["taken"]["because"][0]


def test_a_hub_that_cannot_be_reached_is_one_line(
    cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    import huggingface_hub

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(InputError, match=r"a/b cannot be had from the hub \(no route to host\)"):
        gather("web", Corpus(huggingface="a/b"), heard)
