"""Finished runs made by hand, whose held-out loss follows a known law; no training."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from cupola import storage
from cupola.pipeline.folder import write_record
from cupola.plan.scaling import Law

LAW = Law(1.4, 40.0, 90.0, 0.33, 0.31, "made up")
BYTES = 2.5
"""Of a token of the held-out text."""
ROWS = 320
SIZES = ((2, 32), (3, 48), (4, 64), (4, 96))
HORIZONS = (400_000, 1_000_000, 2_500_000)


def recipe_of(layers: int, width: int, tokens: int, **settings: Any) -> dict[str, Any]:
    """As `recipe.yaml` holds it; `settings` are of the stage."""
    stage = {
        "data": {"speeches": 1, "manuals": 1},
        "tokens": tokens,
        "sequence_length": 64,
        "batch_tokens": 1024,
        "learning_rate": {"peak": 0.01, "decay": "linear"},
        **settings,
    }
    return {
        "name": "law",
        "corpora": {name: {"python": "documentation"} for name in ("speeches", "manuals", "other")},
        "tokenizer": {"vocabulary": ROWS, "train_on": {"manuals": 1}},
        "model": {"layers": layers, "width": width, "heads": 2},
        "stages": {"pretrain": stage},
    }


def size_of(layers: int, width: int) -> int:
    """N in closed form: attention, a gated feed-forward layer of 8/3 of the width, rounded up to a multiple
    of 64, norms, and the head.

    Written out here, so that it is no copy of what is tested.
    """
    inner = math.ceil(8 * width / 3 / 64) * 64
    block = 4 * width**2 + 3 * width * inner + 2 * width
    return layers * block + width + ROWS * width


def write_run(
    folder: Path,
    layers: int,
    width: int,
    tokens: int,
    loss: float,
    *,
    tokenizer: str = "t",
    heldout: str = "h",
    text: str = "x",
    rate: float = 0.0,
    epochs: float = 0.5,
    status: str = "done",
    **settings: Any,
) -> Path:
    """A run with one stage; `loss` in nats a token.

    The sources differ in bits a byte and in size, so that a mean of the wrong kind shows; the third is not of
    the stage.
    """
    stage = folder / "stages/01-pretrain"
    stage.mkdir(parents=True)
    recipe = recipe_of(layers, width, tokens, **settings)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    names = ("speeches", "manuals", "other")
    write_record(
        folder / "run.json",
        {
            "name": "law",
            "decisions": {
                "precision": "fp32",
                "microbatch_tokens": 1024,
                "threads": 1,
                "device": "cpu",
                "vocabulary": ROWS,
                "peak_flops": 1e11,
                "why": "stated",
            },
            "heldout": {name: {"folder": f"text/{name}", "sha256": heldout + name} for name in names},
            "sources": {name: {"fingerprint": text + name, "tokens": 10**7} for name in names},
            "vocabulary": ROWS,
        },
    )
    storage.write_json(
        folder / "tokenizer/manifest.json", storage.sealed({"fingerprint": tokenizer, "files": {}})
    )
    checked = {
        "event": "checked",
        "stages": [{"name": "pretrain", "epochs": {"speeches": epochs, "manuals": 0.1}}],
    }
    (folder / "ledger.jsonl").write_text(json.dumps(checked) + "\n")
    rows = [{"step": 1, "learning_rate": 0.01}, {"step": 9, "learning_rate": 0.01 * rate}]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bits = loss / math.log(2) / BYTES
    held = {
        "speeches": {"bits_per_byte": 1.2 * bits, "tokens": 800, "bytes": 2500},
        "manuals": {"bits_per_byte": bits * (1 - 0.2 * 2500 / 7500), "tokens": 3200, "bytes": 7500},
        "other": {"bits_per_byte": 9.0, "tokens": 4000, "bytes": 9000},
    }
    facts: dict[str, Any] = {"name": "pretrain", "key": "k", "status": status}
    if status == "done":
        facts |= {"checkpoint": "step-9", "tokens": tokens, "steps": 9, "seconds": 1.0, "skipped": 0}
        facts |= {"final_loss": loss, "heldout_bits_per_byte": bits, "heldout": held}
    write_record(stage / "stage.json", facts)
    return folder


def write_grid(root: Path) -> list[Path]:
    """Twelve runs that lie on the law."""
    return [
        write_run(
            root / f"w{width}-{tokens // 1000}k",
            layers,
            width,
            tokens,
            LAW.loss(size_of(layers, width), tokens),
        )
        for layers, width in SIZES
        for tokens in HORIZONS
    ]
