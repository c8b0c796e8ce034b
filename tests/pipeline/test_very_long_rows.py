"""A step of 131,072 tokens in one row, as it is trained by a user: within 8 GiB for each family."""

import json
import subprocess
import sys

import pytest

ROW = 131_072
MODELS = {
    "transformer": "{layers: 2, width: 64, heads: 1}",
    "mamba2": "{family: mamba2, layers: 4, width: 64}",
    "rwkv7": "{family: rwkv7, layers: 2, width: 64}",
}
RECIPE = """
name: long
corpora: {{far: {{generate: retrieval, words: [25000, 30000], items: 6, heldout: 0.2}}}}
tokenizer: {{vocabulary: 320}}
model: {model}
precision: fp32
health: off
stages:
  long:
    {{data: {{far: 1}}, tokens: 1 steps, sequence_length: {row}, batch_tokens: {row}, learning_rate: 1e-3}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_step_of_131072_tokens_takes_less_than_8_gib(family, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=MODELS[family], row=ROW))
    command = [sys.executable, "-m", "cupola", "run", "recipe.yaml", "--out", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    (step,) = (tmp_path / "run/stages/01-long/metrics.jsonl").read_text().splitlines()
    row = json.loads(step)
    assert row["tokens"] == row["sequence_length"] == ROW
    assert row["memory_bytes"] < 8 * 2**30
    print(f"{family}: {row['memory_bytes'] / 2**30:.2f} GiB, {ROW / row['tokens_per_second']:.0f} s")
