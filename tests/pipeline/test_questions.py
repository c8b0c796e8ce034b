"""Where a task's questions come from: held out of the run's own corpus, or asked by a seed that none has."""

import json
from pathlib import Path

import pytest
import yaml

from cupola.chat.conversation import from_json
from cupola.corpus import documents, gather
from cupola.errors import InputError
from cupola.pipeline.questions import find_exam
from cupola.recipe.corpora import Corpus
from cupola.recipe.loading import load
from cupola.recipe.schema import Recipe
from tests.displays import Heard


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    corpora = {
        "sums": {"generate": "addition", "items": 200, "heldout": 0.2},
        "one": {"generate": "copying", "items": 20},
        "two": {"generate": "copying", "items": 20, "seed": 1},
        "sorting": {"generate": "reversing", "items": 40, "heldout": 0.2},
        "all": {"generate": "reversed_addition", "items": 20, "heldout": 0},
    }
    values = yaml.safe_load(tiny_recipe.read_text())
    values["corpora"] |= corpora
    tiny_recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return load(tiny_recipe)


@pytest.mark.parametrize("task", ["sums", "addition"])
def test_a_corpus_or_its_program_ask_what_was_held_out(recipe: Recipe, task: str) -> None:
    heard = Heard()
    exam = find_exam(recipe, {}, task, 1000, heard)
    path = gather("sums", recipe.corpora["sums"], heard).path
    said = {
        split: {from_json(document.text).messages[0].content for document in documents(path, split)}
        for split in ("train", "heldout")
    }
    asked = [question.text for question in exam.questions]
    assert set(asked) == said["heldout"]
    assert not set(asked) & said["train"]
    assert 20 < len(asked) < 60
    assert all(
        exam.marks(question.text, question.answer, question.document) == 1 for question in exam.questions
    )
    assert exam.source == "held-out questions of sums"
    assert [q.text for q in find_exam(recipe, {}, task, 5, heard).questions] == asked[:5]
    assert heard.warnings == []


def test_a_corpus_comes_before_a_program_of_its_name(recipe: Recipe) -> None:
    exam = find_exam(recipe, {}, "sorting", 3, Heard())
    assert exam.source == "held-out questions of sorting"
    question = exam.questions[0]
    words = question.text.rpartition(": ")[2].split(", ")
    assert question.answer == ", ".join(reversed(words))
    assert exam.marks(question.text, question.answer, question.document) == 1


def test_a_program_that_made_no_corpus_asks_by_a_seed_of_its_own(recipe: Recipe) -> None:
    without = recipe.model_copy(update={"corpora": {"two": recipe.corpora["two"]}})
    exam = find_exam(without, {}, "addition", 5000, Heard())
    assert exam.source == "addition, seed 0"
    assert len({question.text for question in exam.questions}) == 4095
    exam = find_exam(recipe.model_copy(update={"corpora": {}}), {}, "sorting", 7, Heard())
    assert len(exam.questions) == 7
    taken = {**recipe.corpora, "sums": recipe.corpora["sums"].model_copy(update={"generate": "sorting"})}
    del taken["sums"]
    assert find_exam(recipe.model_copy(update={"corpora": taken}), {}, "addition", 1, Heard()).source == (
        "addition, seed 2"
    )


def test_a_task_of_the_package_asks_by_itself_or_by_its_corpus(recipe: Recipe) -> None:
    pytest.importorskip("reasoning_gym")
    exam = find_exam(recipe, {}, "reasoning_gym:chain_sum", 12, Heard())
    assert exam.source == "reasoning_gym:chain_sum, seed 2"
    assert len({question.text for question in exam.questions}) == 12
    block = {"generate": "reasoning_gym", "task": "chain_sum", "items": 60, "heldout": 0.2, "seed": 2}
    block["settings"] = {"min_terms": 3, "max_terms": 3}
    chains = {**recipe.corpora, "chains": Corpus.model_validate(block)}
    with_corpus = recipe.model_copy(update={"corpora": chains})
    for task in ("chains", "reasoning_gym:chain_sum"):
        exam = find_exam(with_corpus, {}, task, 5, Heard())
        assert exam.source == "held-out questions of chains"
        assert len(exam.questions) == 5
        for question in exam.questions:
            said = (question.answer, "no", f"It is {question.answer}.")
            right, wrong, nearly = (exam.marks(question.text, text, question.document) for text in said)
            assert right == 1
            assert wrong == 0
            assert 0 < nearly < 1
    with pytest.raises(InputError, match="did you mean chain_sum"):
        find_exam(recipe, {}, "reasoning_gym:chain_sums", 5, Heard())
    with pytest.raises(InputError, match=r"no program that can check answers \(.*reasoning_gym:TASK\)"):
        find_exam(recipe, {}, "reasoning_gym", 5, Heard())


def test_what_a_fallback_gave_cannot_be_checked(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(talk) + "\n")
    fallback = Corpus.model_validate({"files": str(tmp_path / "own.jsonl"), "format": "chat"})
    block = {"generate": "reasoning_gym", "task": "chain_sum", "fallback": fallback}
    without = recipe.model_copy(update={"corpora": {"chains": Corpus.model_validate(block)}})
    monkeypatch.setattr("cupola.corpus.generators.gym.PACKAGE", "no-such-gym")
    with pytest.raises(InputError, match="taken from a fallback"):
        find_exam(without, {}, "chains", 5, Heard())


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (
            "subtraction",
            "subtraction is no corpus of this run, and no program that can check answers (addition, ",
        ),
        ("definitions", "definitions is no corpus of this run, and no program that can check answers"),
        ("manual", "corpus manual is of no program that can check answers"),
        ("copying", "copying made several corpora of this run; name one of one, two"),
        ("all", "corpus all holds nothing out"),
    ],
)
def test_what_is_no_task_is_refused(recipe: Recipe, task: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        find_exam(recipe, {}, task, 10, Heard())
    assert str(caught.value).startswith(line)


def test_pairs_of_the_same_program_are_not_meant(recipe: Recipe) -> None:
    blocks = {"asked": {"generate": "copying"}, "pairs": {"generate": "copying", "format": "preference"}}
    corpora = {name: Corpus.model_validate(block) for name, block in blocks.items()}
    for names, source in [(["asked", "pairs"], "asked"), (["pairs"], "copying, seed")]:
        run = recipe.model_copy(update={"corpora": {name: corpora[name] for name in names}})
        assert source in find_exam(run, {}, "copying", 5, Heard()).source


def test_it_is_said_when_a_corpus_has_changed(recipe: Recipe) -> None:
    heard = Heard()
    facts = gather("sums", recipe.corpora["sums"], heard).facts
    find_exam(recipe, {"sums": facts}, "sums", 1, heard)
    assert heard.warnings == []
    other = gather("two", recipe.corpora["two"], heard).facts
    find_exam(recipe, {"sums": other}, "sums", 1, heard)
    assert heard.warnings[0].startswith("corpus sums has changed since this run")
