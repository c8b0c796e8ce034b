"""Memory of published rows: on which layout and with which habits each was run, and what is predicted of it.

A row says how it was spread; how its authors' program computes is theirs, and follows from its source:

- Korthikanti et al. 2022 publish what the layers keep, and 18 bytes for each of the layers' parameters
  (embeddings and norms left out), with dropout and without flash attention.
- Rajbhandari et al. 2020 (ZeRO): 2 + 2 + 12 bytes for each parameter, sharded by stages.
- torchtitan publishes what the allocator holds on the fullest GPU. FSDP2: no 16-bit copies, fp32 gradients;
  keys and values repeated for each query head; gathered inputs of cut matrices are kept, save with
  asynchronous tensor parallelism; its "selective" keeps every other product; the loss is compiled with the
  model since April 2025; a pipeline has as many microbatches as ranks unless told else.
- nanotron publishes what is allocated on the first pipeline rank. ZeRO stage 1, fp32 gradients, functions
  one by one, softmax in place, layers shared out by FLOPs, the head among them.

The interval of a peak is what these rows miss by, so it says little of other programs.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.planner.predictors import Case, Prediction, Unpredicted
from cupola.models import table
from cupola.models.table.declaration import matrix_flops
from cupola.plan.activations import Kernels
from cupola.plan.execution import GIB, PEAK, Execution, Loss
from cupola.plan.layout import Checkpointing, Layout, faults
from cupola.plan.memory import Run, needed, rank_memory
from cupola.plan.standing import Group, Held, standing
from cupola.recipe.model import Model

MIB = 2.0**20
ADAM = 8
LOSS_COMPILED = (2025, 4)


def layout_of(case: Case, data: int | None = None, rows: int | None = None) -> Layout:
    """How a row is spread.

    Args:
        data, rows: what the row doesn't say.

    Raises:
        Unpredicted: it doesn't say.
    """
    row, extra = case.row, case.row.extra
    pipeline = case.size("pp")
    chunks = _number(extra.get("virtual_pp_chunks") or extra.get("virtual_pp")) or 1
    schedule = str(extra.get("schedule", "")).lower()
    if schedule.startswith("interleaved") and chunks == 1:
        chunks = 2
    chunks = chunks if pipeline > 1 else 1
    if rows is None:
        rows = extra.get("micro_batch")
    if rows is None and (local := extra.get("local_batch")):
        rows = max(1, local // pipeline)
    if not rows:
        raise Unpredicted("the row states no micro_batch")
    workers = case.size("dp") if data is None else data
    layout = Layout(
        data=workers,
        shard=3 if extra.get("fsdp") else extra.get("zero_stage") or 0,
        tensor=case.size("tp"),
        sequence_parallel=bool(extra.get("sequence_parallel", True)),
        pipeline=pipeline,
        schedule="interleaved" if chunks > 1 else "gpipe" if "gpipe" in schedule else "1f1b",
        chunks=chunks,
        context=row.whole("cp") or 1,
        expert=min(_number(extra.get("ep")) or 1, workers * (row.whole("cp") or 1)),
        rows=rows,
        checkpointing=_checkpointing(str(extra.get("recompute") or "none"), row.named),
    )
    if wrong := _impossible(case, layout):
        raise Unpredicted(f"the layout can't be: {wrong[0]}")
    return layout


def _impossible(case: Case, layout: Layout) -> list[str]:
    """What is wrong with a row's layout. Tensor parallelism has to share out whole query heads only: what was
    published did run, by programs that cut otherwise than ours (PaLM has one key/value head for 12)."""
    found, row = case.expressed, case.row
    heads, tensor = found.model.sizes().heads, layout.tensor
    devices, length = row.whole("n_devices") or layout.devices, row.whole("seq") or 2 * layout.context
    if heads % tensor:
        return [f"tensor {tensor}: {heads} heads can't be shared out"]
    uncut = replace(layout, data=layout.data * tensor, tensor=1)
    return faults(found.model, found.vocabulary, uncut, devices, length)


def _number(said: Any) -> int | None:
    """Of a cell such as 4, '12', '1 (5)' or 'n/a'."""
    found = re.match(r"\d+", str(said))
    return int(found[0]) if found else None


def _checkpointing(said: str, named: str) -> Checkpointing:
    if said.startswith("selective"):
        return "operators" if "titan" in named else "selective"
    return "full" if said.startswith("full") else "none"


def run_of(case: Case, layout: Layout | None = None) -> Run:
    """A row's model, spread and computed as its source does.

    Args:
        layout: what the row says of it, by default.
    """
    found, named = case.expressed, case.row.named
    layout = layout_of(case) if layout is None else layout
    execution = Execution(loss="in_place")
    if "korthikanti" in named:
        execution = replace(execution, precision="fp16", kernels=Kernels(flash=False, dropout=True))
    elif "titan" in named:
        kernels = Kernels(grouped=False, regather=bool(case.row.extra.get("async_tp")))
        execution = replace(execution, kernels=kernels, loss=_titan_loss(case, layout))
    elif "nanotron" in named:
        execution = replace(execution, kernels=Kernels(fused=False, regather=False))
        layers = _by_flops(found.model, found.vocabulary, layout.pipeline)
        layout = replace(layout, shard=1, layers=layers)
    batch = case.row.whole("batch")
    return Run(found.model, found.vocabulary, layout, case.size("seq"), batch, execution=execution)


def _titan_loss(case: Case, layout: Layout) -> Loss:
    said = re.search(r"(20\d\d)-?(\d\d)", str(case.row.facts.get("source", "")))
    date = (int(said[1]), int(said[2])) if said else (9999, 0)
    if case.row.extra.get("compile") and date >= LOSS_COMPILED:
        return "compiled"
    return "vocabulary_parallel" if layout.tensor > 1 else "eager"


def _by_flops(model: Model, vocabulary: int, ranks: int) -> tuple[int, ...]:
    """Layers of each rank as nanotron shares them out: in turn, to each until its share of the work is
    exceeded. Of attention it counts four square matrices, however many key/value heads there are."""
    sizes, width = model.sizes(), model.width
    feedforward = sum(
        matrix_flops(table.FEEDFORWARDS[kind].parameters(model, layer)) / 2
        for layer, kind in enumerate(model.feedforwards())
        if kind
    )
    layer = 4.0 * sizes.heads * sizes.head_width * width + feedforward / model.layers
    share = (layer * model.layers + vocabulary * width) / ranks
    found, rank = [0] * ranks, 0
    for number in range(model.layers):
        found[rank] += 1
        if rank < ranks - 1 and layer * (number + 1) > share * (rank + 1):
            rank += 1
    return tuple(found)


def layer_states(case: Case) -> Prediction:
    """18 bytes for each parameter of the layers on the first rank. The authors' 12 L h^2 has no biases and no
    norms: two thousandths at most."""
    run = run_of(case)
    held = [run.by_layer[layer].whole for stage in run.ranks[0] for layer in stage.layers]
    states = sum(sum(standing(Group(one), replace(run.layout, shard=0), run.execution)) for one in held)
    value = states / GIB
    return Prediction(value, 0.998 * value, value, note="without the embedding")


def activations(case: Case) -> Prediction:
    """Of the layers on the first rank."""
    return case.exactly(run_of(case).activations(0) / GIB)


def _share(**changes: Any) -> Callable[[Case], Prediction]:
    """Of activations as tensor parallelism alone leaves them, in per cent. They are read off a figure: two
    hundredths of a value at most."""

    def predict(case: Case) -> Prediction:
        run = run_of(case)
        base = replace(run.layout, sequence_parallel=False, checkpointing="none")
        own = replace(base, **changes) if changes else run.layout
        value = 100 * replace(run, layout=own).activations(0) / replace(run, layout=base).activations(0)
        return Prediction(value, 0.98 * value, 1.02 * value)

    return predict


def model_states(case: Case) -> Prediction:
    """Of a number of parameters, by the stage that the metric names; 16-bit gradients."""
    numbers, stage = float(case.size("params")), int(case.metric[-1])
    layout = Layout(data=case.size("dp"), shard=stage)
    execution = Execution(precision="fp16", gradients=2, copies=True)
    parts = standing(Group(Held(numbers, numbers, ADAM * numbers)), layout, execution)
    return case.exactly(sum(parts) / 1e9)


def peak(case: Case) -> Prediction:
    """What the allocator holds on the fullest rank; of nanotron, what is allocated on the first."""
    run = run_of(case)
    value = rank_memory(run, 0).allocated if "nanotron" in case.row.named else needed(run).reserved
    value /= MIB if case.metric.endswith("MiB") else GIB
    return Prediction(value, PEAK[0] * value, PEAK[1] * value, note=f"loss {run.execution.loss}")


MEMORY: dict[str, Callable[[Case], Prediction]] = {
    "mem_params_opt_GiB": layer_states,
    "mem_act_GiB": activations,
    "act_mem_pct_of_tp_baseline": _share(),
    "act_mem_pct_seq_only": _share(sequence_parallel=True),
    "act_mem_pct_selective_only": _share(checkpointing="selective"),
    "model_state_GB_stage1": model_states,
    "model_state_GB_stage2": model_states,
    "model_state_GB_stage3": model_states,
    "peak_mem_GiB": peak,
    "peak_alloc_MiB": peak,
}
"""By metric; `predictors.PREDICTORS` has the others."""
