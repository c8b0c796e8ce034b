"""What ran a published row: its device, its layout, and what its program does.

A row says how it was spread, seldom all of it; what is missing is filled in and noted. What a program does is
its own, and is known by the row's source:

- **Megatron-LM of 2021 and 2022** (also MT-NLG and BLOOM, in DeepSpeed's pipeline; Korthikanti et al.): plain
  attention with fused softmax, dropout, no sequence parallelism before Korthikanti, gradients summed in 16
  bits after the last microbatch.
- **DeepSpeed ZeRO-3** as compared in Narayanan et al. 2021.
- **Megatron-Core, Megatron-Bridge**: cuDNN's attention, fused functions, distributed optimizer, sums and
  gathers beside computation, tensor parallelism's too; CUDA graphs for mixtures from release 26.06 on.
- **torchtitan**: FSDP2, torch's attention (FlashAttention-2), `torch.compile` where the row says so, gathers
  in 8 bits with float8, sums in fp32; asynchronous tensor parallelism where the row says so. Its rowwise
  float8 products were no faster than 16-bit ones, so they count as such.
- **llm-foundry**: FSDP1 without `torch.compile`, attention of FlashAttention's first generation (by the times
  of its long rows, on H100 too); mode DEFAULT gathers in fp32, PURE in 16 bits.
- **nanotron**: functions one by one, FlashAttention-2, ZeRO-1 and tensor parallelism without overlap; sends
  between nodes at a hundredth of the network and 30 ms of host a microbatch in a pipeline, by its times.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

from bench.planner.memory import Case, Unpredicted, layout_of, run_of
from bench.planner.rows import Row
from cupola.plan.activations import Kernels
from cupola.plan.execution import Execution, Precision
from cupola.plan.hardware import Hardware, catalogue
from cupola.plan.layout import Checkpointing, Layout, faults
from cupola.plan.memory import Run, needed
from cupola.plan.program import Program
from cupola.plan.steptime import step_time

DEVICES: tuple[tuple[str, str], ...] = (
    (r"gb300", "gb300"),
    (r"gb200", "gb200"),
    (r"b300", "b300"),
    (r"b200", "b200"),
    (r"h200", "h200"),
    (r"h800", "h800"),
    (r"h100.*(96 ?gb|hbm2e|500 ?w)", "h100-96"),
    (r"h100.*pci", "h100-pcie"),
    (r"h100", "h100"),
    (r"a100.*40 ?gb", "a100-40"),
    (r"a100", "a100"),
    (r"v100", "v100-32"),
    (r"mi300", "mi300x"),
    (r"tpu ?v4", "tpu-v4"),
    (r"tpu ?v5p", "tpu-v5p"),
)
"""Patterns in a row's `hardware`, in lower case, and the record that is meant; the first that is found."""
SLOWER = ((r"4xopa100", 6.25e9),)
"""Networks that rows name which are not those of the record: bytes a second of one device."""
HALF = 0.5
"""Of gathers, what the first programs with sharded parameters hid."""
USUAL = Program(attention="flash2", passes=1.5)
"""What a row without a layout is taken to have been run by; before FlashAttention-2, by Megatron-LM as it
was then, with sharded states."""
USUAL_DEVICES, USUAL_BATCH = 2048, 4_000_000
"""Devices, and tokens of a step, of a row that states neither: what long runs had."""
RANKS = (1, 2, 4, 5, 8, 10, 16, 20)
"""Pipeline ranks that are tried for it."""
EAGER = 2.0
"""`Program.passes` of functions that are kernels of their own."""
GRAPHS = (26, 6)
"""Megatron-Bridge's release from which mixtures run in CUDA graphs, with the exchange beside computation."""
MERGED = (26, 2)
"""And from which a token is sent once to each device that has some of its experts."""


@dataclass(frozen=True)
class Timed:
    """What is to be timed.

    Attributes:
        notes: what was taken for granted.
    """

    run: Run
    hardware: Hardware
    program: Program
    notes: tuple[str, ...] = ()


def device_of(row: Row) -> Hardware:
    """The record of a row's hardware.

    Raises:
        Unpredicted: it names none that is known.
    """
    said = str(row.facts.get("hardware") or "").lower()
    for pattern, name in DEVICES:
        if re.search(pattern, said):
            found = _records()[name]
            for slower, network in SLOWER:
                if re.search(slower, said):
                    found = found.model_copy(update={"network": network})
            return found
    raise Unpredicted(f"hardware {said!r} is none of the catalogue" if said else "the row states no hardware")


@cache
def _records() -> dict[str, Hardware]:
    return catalogue()


def timed(case: Case) -> Timed:
    """A row's run, its device and its program.

    Raises:
        Unpredicted: what the row doesn't say, or can't be expressed.
    """
    if not case.expressed.routed:
        raise Unpredicted("the row doesn't state how many experts a token meets")
    hardware = device_of(case.row)
    if case.row.whole("tp") is None:
        return _chosen(case, hardware)
    if case.row.whole("n_devices") is None or case.row.whole("pp") is None:
        raise Unpredicted("the row states its layout in part")
    if case.row.whole("batch") is None:
        raise Unpredicted("the row states no batch")
    layout, notes = _layout(case)
    family = next((make for pattern, make in _SOURCES if re.search(pattern, case.row.named)), _other)
    run, program = family(case, run_of(case, layout), hardware)
    return Timed(run, hardware, program, (*notes, f"{layout.rows} rows a microbatch"))


def _chosen(case: Case, hardware: Hardware) -> Timed:
    """On the fastest of a few layouts that fit, where the row states none: its authors looked too."""
    row = case.row
    devices, length = row.whole("n_devices") or USUAL_DEVICES, case.size("seq")
    batch = row.whole("batch") or USUAL_BATCH // length
    found = case.expressed
    best: tuple[float, Run, Program] | None = None
    for tensor, pipeline, kept in itertools.product((1, 2, 4, 8), RANKS, ("none", "full")):
        data = devices // (tensor * pipeline)
        if data * tensor * pipeline != devices or batch < data or pipeline > found.model.layers:
            continue
        checkpointing = cast(Checkpointing, kept)
        shard = 3 if pipeline == 1 else 1
        layout = Layout(data, shard, tensor, pipeline=pipeline, checkpointing=checkpointing)
        execution = Execution(precision=_precision(row), loss="in_place")
        run = Run(found.model, found.vocabulary, layout, length, batch // data * data, execution=execution)
        program = USUAL
        if "flash2" not in hardware.attention:
            run, program = _megatron_then(case, run, hardware)
            run = replace(run, layout=replace(run.layout, shard=shard))
        if faults(found.model, found.vocabulary, layout, layout.devices, length) or not needed(run).fits(
            hardware.memory
        ):
            continue
        seconds = step_time(run, hardware, program).seconds.value / (run.batch or 1)
        if best is None or seconds < best[0]:
            best = seconds, run, program
    if best is None:
        raise Unpredicted("the row states no layout, and none that was tried fits")
    _, run, program = best
    layout = run.layout
    taken = f"data {layout.data}, tensor {layout.tensor}, pipeline {layout.pipeline}"
    said = f"no layout is stated: {taken} is taken"
    return Timed(run, hardware, program, (said, f"checkpointing {layout.checkpointing}"))


def _layout(case: Case) -> tuple[Layout, tuple[str, ...]]:
    """How a row is spread, and what was filled in."""
    row, notes = case.row, []
    workers = _workers(row)
    rows = _rows(row)
    if rows is None:
        pipeline = row.whole("pp") or 1
        share = max(1, (row.whole("batch") or 1) // workers)
        rows = 1 if pipeline > 1 else min(share, 8)
        notes.append(f"{rows} rows a microbatch are taken")
    return layout_of(case, workers, rows), tuple(notes)


def _workers(row: Row) -> int:
    stated = row.whole("dp")
    if stated is not None:
        return stated
    others = (row.whole("tp") or 1) * (row.whole("pp") or 1) * (row.whole("cp") or 1)
    return max(1, (row.whole("n_devices") or 1) // others)


def _rows(row: Row) -> int | None:
    if isinstance(own := row.extra.get("micro_batch"), int):
        return own
    if isinstance(local := row.extra.get("local_batch"), int):
        return max(1, local // (row.whole("pp") or 1))
    return None


PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"fp4", "fp4"),
    (r"rowwise", "bf16"),
    (r"fp8|float8", "fp8"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|float16|half", "fp16"),
    (r"fp32|float32", "fp32"),
)
"""Patterns in a row's `precision`, in lower case; the first that is found. Where nothing is said, bf16."""


def _precision(row: Row) -> Precision:
    said = str(row.facts.get("precision") or "bf16").lower()
    for pattern, precision in PRECISIONS:
        if re.search(pattern, said):
            return precision
    raise Unpredicted(f"precision {said!r} is none that is known")


def _megatron_then(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    old = "megascale" not in case.row.named
    kernels = Kernels(flash=not old, dropout=old)
    sequence = ("korthikanti" in case.row.named and bool(case.row.extra.get("sequence_parallel"))) or not old
    layout = replace(run.layout, sequence_parallel=sequence, shard=0)
    if case.row.extra.get("zero_stage") == 1:
        layout = replace(layout, shard=1)
    execution = replace(run.execution, precision=_precision(case.row), kernels=kernels, gradients=2)
    program = Program(hides_shards=0.0, hides_pipeline=0.0, stops_early=False)
    return replace(run, layout=layout, execution=execution), program


def _deepspeed(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    """Megatron's layers in DeepSpeed's pipeline: every tensor-parallel worker sends the whole tensor, and
    16-bit gradients are added to fp32 ones after each microbatch."""
    run, program = _megatron_then(case, run, hardware)
    run = replace(run, execution=replace(run.execution, gradients=4))
    return run, replace(program, sends=1 / run.layout.tensor, reduced=2)


def _megascale(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    run, program = _megatron_then(case, run, hardware)
    run = replace(run, layout=replace(run.layout, shard=1), execution=replace(run.execution, gradients=4))
    program = replace(program, attention="flash2")
    if case.row.name.startswith("MegaScale"):
        program = replace(program, hides_shards=1.0, hides_tensor=0.8, hides_pipeline=0.9)
    return run, program


def _zero3(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    run, program = _megatron_then(case, run, hardware)
    run = replace(run, layout=replace(run.layout, shard=3))
    return run, replace(program, hides_shards=HALF, one_card=True, gathered=2, reduced=2)


def _metaseq(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    run, program = _megatron_then(case, run, hardware)
    layout = replace(run.layout, shard=3, checkpointing="full")
    return replace(run, layout=layout), replace(program, hides_shards=HALF)


def _core(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    execution = replace(run.execution, precision=_precision(case.row))
    layout = run.layout
    if layout.shard < 3:
        layout = replace(layout, shard=1)
    if "mcore" in case.row.named and layout.pipeline > 1:
        chunks = run.model.layers // layout.pipeline
        layout = replace(layout, schedule="interleaved" if chunks > 1 else "1f1b", chunks=chunks)
    program = Program(
        graphs=True, hides_tensor=0.9, hides_pipeline=0.9, stops_early=False, gathered=2, reduced=4
    )
    run = replace(run, layout=layout, execution=execution)
    return _mixture(case.row, run, program) if run.model.experts is not None else (run, program)


def _mixture(row: Row, run: Run, program: Program) -> tuple[Run, Program]:
    """Of mixtures in Megatron-Bridge: what its releases say of themselves. gpt-oss's biases of experts,
    clamped gates and sinks are kernels of their own; before 26.06 its windows were neither counted nor used.
    """
    found = re.match(r"(\d+)\.(\d+)", str(row.extra.get("release", "")))
    release = (int(found[1]), int(found[2])) if found else (99, 0)
    new, ours = release >= GRAPHS, "gpt oss" in row.named
    if ours and not new:
        run = replace(run, model=run.model.model_copy(update={"pattern": None, "window": None}))
    return run, replace(
        program,
        attention="flash2" if ours and not new else program.attention,
        passes=(1.0 if new else 1.75) * (2 if ours else 1),
        graphs=new,
        merges_copies=release >= MERGED,
        hides_experts=0.5 if new else 0.0,
    )


def _titan(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    precision = _precision(case.row)
    program = Program(
        attention="flash2",
        passes=1.0 if case.row.extra.get("compile") else EAGER,
        hides_tensor=0.7 if case.row.extra.get("async_tp") else 0.0,
        hides_context=0.7,
        gathered=1 if precision == "fp8" else 2,
        reduced=4,
    )
    return replace(run, execution=replace(run.execution, precision=precision)), program


def _foundry(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    extra = case.row.extra
    shard = 3 if extra.get("sharding") == "FULL_SHARD" else 2
    execution = replace(run.execution, precision=_precision(case.row), loss="eager")
    program = Program(
        attention="flash1",
        passes=EAGER,
        gathered=4 if extra.get("mp_mode") == "DEFAULT" else 2,
        reduced=2,
    )
    return replace(run, layout=replace(run.layout, shard=shard), execution=execution), program


def _nanotron(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    program = Program(
        attention="flash2",
        passes=2 * EAGER,
        hides_shards=0.0,
        hides_pipeline=0.0,
        sends=0.012,
        host=0.03 if run.layout.pipeline > 1 else 0.0,
    )
    return run, program


def _llama3(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    """Interleaved with one layer a stage, all sharded, the first and the last stage without (section 3.3)."""
    chunks = -(-run.model.layers // run.layout.pipeline)
    layout = run.layout
    if layout.pipeline > 1 and chunks > 1:
        layout = replace(layout, schedule="interleaved", chunks=chunks)
    return replace(run, layout=layout), Program(hides_pipeline=0.8, hides_context=0.5)


def _other(case: Case, run: Run, hardware: Hardware) -> tuple[Run, Program]:
    return replace(run, execution=replace(run.execution, precision=_precision(case.row))), Program()


_SOURCES: Sequence[tuple[str, Callable[[Case, Run, Hardware], tuple[Run, Program]]]] = (
    (r"zero-3", _zero3),
    (r"megascale", _megascale),
    (r"mbridge|mcore|megatron.?(core|bridge)|nemo", _core),
    (r"titan", _titan),
    (r"foundry", _foundry),
    (r"nanotron", _nanotron),
    (r"llama3_t4", _llama3),
    (r"\bopt\b", _metaseq),
    (r"mt-?nlg|bloom", _deepspeed),
    (r"megatron|korthikanti|ptd-p", _megatron_then),
)
"""Patterns in a row's name and group, and what its program does."""
