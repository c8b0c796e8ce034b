"""Tasks of reasoning_gym as a generator, beside the package itself: its items and what its scorers say."""

import subprocess
import sys
from pathlib import Path

import pytest

from cupola.characters import normalise_characters
from cupola.chat.conversation import from_json
from cupola.corpus import documents, gather
from cupola.corpus.generators import document_id, gym, marks_of, program_of
from cupola.corpus.generators.gym import EVALUATED, REFUSED, Gym
from cupola.corpus.generators.harmless import is_harmless_formula, is_harmless_literal, is_harmless_sum
from cupola.corpus.generators.items import number_below
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.recipe.corpora import Corpus
from tests.displays import Heard

SEED = 3
TASKS = ("chain_sum", "spell_backward", "countdown", "binary_matrix", "simple_integration", "mini_sudoku")


def corpus(task: str, **more: object) -> Corpus:
    return Corpus.model_validate({"generate": "reasoning_gym", "task": task, "seed": SEED, **more})


def theirs(task: str, **settings: object):  # type: ignore[no-untyped-def]
    """The package's own data set, of the seed that the recipe's comes to."""
    package = pytest.importorskip("reasoning_gym")
    seed = number_below(gym.SEEDS, SEED, "reasoning_gym", task)
    return package.create_dataset(task, seed=seed, size=50, **settings)


def installed() -> None:
    pytest.importorskip("reasoning_gym")


@pytest.mark.oracle
@pytest.mark.parametrize("task", TASKS)
def test_items_and_marks_are_the_packages(task: str) -> None:
    data, block = theirs(task), corpus(task)
    program, marks = program_of(block), marks_of(block)
    assert program is not None
    assert marks is not None
    items = program.items(SEED, [])
    others = [data[number]["answer"] for number in range(6)]
    for number in reversed(range(6)):
        entry = data[number]
        question, answer = items.make(number)
        assert question == entry["question"].strip("\n")
        assert answer == normalise_characters(entry["answer"]).strip("\n")
        for said in (entry["answer"], *others, "1", f"it is {entry['answer']} I think"):
            found = marks(question, said, document_id("reasoning_gym", number))
            expected = data.score_answer(said, entry)
            assert found == expected, said
        assert marks(question, f" {answer}\n", document_id("reasoning_gym", number)) == 1


@pytest.mark.oracle
def test_marks_between_right_and_wrong() -> None:
    data, marks = theirs("chain_sum"), marks_of(corpus("chain_sum"))
    assert marks is not None
    entry = data[0]
    said = f"The answer is {entry['answer']}"
    found = marks(entry["question"], said, "generate:reasoning_gym:0")
    assert found == data.score_answer(said, entry)
    assert 0 < found < 1


@pytest.mark.oracle
def test_settings_are_the_tasks_own() -> None:
    settings = {"min_terms": 5, "max_terms": 5, "min_digits": 1, "max_digits": 1}
    data = theirs("chain_sum", **settings)
    made = Gym("chain_sum", settings).items(SEED, [])
    assert [made.make(n)[1] for n in range(20)] == [data[n]["answer"] for n in range(20)]
    listed = {"operators": ["+", "*"]}
    data = theirs("basic_arithmetic", operators=("+", "*"))
    made = Gym("basic_arithmetic", listed).items(SEED, [])
    assert [made.make(n)[1] for n in range(20)] == [data[n]["answer"] for n in range(20)]


def test_neighbouring_seeds_ask_other_questions() -> None:
    installed()
    asked = [{Gym("chain_sum", {}).items(seed, []).make(n)[0] for n in range(60)} for seed in (0, 1)]
    assert not asked[0] & asked[1]


def test_items_are_the_same_in_other_processes() -> None:
    installed()
    code = (
        "from cupola.corpus.generators.gym import Gym\n"
        f"print([Gym(task, {{}}).items({SEED}, []).make(7) for task in {TASKS}])"
    )
    run = lambda seed: subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
    ).stdout.strip()
    assert run("1") == run("2") == str([Gym(task, {}).items(SEED, []).make(7) for task in TASKS])


def test_refused_tasks_are_tasks() -> None:
    installed()
    from reasoning_gym.factory import DATASETS

    assert set(REFUSED) | set(EVALUATED) <= set(DATASETS)
    assert not set(REFUSED) & set(EVALUATED)


@pytest.mark.parametrize(
    ("task", "settings", "line"),
    [
        ("chain_sums", {}, "reasoning_gym has no task chain_sums; did you mean chain_sum?"),
        ("qqqqqq", {}, "reasoning_gym has no task qqqqqq; there are ab, "),
        ("word_ladder", {}, "reasoning_gym word_ladder can't be had: its items differ"),
        ("rush_hour", {}, "reasoning_gym rush_hour can't be had: it gives no answer"),
        ("chain_sum", {"min_term": 2}, "has no setting min_term; did you mean min_terms?"),
        ("chain_sum", {"seed": 2}, "seed is no setting; the corpus has its own seed"),
        ("chain_sum", {"size": 2}, "size is no setting; the corpus has its own items"),
        ("chain_sum", {"min_terms": 0}, "chain_sum refuses its settings (min_terms must be positive)"),
        ("chain_sum", {"min_terms": "two"}, "chain_sum refuses its settings ("),
    ],
)
def test_what_is_refused(task: str, settings: dict[str, object], line: str) -> None:
    installed()
    with pytest.raises(InputError) as caught:
        gather("puzzles", corpus(task, settings=settings), Display())
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola.corpus.generators.gym.PACKAGE", "no-such-gym")
    line = "no-such-gym is not installed (pip install 'cupola[no-such-gym]')"
    with pytest.raises(InputError) as caught:
        gather("puzzles", corpus("chain_sum"), Display())
    assert str(caught.value) == (f"corpora.puzzles: cannot be had: generate reasoning_gym chain_sum: {line}")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError) as caught:
        Gym("chain_sum", {}).items(0, [])
    assert str(caught.value) == line
    heard = Heard()
    fallback = {"generate": "addition", "items": 50}
    facts = gather("puzzles", corpus("chain_sum", fallback=fallback), heard).facts
    assert facts["taken"]["fallback"]
    assert line in heard.warnings[0]


def test_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document is one of the package's items and finds its own marks again; sides share no question."""
    installed()
    block = corpus("letter_counting", items=120, heldout=0.2)
    made = gather("letters", block, Display())
    marks = marks_of(block)
    assert marks is not None
    asked: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split in ("train", "heldout"):
        for document in documents(made.path, split):  # type: ignore[arg-type]
            question, answer = from_json(document.text).messages
            assert marks(question.content, answer.content, document.id) == 1
            asked[split].add(question.content)
    assert len(asked["train"] | asked["heldout"]) == 120
    assert 10 < len(asked["heldout"]) < 50
    assert gather("letters", block, Display()).path == made.path
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert gather("letters", block, Display()).path != made.path, "another version's items"


def test_an_item_that_has_become_another_is_said() -> None:
    installed()
    marks = marks_of(corpus("chain_sum"))
    assert marks is not None
    with pytest.raises(CupolaError, match="item 5 asks something else now"):
        marks("What was asked?", "7", "generate:reasoning_gym:5")


@pytest.mark.parametrize("task", sorted(EVALUATED))
def test_right_answers_are_harmless_and_code_is_not_run(task: str, tmp_path: Path) -> None:
    installed()
    made, marks = Gym(task, {}).items(SEED, []), marks_of(corpus(task))
    assert marks is not None
    assert all(EVALUATED[task](made.make(number)[1]) for number in range(8))
    target = tmp_path / "run"
    for said in (f"open({str(target)!r}, 'w')", f"[open({str(target)!r}, 'w')]", "9**9**9**9", "[" * 500):
        assert marks(made.make(0)[0], said, "generate:reasoning_gym:0") < 0.1
        assert not target.exists()


def test_what_is_harmless() -> None:
    assert is_harmless_literal("[['Q', '_'], [1, -2]]")
    assert is_harmless_literal("1 0 1\n0 1 0")
    assert not is_harmless_literal("[x for x in y]")
    assert not is_harmless_literal("9 ** 9")
    assert is_harmless_sum("(3 + 4) * 5 - 6 / 2")
    assert is_harmless_sum("2 ** 3")
    for said in (
        "f(3)",
        "9**99**9",
        "(9**99)**99",
        "9**(9*9*9)",
        "9**1000",
        "'a'",
        "a.b",
        "exp(3)",
        "3!",
        "1e3j",
    ):
        assert not is_harmless_sum(said), said
    assert is_harmless_formula("x**(3/2)/2 - exp(2*x) + sin(x)**2 + (x**2 + 1)**3 + C")
    for said in (
        "open('x')",
        "exp(3, x)",
        "x.diff()",
        "exp(3)(4)",
        "x**1000",
        "log(x=3)",
        "[3]",
        "lambda: 3",
    ):
        assert not is_harmless_formula(said), said
