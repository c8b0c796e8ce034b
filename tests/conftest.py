"""What several test packages need: a private cache, real text, a recipe that trains in seconds."""

import os
from pathlib import Path
from pydoc_data import topics

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

TINY = {
    "name": "tiny",
    "seed": 3,
    "precision": "fp32",
    "compile": "off",
    "tokenizer": {"vocabulary": 512},
    "model": {"layers": 2, "width": 32, "heads": 4, "key_value_heads": 2},
    "scale": {"data": 1, "microbatch_tokens": 256},
    "checkpoint": {"every": "25%", "keep": 2},
    "evaluate": {"every": "50%", "tokens": 256, "prompts": ["The "], "sample_tokens": 8},
    "stages": {
        "pretrain": {
            "data": {"manual": 0.7, "reference": 0.3},
            "tokens": 12000,
            "sequence_length": {"0%": 16, "40%": 32},
            "batch_tokens": {"0%": 256, "25%": 384, "50%": 512},
            "optimizer": "muon",
            "learning_rate": {"peak": 0.01, "warmup": "10%", "decay": "cosine"},
        },
        "midtrain": {
            "data": {"reference": 1},
            "tokens": 4000,
            "sequence_length": 64,
            "learning_rate": {"peak": 0.003, "decay": "linear"},
            "carry": ["weights", "optimizer"],
        },
    },
}


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real English text that every Python carries: its language reference, a file a topic."""
    folder = tmp_path_factory.mktemp("texts")
    for number, (name, text) in enumerate(sorted(topics.topics.items())):
        part = folder / ("manual" if number % 3 else "reference")
        part.mkdir(exist_ok=True)
        (part / f"{name.replace('/', '-')}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session: gathering and tokenizing the same text once is enough."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_recipe(
    tmp_path: Path, text_folder: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A two-stage recipe (batch ramp, growing row, another mix) of a few seconds; a private runs folder."""
    monkeypatch.setenv("CUPOLA_CACHE", str(session_cache))
    monkeypatch.setenv("CUPOLA_RUNS", str(tmp_path / "runs"))
    corpora = {name: {"files": str(text_folder / name), "heldout": 0.1} for name in ("manual", "reference")}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "corpora": corpora}, sort_keys=False), encoding="utf-8")
    return path
