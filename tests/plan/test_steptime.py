"""The time of a step: closed forms, limits, what each setting does to it."""

import math
from dataclasses import replace

import pytest

from cupola.models import table
from cupola.plan import update
from cupola.plan.causes import CAUSES
from cupola.plan.compute import Setting
from cupola.plan.execution import Execution
from cupola.plan.hardware import catalogue
from cupola.plan.layout import Layout
from cupola.plan.memory import Run
from cupola.plan.program import OURS, Program
from cupola.plan.steptime import PARTS, SPREAD, StepTime, step_time
from cupola.recipe.loading import load_preset
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer

LLAMA = load_preset("llama3-8b")
H100 = catalogue()["h100"]
FREE = {"link": 1e30, "network": 1e30, "link_latency": 0.0, "network_latency": 0.0}
"""Links that cost nothing."""
BARE = replace(CAUSES, tile=0.0, tail=0.0, gap=0.0, launch=0.0, jitter=0.0, pause=0.0, interference=0.0)
"""Products at their rate, and nothing else."""
GPT = Model.model_validate(
    {
        "family": "transformer",
        "layers": 24,
        "width": 8192,
        "heads": 64,
        "feedforward": 32768,
        "activation": "gelu_tanh",
        "positions": "none",
    }
)


def run(layout: Layout, model: Model = LLAMA, length: int = 8192, **settings) -> Run:
    execution = settings.pop("execution", Execution())
    settings.setdefault("batch", 4 * layout.data * layout.rows)
    return Run(model, settings.pop("vocabulary", 128256), layout, length, execution=execution, **settings)


def products_alone(layout: Layout, program: Program = OURS, **settings) -> StepTime:
    """A GPT with short rows, next to no vocabulary, on a device whose memory and links cost nothing."""
    device = H100.model_copy(update=FREE | {"bandwidth": 1e30, "attention": {"flash4": 1.0}})
    asked = run(layout, GPT, 64, vocabulary=64, **settings)
    return step_time(asked, device, program, BARE)


def test_parts_add_up_and_stand_in_their_order():
    layouts = (
        Layout(),
        Layout(data=8, shard=3),
        Layout(data=2, shard=1, tensor=4, pipeline=2, checkpointing="full"),
        Layout(data=2, context=4, shard=2),
    )
    for layout in layouts:
        found = step_time(run(layout), H100)
        assert tuple(found.parts) == PARTS
        assert sum(found.parts.values()) == pytest.approx(found.seconds.value)
        assert min(found.parts.values()) >= 0
        assert found.seconds.low == pytest.approx(SPREAD[0] * found.seconds.value)
        assert 0 < found.mfu < 1


def test_tokens_and_utilisation():
    found = step_time(run(Layout(data=4, rows=2), batch=24), H100)
    assert found.tokens == 24 * 8192
    per_token = table.flops_per_token(LLAMA, 128256, 8192, causal=False)
    assert found.mfu == pytest.approx(per_token * found.tokens / (4 * 989e12) / found.seconds.value)


def test_products_alone_reach_what_the_device_attains():
    """6 FLOPs for each element of every matrix, at the attainable share of the peak."""
    found = products_alone(Layout(rows=64))
    tokens = 4 * 64 * 64
    matrices = 24 * (4 * 8192**2 + 2 * 8192 * 32768)
    wanted = 6 * matrices * tokens / (H100.peak["bf16"] * H100.attained("bf16"))
    assert found.parts["products"] == pytest.approx(wanted, rel=2e-3)
    assert found.seconds.value == pytest.approx(wanted, rel=2e-2)


def test_recomputation_is_a_third_more_and_less_where_it_stops_early():
    """The last product of a layer, 8 of 24 h^2, isn't made again."""
    none = products_alone(Layout(rows=64)).seconds.value
    full = Layout(rows=64, checkpointing="full")
    assert products_alone(full, replace(OURS, stops_early=False)).seconds.value / none == pytest.approx(
        4 / 3, rel=5e-3
    )
    assert products_alone(full).seconds.value / none == pytest.approx(1 + 2 / 9, rel=5e-3)
    half = products_alone(Layout(rows=64, checkpointing="operators")).seconds.value / none
    assert half == pytest.approx(7 / 6, rel=5e-3)


@pytest.mark.parametrize(
    ("schedule", "chunks", "share"),
    [
        ("1f1b", 1, 1),
        ("gpipe", 1, 1),
        ("interleaved", 2, 1 / 2),
        ("interleaved", 6, 1 / 6),
        ("zb-h1", 1, 1 / 3),
        ("zb-h2", 1, 0),
        ("zb-v", 1, 0),
    ],
)
def test_bubbles(schedule, chunks, share):
    """(p - 1) / m of the work on equal ranks, and the schedule's share of it."""
    layout = Layout(pipeline=4, schedule=schedule, chunks=chunks, rows=64)
    found = products_alone(layout, batch=64 * 8)
    work = found.parts["products"] + found.parts["attention"]
    assert found.parts["pipeline bubble"] / work == pytest.approx(share * 3 / 8, rel=5e-3)


def test_free_links_leave_nothing_exposed():
    device = H100.model_copy(update=FREE)
    exchanged = [
        name for name in PARTS if "parallel" in name or name in ("shards gathered", "gradients summed")
    ]
    for layout in (
        Layout(data=64, shard=3),
        Layout(data=8, shard=1, tensor=8, pipeline=2),
        Layout(data=2, context=4),
    ):
        found = step_time(run(layout), device)
        assert sum(found.parts[name] for name in (*exchanged, "pipeline sends")) < 1e-9 * found.seconds.value
        paid = step_time(run(layout), H100)
        assert sum(paid.parts[name] for name in (*exchanged, "pipeline sends")) > 1e-3 * paid.seconds.value


def test_a_program_hides_what_it_can():
    layout = Layout(data=2, shard=1, tensor=8)
    shown = step_time(run(layout), H100).parts["tensor parallel"]
    hidden = step_time(run(layout), H100, replace(OURS, hides_tensor=1.0)).parts["tensor parallel"]
    assert hidden == pytest.approx(CAUSES.interference * shown)
    sharded = run(Layout(data=64, shard=3))
    waits = step_time(sharded, H100, replace(OURS, hides_shards=0.0)).parts["shards gathered"]
    assert step_time(sharded, H100).parts["shards gathered"] < 0.6 * waits


def test_sharded_parameters_are_gathered_twice_and_gradients_scattered_once():
    """3 times 7/8 of 16-bit weights at 8 devices, with gradients in 16 bits; no latency."""
    device = H100.model_copy(update=FREE | {"link": 450e9})
    program = replace(OURS, hides_shards=0.0, gathered=2, reduced=2)
    found = step_time(run(Layout(data=8, shard=3), batch=8), device, program)
    numbers = table.count(LLAMA, 128256)
    wanted = 3 * 2 * numbers * 7 / 8 / 450e9 / CAUSES.wire
    assert found.parts["shards gathered"] == pytest.approx(wanted)
    assert found.parts["gradients summed"] == 0


def test_gradients_are_summed_once_a_step_whatever_the_microbatches():
    device = H100.model_copy(update={"link_latency": 0.0})
    program = replace(OURS, hides_shards=0.0, reduced=4)
    wanted = 2 * 4 * table.count(LLAMA, 128256) * 7 / 8 / 450e9 / CAUSES.wire
    for batch in (8, 64):
        found = step_time(run(Layout(data=8), batch=batch), device, program)
        assert found.parts["gradients summed"] == pytest.approx(wanted)


def test_what_makes_a_step_longer():
    layout = Layout(data=16, shard=3)
    base = step_time(run(layout), H100).seconds.value
    for change in (
        {"bandwidth": H100.bandwidth / 2},
        {"attainable": {"bf16": 0.5}},
        {"link": H100.link / 20, "network": H100.network / 20},
        {"attention": {"flash4": 0.2}},
    ):
        assert step_time(run(layout), H100.model_copy(update=change)).seconds.value > base
    for program in (replace(OURS, passes=2.0), replace(OURS, host=0.1), replace(OURS, attention="flash1")):
        assert step_time(run(layout), H100, program).seconds.value > base
    assert step_time(run(layout, batch=128), H100).seconds.value > base
    twice = step_time(run(layout, length=16384, batch=32), H100)
    assert twice.seconds.value > 1.02 * step_time(run(layout, batch=64), H100).seconds.value
    fp8 = Execution(precision="fp8")
    assert step_time(run(layout, execution=fp8), H100).seconds.value < base


def test_smaller_microbatches_and_more_ways_use_devices_less():
    speeds = [step_time(run(Layout(data=8, tensor=tensor), batch=64), H100).mfu for tensor in (1, 2, 4, 8)]
    assert speeds == sorted(speeds, reverse=True)
    small = load_preset("qwen3-0.6b")
    rows = [step_time(run(Layout(rows=rows), small, 512, batch=64), H100).mfu for rows in (1, 4, 16, 64)]
    assert rows == sorted(rows)


def test_a_device_waits_for_the_host_where_kernels_are_short():
    small = load_preset("qwen3-0.6b")
    asked = run(Layout(), small, 128, batch=1)
    waits = step_time(asked, H100).parts["launches"]
    assert waits > 1.8 * step_time(asked, H100, replace(OURS, graphs=True)).parts["launches"]


def test_long_rows_cost_attention_and_not_a_scan():
    def per_token(name: str, length: int) -> float:
        found = step_time(run(Layout(), load_preset(name), length, batch=1), H100)
        return found.parts["attention"] / length

    assert per_token("llama3-8b", 65536) == pytest.approx(8 * per_token("llama3-8b", 8192), rel=1e-6)
    scan = "mamba2-130m"
    assert per_token(scan, 65536) == pytest.approx(per_token(scan, 8192), rel=1e-6)


def test_workers_of_a_context_share_a_row_evenly():
    whole = step_time(run(Layout(), length=65536, batch=1), H100).parts["attention"]
    cut = step_time(run(Layout(context=8), length=65536, batch=1), H100).parts["attention"]
    assert cut == pytest.approx(whole / 8)


def test_experts_exchange_their_tokens():
    """Twice each way, 7 of 8 of the copies of a token; once merged, less."""
    model = load_preset("mixtral-8x7b")
    assert model.experts is not None
    device = H100.model_copy(update={"link_latency": 0.0})
    layout = Layout(data=8, expert=8, shard=1)
    found = step_time(run(layout, model, 4096, batch=8), device).parts["expert parallel"]
    sent = 2 * model.width * model.experts.active * 4096 * 7 / 8
    wanted = 4 * model.layers * sent / 450e9 / CAUSES.wire
    assert found == pytest.approx(wanted)
    merged = step_time(run(layout, model, 4096, batch=8), device, replace(OURS, merges_copies=True))
    assert merged.parts["expert parallel"] < found


def test_adamw_reads_and_writes_all_that_lies_there():
    """34 bytes of a number: 2 x 8 of states, 2 x 4 of masters, 2 of weights, 2 x 4 of gradients."""
    found = step_time(run(Layout()), H100).parts["optimizer"]
    wanted = 34 * table.count(LLAMA, 128256) / (H100.bandwidth * CAUSES.stream)
    assert found == pytest.approx(wanted)
    shared = step_time(run(Layout(data=8, shard=3)), H100).parts["optimizer"]
    assert shared == pytest.approx(32 / 34 * found / 8)  # no 16-bit copy


def test_muon_multiplies_and_soap_renews_its_bases():
    """Muon: 2 (2 m^2 n + m^3) FLOPs at each of its 3 steps, m <= n."""
    bare = Setting(
        run(Layout(), optimizer=Optimizer(kind="muon")),
        H100.model_copy(update={"bandwidth": 1e30}),
        OURS,
        BARE,
    )
    flops = 0.0
    for parameter in table.parameters(LLAMA, 128256):
        if parameter.role == "matrix":
            m, n = sorted(parameter.shape)
            flops += 3 * 2 * (2 * m * m * n + m**3)
    wanted = flops / (H100.peak["bf16"] * H100.attained("bf16"))
    assert update.products(bare) == pytest.approx(wanted)
    soap = replace(bare, run=replace(bare.run, optimizer=Optimizer(kind="soap")))
    often = replace(bare, run=replace(bare.run, optimizer=Optimizer(kind="soap", precondition_every=1)))
    assert update.products(often) > update.products(soap) > 0


def test_the_slowest_of_many_devices_is_waited_for():
    found = [
        step_time(run(Layout(data=data, shard=3)), H100).parts["waiting for the slowest"]
        for data in (1, 8, 512)
    ]
    assert found[0] == 0
    assert found[1] < found[2]
    whole = step_time(run(Layout(data=512, shard=3)), H100)
    share = whole.parts["waiting for the slowest"] / (
        whole.seconds.value - whole.parts["waiting for the slowest"]
    )
    assert share == pytest.approx(CAUSES.jitter * math.sqrt(2 * math.log(512)))


def test_what_is_frozen_has_no_gradient_and_a_reference_passes_forward():
    matrices = frozenset(p.name for p in table.parameters(LLAMA, 128256) if p.name.startswith("blocks"))
    whole = step_time(run(Layout()), H100)
    frozen = step_time(run(Layout(), frozen=matrices), H100)
    assert 0.6 < frozen.parts["products"] / whole.parts["products"] < 0.75
    assert frozen.parts["optimizer"] < 0.2 * whole.parts["optimizer"]
    asked = run(Layout(), references=1)
    assert step_time(asked, H100).parts["products"] / whole.parts["products"] == pytest.approx(
        4 / 3, rel=0.03
    )
