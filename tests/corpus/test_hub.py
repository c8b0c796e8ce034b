"""The `huggingface` source: on a dataset that lies on this machine, without its library, without the hub."""

import json
import sys
from pathlib import Path

import pytest

from cupola.corpus import documents, gather
from cupola.errors import InputError
from cupola.recipe.schema import Corpus
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
    assert any("without max_bytes" in line for line in heard.warnings)
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
