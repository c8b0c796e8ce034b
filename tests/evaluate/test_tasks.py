"""Accuracy of checked answers: of one who knows, one who doesn't, and one who does now and then."""

import itertools
import math
import statistics
from types import SimpleNamespace

import pytest

from cupola.corpus.generators import PROGRAMS, marks_of
from cupola.evaluate import tasks
from cupola.evaluate.shares import Share, pass_at, standard_error
from cupola.evaluate.tasks import Question, score_task
from cupola.recipe.corpora import Corpus
from tests.evaluate.stubs import ByteTokenizer

ITEMS = PROGRAMS["addition"].items(3, [])
QUESTIONS = [Question(*ITEMS.make(number)) for number in range(150)]
MARKS = marks_of(Corpus(generate="addition"))
SOLVED = {question.text: question.answer for question in QUESTIONS}


@pytest.fixture
def model(monkeypatch):
    """Puts a function from (question, sampling, seen before how often) to an answer in the model's place."""

    def put(reply):
        calls = []

        def answer(module, tokenizer, template, conversations, max_tokens, precision, **sampling):
            assert len(conversations) <= tasks.ANSWERS_TOGETHER
            calls.append((max_tokens, precision, sampling))
            for (message,) in conversations:
                assert message.role == "user"
            return [SimpleNamespace(text=reply(message.content, sampling)) for (message,) in conversations]

        monkeypatch.setattr(tasks, "answer", answer)
        return calls

    return put


def score(**options):
    return score_task(None, ByteTokenizer(), None, QUESTIONS, MARKS, **options)


def test_who_knows_the_answers_scores_one(model):
    calls = model(lambda question, sampling: f" {SOLVED[question]}\n")
    found = score(attempts=2, ks=(1, 2), precision="bf16")
    assert found.greedy == Share(1.0, 150, 0.0)
    assert found.sampled == Share(1.0, 150, 0.0)
    assert found.pass_at == {1: Share(1.0, 150, 0.0), 2: Share(1.0, 150, 0.0)}
    assert [call[2]["temperature"] for call in calls] == [0] * 3 + [1] * 5
    assert {call[:2] for call in calls} == {(3 + tasks.SPARE_TOKENS, "bf16")}


def test_who_does_not_scores_zero(model):
    model(lambda question, sampling: "I do not know.")
    found = score(ks=(1,))
    assert found.greedy == found.sampled == found.pass_at[1] == Share(0.0, 150, 0.0)


def test_an_answer_that_goes_on_is_wrong(model):
    model(lambda question, sampling: SOLVED[question] + " or so")
    assert score(attempts=0).greedy.accuracy == 0


def test_figures_of_one_who_knows_now_and_then(model):
    counts = itertools.count()
    rights: list[bool] = []

    def reply(question, sampling):
        if sampling["temperature"] == 0:
            return SOLVED[question] if question.endswith("?") else ""
        rights.append(next(counts) % 7 < 2)
        return SOLVED[question] if rights[-1] else "0"

    model(reply)
    found = score(attempts=4, ks=(1, 3))
    greedy = [float(question.text.endswith("?")) for question in QUESTIONS]
    assert 0.3 < found.greedy.accuracy < 0.9
    assert found.greedy.accuracy == pytest.approx(statistics.mean(greedy))
    assert found.greedy.standard_error == pytest.approx(statistics.stdev(greedy) / math.sqrt(150))
    each = [rights[4 * n : 4 * n + 4] for n in range(150)]
    means = [sum(right) / 4 for right in each]
    assert found.sampled.accuracy == pytest.approx(statistics.mean(means))
    assert found.sampled.standard_error == pytest.approx(statistics.stdev(means) / math.sqrt(150))
    assert found.pass_at[1].accuracy == pytest.approx(found.sampled.accuracy)
    threes = [statistics.mean(any(some) for some in itertools.combinations(right, 3)) for right in each]
    assert found.pass_at[3].accuracy == pytest.approx(statistics.mean(threes))
    facts = found.facts()
    assert facts["accuracy"] == found.greedy.accuracy
    assert facts["count"] == 150
    assert facts["sampled"]["attempts"] == 4
    assert set(facts["pass_at"]) == {"1", "3"}


def test_batches_and_attempts_have_seeds_of_their_own(model):
    calls = model(lambda question, sampling: "")
    score(attempts=3, seed=5)
    seeds = [call[2]["seed"] for call in calls if call[2]["temperature"]]
    assert len(set(seeds)) == len(seeds) == math.ceil(450 / tasks.ANSWERS_TOGETHER)
    again = model(lambda question, sampling: "")
    score(attempts=3, seed=6)
    assert not set(seeds) & {call[2]["seed"] for call in again}


@pytest.mark.parametrize("attempts", [1, 4, 7])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(attempts):
    for right in range(attempts + 1):
        outcomes = [True] * right + [False] * (attempts - right)
        for k in range(1, attempts + 1):
            chosen = list(itertools.combinations(outcomes, k))
            assert pass_at(attempts, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def test_standard_error():
    assert standard_error([1.0]) is None
    assert standard_error([]) is None
    values = [0.25, 1.0, 0.0, 0.5]
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / 2)
