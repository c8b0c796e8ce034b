"""The search beside trying everything, and its reasons beside memory, faults and times themselves."""

import itertools
from dataclasses import replace

import pytest

from cupola.plan import candidates
from cupola.plan.candidates import CHECKPOINTING, SCHEDULES, Question, divisors
from cupola.plan.cures import cures
from cupola.plan.execution import Execution
from cupola.plan.figure import Figure
from cupola.plan.hardware import parse
from cupola.plan.layout import Layout
from cupola.plan.request import of_preset
from cupola.plan.search import _shape, search, summary, thought_of, why
from cupola.plan.steptime import StepTime
from cupola.recipe.loading import load_preset

BUBBLE = {"1f1b": 1, "interleaved": 1, "zb-h1": 1 / 3}
WORK = {"none": 1.0, "selective": 1.04, "operators": 1.1, "full": 1.3}


def asked(name, on, length, batch, **settings):
    request = of_preset(name, load_preset(name), length, length * batch)
    return Question(request, Execution(), *parse(on), **settings)


CASES = {
    "one node": asked("llama3-8b", "h100:8", 8192, 16),
    "does not fit simply": asked("llama3-8b", "a100-40:16", 16384, 32),
    "more than powers of two": asked("llama3-70b", "h200:24", 8192, 12),
    "recurrent": asked("mamba2-2.7b", "a100-40:8", 2048, 24),
}


def made_up(run, hardware):
    """Seconds that follow from a layout as the search takes for granted, and every setting counts."""
    layout, batch = run.layout, run.microbatches
    busy = WORK[layout.checkpointing] * (1 + 0.07 * (layout.tensor - 1) + 0.03 * (layout.context - 1))
    busy *= run.tokens / (layout.tensor * layout.pipeline) + 900
    sends = 40 * layout.chunks * (layout.pipeline > 1)
    bubble = (layout.pipeline - 1) * (busy + sends) * BUBBLE[layout.schedule] / layout.chunks
    parts = {
        "compute": batch * busy,
        "sends": batch * sends,
        "gathered": batch * 300.0 * max(0, layout.shard - 1),
        "gradients": 7 * layout.data + 50.0 * (layout.shard == 0),
        "pipeline bubble": bubble,
    }
    seconds, tokens = sum(parts.values()), batch * layout.data * layout.rows * run.sequence_length
    return StepTime(Figure.of(seconds), parts, 1.0, tokens, 0.5)


def everything(question):
    """Every layout of a question that is possible, as long as rows of 4,096 tokens remain on a worker."""
    request, devices = question.request, question.devices
    tensors = [one for one in divisors(devices) if one <= question.hardware.domain]
    for tensor, pipeline, context in itertools.product(tensors, divisors(devices), divisors(devices)):
        workers = tensor * pipeline * context
        if devices % workers or pipeline > request.model.layers or request.batch % (devices // workers):
            continue
        if context > 1 and request.sequence_length // context < candidates.LEAST_PIECE:
            continue
        shape = Layout(data=devices // workers, tensor=tensor, pipeline=pipeline, context=context)
        schedules = SCHEDULES if pipeline > 1 else SCHEDULES[:1]
        stages = range(4 if shape.shards > 1 else 1)
        rows = divisors(request.batch // shape.data)
        for (schedule, chunks), shard, mode, number in itertools.product(
            schedules, stages, CHECKPOINTING, rows
        ):
            settings = {"schedule": schedule, "chunks": chunks, "shard": shard, "rows": number}
            layout = replace(shape, **settings, checkpointing=mode)
            if not question.faults(layout):
                yield layout


LONG = ("does not fit simply", "more than powers of two")
TRIED = [
    *((name, "made up") for name in CASES),
    *(pytest.param(name, "as planned", marks=[pytest.mark.slow] * (name in LONG)) for name in CASES),
]


@pytest.mark.parametrize(("name", "time"), TRIED)
def test_trying_everything_finds_the_same(monkeypatch, name, time):
    if time == "made up":
        monkeypatch.setattr(candidates, "step_time", made_up)
    question = CASES[name]
    best: dict[tuple, float] = {}
    for layout in everything(question):
        if question.memory(layout).fits(question.hardware.memory, question.margin):
            step = question.time(layout)
            seconds = step.seconds.value / step.tokens
            best[_shape(layout)] = min(seconds, best.get(_shape(layout), seconds))
    wanted = sorted(best.values())[:10]
    found = search(question, 10).best
    near = 1e-9 if time == "made up" else 2e-3
    assert [one.per_token for one in found] == pytest.approx(wanted, rel=near)
    for one in found:
        assert not question.faults(one.layout)
        assert one.memory.fits(question.hardware.memory, question.margin)


@pytest.mark.parametrize("name", CASES)
def test_every_reason_is_true(monkeypatch, name):
    monkeypatch.setattr(candidates, "step_time", made_up)
    question = CASES[name]
    found = search(question, 3)
    best = found.best[0].per_token
    kinds = set()
    for one in found.rejected:
        kinds.add(one.kind)
        assert one.words
        assert "\n" not in one.words
        if one.kind == "impossible":
            assert question.faults(one.layout)
        elif one.kind == "memory":
            memory = question.memory(one.layout)
            over = memory.total - question.allowed
            assert over == pytest.approx(one.amount)
            assert over > 0
            assert one.words.startswith(f"{over / 2**30:,.1f} GiB too much, mostly {one.part}")
            assert max(memory.components().values()) == memory.components()[one.part]
        elif one.kind == "slower" and not one.least:
            step = question.time(one.layout)
            assert step.seconds.value / step.tokens == pytest.approx(one.amount)
            assert one.amount >= best
            if one.amount > best * (1 + 1e-9):
                assert one.words.startswith(f"{one.amount / best - 1:.1%} slower, {one.part}")
    assert {"rule", "slower"} <= kinds
    assert sum(one.count for one in summary(found.rejected)) + len(found.best) == found.looked


def test_a_floor_is_one(monkeypatch):
    """Groups that are left out as slower have no layout that fits below what is said of them."""
    monkeypatch.setattr(candidates, "step_time", made_up)
    question = CASES["does not fit simply"]
    said: dict[tuple, float] = {}
    for one in search(question, 1).rejected:
        if one.kind == "slower" and one.least:
            layout = one.layout
            alone = one.count == len(CHECKPOINTING) * (4 if layout.shards > 1 else 1)
            for schedule, chunks in [(layout.schedule, layout.chunks)] if alone else SCHEDULES:
                key = _shape(layout), layout.rows, schedule, chunks
                said[key] = min(one.amount, said.get(key, one.amount))
    held = 0
    for layout in everything(question):
        key = _shape(layout), layout.rows, layout.schedule, layout.chunks
        if key in said and not question.excess(question.memory(layout)):
            step = question.time(layout)
            assert step.seconds.value / step.tokens >= said[key] * (1 - 1e-9)
            held += 1
    assert held > 100


def test_layouts_that_can_not_be_are_told(monkeypatch):
    monkeypatch.setattr(candidates, "step_time", made_up)
    titles = {one.title: one for one in summary(search(asked("llama3-8b", "h100:96", 8192, 96)).rejected)}
    assert titles["tensor does not cut the model evenly"].words.startswith("tensor 3: ")
    assert titles["tensor crosses the fast domain of 8"].layout.tensor == 12
    assert "more pipeline stages than layers" in titles
    assert "context leaves a worker less than 4,096 tokens of a row" in titles


def test_the_same_question_has_the_same_answer():
    question = CASES["one node"]
    assert search(question, 5) == search(question, 5)


def test_what_is_stated_stays(monkeypatch):
    monkeypatch.setattr(candidates, "step_time", made_up)
    given = {"tensor": 16, "shard": 1, "checkpointing": "full", "rows": 1}
    found = search(replace(asked("llama3.1-405b", "h200:512", 8192, 64), given=given | {"tensor": 4}))
    assert found.best
    for one in found.best:
        layout = one.layout
        assert (layout.tensor, layout.rows, layout.checkpointing) == (4, 1, "full")
        assert layout.shard == 1
    assert not search(replace(CASES["one node"], given=given)).best


def test_why_a_layout_is_not_taken(monkeypatch):
    monkeypatch.setattr(candidates, "step_time", made_up)
    question = asked("llama3-8b", "h100:16", 8192, 16)
    best = search(question, 1).best[0]
    assert why(question, {"tensor": best.layout.tensor, "pipeline": best.layout.pipeline}, best) == (
        "the best there is"
    )
    assert why(question, {"tensor": 16}, best).startswith("crosses the fast domain of 8; ")
    assert "GiB too much, mostly optimizer states" in why(
        question, {"shard": 0, "tensor": 1, "pipeline": 1, "context": 1}, best
    )
    assert "slower, compute" in why(question, {"checkpointing": "full"}, best)
    assert "does not divide" in why(question, {"tensor": 3}, best)
    for given in thought_of(question):
        assert why(question, given, best)


@pytest.mark.parametrize(
    ("name", "on", "length", "settings"),
    [
        ("llama3-8b", "h100:8", 131072, {"data": 1, "context": 8, "shard": 3}),
        ("llama3-70b", "h100:64", 8192, {"data": 64, "shard": 3, "rows": 8}),
        ("llama3-8b", "a100-40:1", 8192, {}),
    ],
)
def test_cures_fit_and_cost_least_first(name, on, length, settings):
    request = of_preset(name, load_preset(name), length, None)
    hardware, devices = parse(on)
    layout = Layout(**settings)
    question = Question(request, Execution(), hardware, devices)
    assert question.excess(question.memory(layout)) > 0
    found = cures(request, layout, Execution(), hardware, devices, 0.05)
    assert 1 <= len(found) <= 3
    for cure in found:
        assert not request.faults(cure.layout, cure.devices)
        memory = question.memory(cure.layout)
        assert memory.fits(hardware.memory, 0.05)
        assert memory.total == cure.total
        assert cure.words.startswith("--")
    fastest = found[:-1] if len(found) == 3 else found
    assert [one.per_token for one in fastest] == sorted(one.per_token for one in fastest)
