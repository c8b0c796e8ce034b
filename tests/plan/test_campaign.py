"""The whole run: sums over the trainer's own steps by a plain loop, closed forms, published figures."""

import dataclasses
import math

import pytest

from cupola.errors import InputError
from cupola.plan import campaign, course, steptime, work
from cupola.plan.advice import advise
from cupola.plan.campaign import Settings
from cupola.plan.cost import Power, Rent
from cupola.plan.execution import Execution
from cupola.plan.failures import rates
from cupola.plan.figure import Figure
from cupola.plan.flops import CONVENTIONS
from cupola.plan.goodput import DAY, causes_of, expected
from cupola.plan.hardware import parse
from cupola.plan.layout import Layout
from cupola.plan.request import of_preset, of_stage
from cupola.plan.steptime import StepTime
from cupola.plan.stock import Stock, repetitions
from cupola.plan.work import Asked
from cupola.recipe.clock import Clock
from cupola.recipe.loading import load, load_preset
from cupola.recipe.quantity import Quantity

GROWING = (
    "stages.pretrain.tokens=600k tokens",
    "stages.pretrain.sequence_length={0%: 96, 23%: 256, 70%: 64}",
    "stages.pretrain.batch_tokens={0%: 1000, 10%: 4096, 41%: 8192, 80%: 5000}",
)
STAIRS = (
    "stages.pretrain.sequence_length={points: {0%: 32, 60%: 256}, between: linear}",
    "stages.pretrain.batch_tokens={points: {0%: 1024, 90%: 8192}, between: linear}",
)
STEPS = ("stages.pretrain.tokens=77 steps",)


@pytest.mark.parametrize("overrides", [(), GROWING, STAIRS, STEPS])
def test_stretches_are_the_clocks_own_steps(overrides):
    clock = Clock(load("quickstart", overrides).stages["pretrain"])
    plain = [(start, end, clock.sequence_length(start)) for start, end in clock.steps()]
    found = [
        (clock.boundary(step), clock.boundary(step + 1), one.sequence_length)
        for one in clock.stretches()
        for step in range(one.step, one.step + one.steps)
    ]
    assert found == plain
    for one in clock.stretches():
        assert (clock.boundary(one.step), clock.boundary(one.step + one.steps)) == (one.start, one.end)
        # Whole rows: a batch is as asked to a row.
        assert abs(one.end - one.start - one.steps * one.batch_tokens) < max(
            one.batch_tokens, 2 * one.sequence_length
        )


@pytest.mark.parametrize("overrides", [(), GROWING, STAIRS, STEPS])
@pytest.mark.parametrize(
    "interval", [Quantity(10, "%"), Quantity(25, "%"), Quantity(7, "steps"), Quantity(50_000, "tokens")]
)
def test_evaluations_and_checkpoints_are_as_many_as_the_loop_makes(overrides, interval):
    clock = Clock(load("quickstart", overrides).stages["pretrain"])
    steps = list(clock.steps())
    assert course.times_due(clock, interval) == sum(clock.due(interval, *step) for step in steps[:-1])


def test_the_work_is_a_plain_loop_over_all_steps(monkeypatch):
    """With a step time that anyone can compute: a second for each row, half for each microbatch."""

    def simple(run, hardware):
        rows = run.microbatches * run.layout.data * run.layout.rows
        seconds = rows + 0.5 * run.microbatches
        return StepTime(Figure(seconds, 0.5 * seconds, 2 * seconds), {}, 0.0, rows * run.sequence_length, 0.4)

    monkeypatch.setattr(work, "step_time", simple)
    monkeypatch.setattr(work, "TIMED", 100)
    recipe = load("quickstart", GROWING)
    asked = _asked(recipe, "pretrain", Layout(data=2, rows=3))
    run = work.stage_run(asked, parse("h100:2")[0])
    clock = Clock(recipe.stages["pretrain"])
    seconds = 0.0
    for start, end in clock.steps():
        length = clock.sequence_length(start)
        wanted = math.ceil(clock._phase(clock.step_at(start)).size / length)
        rows = min(3 * 256 // length, math.ceil(wanted / 2))
        microbatches = math.ceil(wanted / (2 * rows))
        seconds += microbatches * 2 * rows + 0.5 * microbatches
        assert 2 * rows * microbatches * length >= end - start - length
    assert run.seconds["steps"].value == pytest.approx(seconds)
    assert (run.seconds["steps"].low, run.seconds["steps"].high) == pytest.approx(
        (0.5 * seconds, 2 * seconds)
    )
    assert run.course.steps == clock.step_count
    assert run.course.tokens == clock.end
    flops = sum(
        CONVENTIONS["exact"].per_token(
            asked.request.model, asked.request.vocabulary, clock.sequence_length(a)
        )
        * (b - a)
        for a, b in clock.steps()
    )
    assert run.flops["exact"] == pytest.approx(flops)


def test_of_the_stairs_of_a_ramp_some_are_computed(monkeypatch):
    """Against all of them."""
    asked = _asked(load("quickstart", STAIRS), "pretrain", Layout())
    hardware = parse("h100")[0]
    monkeypatch.setattr(work, "TIMED", 6)
    some = work.stage_run(asked, hardware)
    monkeypatch.setattr(work, "TIMED", 10**6)
    every = work.stage_run(asked, hardware)
    assert len({(one.batch_tokens, one.sequence_length) for one in asked.course.stretches}) == 15
    assert some.work.value == pytest.approx(every.work.value, rel=0.15)
    assert some.step == every.step


def _asked(recipe, name, layout, execution=None):
    return Asked(of_stage(recipe, name), layout, execution or Execution(), course.of_stage(recipe, name, {}))


def test_evaluation_is_a_third_of_a_step_for_each_token():
    recipe = load("quickstart")
    run = work.stage_run(_asked(recipe, "midtrain", Layout()), parse("h100")[0])
    texts = 4  # speeches, prose, manuals, hidden
    assert run.course.evaluation_tokens == texts * recipe.evaluate.tokens
    token = run.step.seconds.value / run.step.tokens
    assert run.seconds["evaluation"].value == pytest.approx(
        run.course.evaluations * run.course.evaluation_tokens * token / 3
    )


def test_a_stage_that_samples_counts_answers_at_full_length():
    recipe = load(
        "quickstart", ["stages.rl.policy={prompts: 4, completions: 2, updates: 2, max_completion_length: 12}"]
    )
    policy = recipe.stages["rl"].policy
    found = course.of_stage(recipe, "rl", {})
    assert found.steps == 40
    questions = policy.prompts // 2
    assert found.tokens == 40 * questions * policy.completions * policy.max_completion_length
    assert found.answers == course.Answers(20, policy.prompts * policy.completions, 12)
    assert found.forwards == 1  # the policy has moved between answers and steps
    run = work.stage_run(_asked(recipe, "rl", Layout()), parse("h100")[0])
    # As few answers as these: a token takes the reading of the weights.
    hardware = parse("h100")[0]
    weights = 2 * 5_311_232 / hardware.bandwidth / work.DECODING
    assert run.seconds["sampling"].value == pytest.approx(20 * 12 * weights, rel=0.01)


def test_a_horizon_in_epochs_takes_what_an_earlier_run_counted():
    recipe = load("quickstart")
    with pytest.raises(course.UnknownHorizon, match="dpo: its horizon is in epochs"):
        course.of_stage(recipe, "dpo", {})
    found = course.of_stage(recipe, "dpo", {"slips": Stock(100_000, counted=True)})
    assert found.tokens == pytest.approx(100_000, abs=256)
    assert found.repeated[0].epochs == pytest.approx(1, abs=0.01)
    assert found.forwards == 1  # the reference's


def test_epochs_follow_the_mixtures_way():
    stage = load("quickstart", ["stages.sft.data={0%: {sums: 1}, 50%: {sums: 1, capitals: 3}}"]).stages["sft"]
    found = {
        one.source: one.epochs
        for one in repetitions(stage, 1000, {"sums": Stock(100, True), "capitals": Stock(50, False)})
    }
    assert found == {"sums": pytest.approx(6.25), "capitals": pytest.approx(7.5)}


@pytest.fixture
def gpt3():
    model = load_preset("gpt3-175b")
    request = dataclasses.replace(of_preset("gpt3-175b", model, 2048, None), batch=1536)
    layout = Layout(data=16, shard=3, tensor=8, pipeline=8)
    return Asked(request, layout, Execution(), course.of_model(300 * 10**9, 1536 * 2048, 2048))


def bill_of(asked, hardware, settings=Settings(), of_recipe=False):  # noqa: B008
    power = Power(hardware.watts, hardware.host_share * hardware.watts, 0.76)
    return campaign.campaign([asked], hardware, settings, power, 0.429, Rent(2.0), of_recipe)


def test_gpt_3_is_3_14e23_flops(gpt3):
    """Brown et al. 2020, table D.1: 3.14e23 for 174.6B parameters and 300B tokens."""
    run = bill_of(gpt3, parse("a100:1024")[0])
    assert run.flops["6nd"] == pytest.approx(3.14e23, rel=0.002)
    assert run.tokens == pytest.approx(300e9, rel=1e-5)
    assert run.steps == math.ceil(300e9 / (1536 * 2048))


def test_the_bill_is_that_of_the_days(gpt3):
    run = bill_of(gpt3, parse("a100:1024")[0], Settings(simulate=0))
    step = steptime.step_time(gpt3.request.run(gpt3.layout, gpt3.execution), parse("a100:1024")[0])
    assert run.work.value == pytest.approx(run.steps * step.seconds.value / DAY)
    happened = run.interruptions
    assert run.days.value == pytest.approx(run.work.value / happened.goodput.value)
    assert happened.goodput.value == pytest.approx(
        expected(causes_of(rates(1024)), happened.practice).goodput
    )
    assert run.bill.device_hours.value == pytest.approx(run.days.value * 24 * 1024)
    assert run.bill.dollars.value == pytest.approx(2 * run.bill.device_hours.value)
    assert run.bill.carbon.value == pytest.approx(0.429 * run.bill.energy.value)
    for figure in (run.work, run.days, run.bill.dollars, run.bill.energy):
        assert figure.low < figure.value < figure.high
    # Where it is played, much the same.
    played = bill_of(gpt3, parse("a100:1024")[0], Settings(simulate=200))
    assert played.days.value == pytest.approx(run.days.value, rel=0.02)
    assert sum(played.interruptions.number.values()) == pytest.approx(sum(happened.number.values()), rel=0.5)


def test_the_interval_is_the_recipes_unless_the_run_would_not_get_on(gpt3):
    hardware = parse("a100:1024")[0]
    rare = dataclasses.replace(gpt3, course=dataclasses.replace(gpt3.course, saves=200))
    own = bill_of(rare, hardware, Settings(simulate=0), of_recipe=True).interruptions
    days = bill_of(rare, hardware, Settings(simulate=0)).work.value
    assert own.why == "the recipe's"
    assert own.practice.interval == pytest.approx(days * DAY / 200)
    assert own.best[1] > own.goodput.value
    once = dataclasses.replace(gpt3, course=dataclasses.replace(gpt3.course, saves=1))
    found = bill_of(once, hardware, Settings(simulate=0), of_recipe=True).interruptions
    assert found.why.startswith("the best there is; at the recipe's")
    stated = bill_of(rare, hardware, Settings(interval=3600.0, stall=60.0), of_recipe=True).interruptions
    assert (stated.why, stated.practice.interval, stated.practice.stall) == ("stated", 3600.0, 60.0)


def test_one_node_has_no_interruptions_but_stands_still_for_checkpoints():
    model = load_preset("gpt2-small")
    request = dataclasses.replace(of_preset("gpt2-small", model, None, None), batch=512)
    asked = Asked(request, Layout(data=8), Execution(), course.of_model(10**10, 512 * 1024, 1024))
    asked = dataclasses.replace(asked, course=dataclasses.replace(asked.course, saves=5))
    run = bill_of(asked, parse("h100:8")[0], Settings(stall=100.0))
    assert (run.interruptions.counted, run.interruptions.number) == (False, {})
    assert run.days.value * DAY == pytest.approx(run.work.value * DAY + 500)


def test_a_checkpoint_is_fp32_weights_and_states():
    request = of_preset("llama3-8b", load_preset("llama3-8b"), None, None)
    assert campaign.checkpoint_bytes(request, Execution()) == 12 * 8_030_261_248
    assert campaign.checkpoint_bytes(request, Execution(precision="fp32")) == 12 * 8_030_261_248


INTERLEAVED = {"tensor": 8, "shard": 1, "schedule": "interleaved", "chunks": 4}


@pytest.mark.parametrize(
    ("name", "tokens", "devices", "layout", "rows", "hours"),
    [
        ("llama2-7b", 2e12, "a100:1024", {"data": 1024, "shard": 3}, 1024, 184_320),
        ("llama2-70b", 2e12, "a100:1024", INTERLEAVED | {"data": 32, "pipeline": 4}, 1024, 1_720_320),
        ("llama3-8b", 15e12, "h100:1024", {"data": 1024, "shard": 3}, 1024, 1_300_000),
        ("llama3-70b", 15e12, "h100:2048", INTERLEAVED | {"data": 64, "pipeline": 4}, 1024, 6_400_000),
        (
            "llama3.1-405b",
            15.6e12,
            "h100:16384",
            INTERLEAVED | {"data": 64, "pipeline": 16, "context": 2},
            2048,
            30_840_000,
        ),
    ],
)
def test_hours_of_the_llamas_are_bounded_by_what_was_published(name, tokens, devices, layout, rows, hours):
    """Model cards count the whole programme: a plan may be as far below them as the 18% of peak allow that
    Llama 3 8B's imply, and hardly above them."""
    model = load_preset(name)
    length = 4096 if "llama2" in name else 8192
    request = dataclasses.replace(of_preset(name, model, length, None), batch=rows)
    steps = course.of_model(int(tokens), rows * length, length)
    asked = Asked(request, Layout(**layout), Execution(), steps)
    run = bill_of(asked, parse(devices)[0], Settings(simulate=0))
    assert 0.3 * hours < run.bill.device_hours.value < 1.35 * hours


def test_batches_grow_with_the_model_as_gpt_3s():
    assert course.usual_batch(125e6, 2048, Layout()) * 2048 == 2**19
    assert course.usual_batch(175e9, 2048, Layout()) * 2048 == 2**22  # 3.2M, to a power of two in rows
    wide = Layout(data=3000, pipeline=2, schedule="interleaved", chunks=2)
    assert course.usual_batch(125e6, 2048, wide) == 6000


def test_advice_of_the_scaling_laws():
    advice = advise(70e9, 1.4e12, None)
    assert advice.ratio == pytest.approx(1, abs=0.25)  # Chinchilla
    assert advice.best.flops == pytest.approx(6 * 70e9 * 1.4e12)
    four = advise(8e9, 4e12, 1e12)
    assert four.passes == 4
    assert 3.6e12 < four.worth < 4e12
    with pytest.raises(InputError, match="--tokens 4000000000000, are well spent"):
        advise(8e9, 41e12, 1e12)
