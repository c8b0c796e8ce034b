"""What calculon (Isaev et al. 2023, github.com/calculon-ai/calculon) says of a row's step.

It can express Transformers with as many key/value heads as heads and a plain feed-forward layer, without
embeddings and head, on A100 and H100, over data, tensor and pipeline parallelism with sharded optimizer
states. It is run from a copy at `PATH`, with its own systems as they are but for the size of their memory,
over which it refuses to answer.
"""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from bench.planner.programs import Timed
from bench.planner.validation import Sample
from cupola.errors import InputError
from cupola.plan import compute
from cupola.plan.communication import pipeline, shards, tensor

SYSTEMS = {"a100": "a100_80g.json", "a100-40": "a100_80g.json", "h100": "h100_80g_nvl8.json"}
RECOMPUTED = {"none": "none", "selective": "attn_only", "full": "full"}


def inexpressible(timed: Timed) -> str | None:
    """Why it can't express a row; None where it can."""
    run = timed.run
    model, layout = run.model, run.layout
    if timed.hardware.name not in SYSTEMS:
        return f"it has no system for {timed.hardware.name}"
    if model.experts is not None or any(block.feedforward != "plain" for block in compute.blocks(model)):
        return "it has no gated feed-forward layers and no experts"
    if model.sizes().heads != model.sizes().key_value_heads:
        return "it has no grouped key/value heads"
    if layout.context > 1 or layout.shard > 1:
        return "it shards neither rows nor parameters"
    if layout.checkpointing not in RECOMPUTED:
        return f"it has no checkpointing {layout.checkpointing}"
    if model.layers % layout.stage_count:
        return "its stages are equal"
    if run.execution.precision not in ("bf16", "fp16"):
        return "its systems are for 16 bits"
    return None


def seconds(path: Path, sample: Sample) -> float | None:
    """Of a row's step; None where it can't express the row.

    Raises:
        InputError: there is no calculon at the path.
    """
    if inexpressible(sample.timed) is not None:
        return None
    llm, system = _modules(path)
    file = path / "systems" / SYSTEMS[sample.timed.hardware.name]
    made = json.loads(file.read_text(encoding="utf-8"))
    made["mem1"]["GiB"] = 1e6
    try:
        model = llm.Llm(llm.Llm.Application(_application(sample.timed)), logging.getLogger("calculon"))
        machine = system.System(made)
        model.compile(machine, llm.Llm.Execution.from_json(_execution(sample.timed)))
        model.run(machine)
    except (AssertionError, llm.Llm.Error):  # its own words for what it can't do
        return None
    return float(model.get_total_time())


def _modules(path: Path) -> tuple[Any, Any]:
    if not (path / "calculon" / "llm" / "llm.py").exists():
        raise InputError(f"{path} is no copy of calculon; get one from github.com/calculon-ai/calculon")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return importlib.import_module("calculon.llm"), importlib.import_module("calculon.system")


def _application(timed: Timed) -> dict[str, int]:
    sizes, model = timed.run.model.sizes(), timed.run.model
    return {
        "hidden": model.width,
        "feedforward": sizes.feedforward,
        "seq_size": timed.run.sequence_length,
        "attn_heads": sizes.heads,
        "attn_size": sizes.head_width,
        "num_blocks": model.layers,
    }


def _execution(timed: Timed) -> dict[str, Any]:
    run, layout, hardware = timed.run, timed.run.layout, timed.hardware
    sequence = layout.tensor > 1 and layout.sequence_parallel
    nets = [
        int(group(layout, hardware).domains > 1) for group in (tensor, pipeline, shards)
    ]  # 0: links, 1: the network
    return {
        "num_procs": layout.devices,
        "tensor_par": layout.tensor,
        "pipeline_par": layout.pipeline,
        "data_par": layout.data,
        "tensor_par_net": nets[0],
        "pipeline_par_net": nets[1],
        "data_par_net": nets[2],
        "batch_size": run.batch,
        "microbatch_size": layout.rows,
        "datatype": "float16",
        "fused_activation": True,
        "attention_type": "multihead",
        "activation_recompute": RECOMPUTED[layout.checkpointing],
        "pipeline_interleaving": layout.chunks,
        "optimizer_sharding": layout.shard == 1 and layout.data > 1,
        "tensor_par_comm_type": "rs_ag" if sequence else "ar",
        "tensor_par_overlap": "none",
        "seq_par_ag_redo": sequence and layout.checkpointing != "full",
        "data_par_overlap": timed.program.hides_shards > 0 and layout.data > 1,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }
