"""A stage on longer rows with rotary positions of its own: trained, resumed, opened and exported as such."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from cupola.display import Display
from cupola.errors import InputError
from cupola.pipeline.exporting import export_run
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity
from cupola.recipe.rotary import Rope
from tests.displays import Heard
from tests.pipeline.test_resume import NO_ATTENTION, Crash, Saboteur, final_weights, steps_in_metrics

SHORT, LONG = 32, 128
YARN = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=SHORT)
HYBRID = "{family: hybrid, pattern: [mamba2, attention], mamba2: {head_width: 16}}"


@pytest.fixture
def long_recipe(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny recipe with a stage on rows of 32 tokens, one on rows of 128 with YaRN, and one on 64; runs
    without a report, which takes longer than all three."""
    monkeypatch.setattr("cupola.pipeline.run.write_report", lambda folder, records: None)
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["corpora"] = {"manual": {**recipe["corpora"]["manual"], "heldout": 0.01}}
    recipe["evaluate"]["every"] = "100%"
    before = {"data": {"manual": 1}, "tokens": 2000, "sequence_length": SHORT, "learning_rate": 0.01}
    stretched = {"sequence_length": LONG, "rope": {"rope_type": "yarn", "factor": 4}, "learning_rate": 0.003}
    recipe["stages"] = {
        "pretrain": {**before, "batch_tokens": 256, "optimizer": "muon"},
        "long": {**before, **stretched},
        "last": {**before, "sequence_length": 64, "tokens": 1000},
    }
    tiny_recipe.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return tiny_recipe


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long") / "run"


@pytest.fixture
def trained(long_recipe: Path, trained_once: Path) -> Path:
    """The finished run; tests read it."""
    if not trained_once.exists():
        assert run(load(long_recipe), trained_once, None, Display(), check_first=False).status == "done"
    return trained_once


def ropes(module: torch.nn.Module) -> list[Rope]:
    return [block.mixer.rope for block in module.blocks.values() if hasattr(block.mixer, "rope")]


def test_every_stage_is_opened_with_the_rope_that_it_was_trained_with(trained: Path) -> None:
    for stage, rope in (("pretrain", Rope()), ("long", YARN), ("last", YARN)):
        opened = open_run(trained, Display(), stage)
        assert ropes(opened.module) == [rope, rope]
        assert opened.model.rope == rope
    recorded = yaml.safe_load((trained / "recipe.yaml").read_text())["stages"]
    assert recorded["long"]["rope"]["original_max_position_embeddings"] == SHORT
    assert "rope" not in recorded["pretrain"]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("stage", "kind", "context"), [("pretrain", "default", SHORT), ("last", "yarn", LONG)]
)
def test_transformers_computes_what_the_exported_stage_does(
    trained: Path, tmp_path: Path, stage: str, kind: str, context: int
) -> None:
    from transformers import AutoModelForCausalLM

    export_run(trained, tmp_path / "out", Display(), stage)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == kind
    assert config.get("rope_scaling", {}).get("factor") == (4.0 if kind == "yarn" else None)
    assert config["max_position_embeddings"] == context
    module = open_run(trained, Display(), stage).module
    tokens = torch.randint(0, 512, (1, LONG), generator=torch.Generator().manual_seed(0))
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        logits = module.logits(module.hidden(tokens))
        torch.testing.assert_close(logits, oracle(tokens).logits, rtol=1e-4, atol=1e-4)


def test_stopped_in_the_long_stage_it_ends_the_same_to_the_last_bit(
    long_recipe: Path, trained: Path, tmp_path: Path
) -> None:
    folder, recipe = tmp_path / "broken", load(long_recipe)
    paused = run(recipe, folder, "long", Display(), check_first=False, stop_at=Quantity(40, "%"))
    assert [stage.status for stage in paused.stages] == ["done", "paused"]
    assert ropes(open_run(folder, Display(), "long").module) == [YARN, YARN]
    with pytest.raises(Crash):
        run(recipe, folder, None, Saboteur([3], "crash"), check_first=False)
    assert run(recipe, folder, None, Display(), check_first=False).status == "done"
    assert final_weights(folder) == final_weights(trained)
    steps = steps_in_metrics(folder, 2, "long")
    assert steps == steps_in_metrics(trained, 2, "long") == list(range(1, len(steps) + 1))


def test_another_rope_trains_the_stages_anew_that_have_it(long_recipe: Path, tmp_path: Path) -> None:
    short = [f"stages.{name}.tokens=600" for name in ("pretrain", "long", "last")]
    folder = tmp_path / "run"

    def statuses(*overrides: str) -> list[str]:
        report = run(load(long_recipe, [*short, *overrides]), folder, None, Display(), check_first=False)
        return [stage.status for stage in report.stages]

    assert statuses() == ["done"] * 3
    before = final_weights(folder)
    stated = "{rope_type: yarn, factor: 4, original_max_position_embeddings: 32}"
    assert statuses(f"stages.last.rope={stated}") == ["unchanged"] * 3  # as it was
    assert statuses("stages.last.rope={rope_type: default}") == ["unchanged", "unchanged", "done"]
    assert statuses("stages.long.rope.factor=8") == ["unchanged", "done", "done"]
    after = final_weights(folder)
    assert after["pretrain"] == before["pretrain"]
    assert after["long"] != before["long"]


def test_the_context_that_was_derived_is_said_and_rows_beyond_are_noted(
    long_recipe: Path, tmp_path: Path
) -> None:
    heard = Heard()
    short = [f"stages.{name}.tokens=600" for name in ("pretrain", "long", "last")]
    recipe = load(long_recipe, [*short, "stages.long.rope.factor=2"])
    assert run(recipe, tmp_path / "run", None, heard).status == "done"
    assert "stage 'long': rotary positions yarn, factor 2 of 32 tokens" in heard.said
    [note] = RunFolder(tmp_path / "run").facts()["check"]["notes"][1:2]
    assert "rows of 128 tokens are longer than 32 times the factor 2" in note
    assert not any("stage 'pretrain': rotary" in line for line in heard.said)


@pytest.mark.parametrize("how", ["hybrid", "dynamic"])
def test_other_families_and_kinds_stretch_as_well(long_recipe: Path, tmp_path: Path, how: str) -> None:
    overrides = {
        "hybrid": [f"model={HYBRID}"],
        "dynamic": ["stages.long.rope={rope_type: dynamic, factor: 1}"],
    }[how]
    recipe = load(long_recipe, [*overrides, "stages.last=null", "stages.pretrain.tokens=1000"])
    folder = tmp_path / "straight"
    assert run(recipe, folder, None, Display(), check_first=False).status == "done"
    with pytest.raises(Crash):
        run(recipe, tmp_path / "broken", None, Saboteur([9], "crash"), check_first=False)
    assert run(recipe, tmp_path / "broken", None, Display(), check_first=False).status == "done"
    assert final_weights(tmp_path / "broken") == final_weights(folder)
    found = ropes(open_run(folder, Display()).module)
    if how == "hybrid":
        assert found == [YARN]
    else:
        assert [rope.rope_theta for rope in found] == [pytest.approx(10000 * 4 ** (8 / 6))] * 2


@pytest.mark.parametrize(
    "model",
    [
        f"{{family: mamba2, mamba2: {{head_width: 16, state: 8}}, {NO_ATTENTION}}}",
        f"{{family: rwkv7, rwkv7: {{head_width: 16}}, {NO_ATTENTION}}}",
    ],
    ids=["mamba2", "rwkv7"],
)
def test_recurrent_models_simply_go_on(model: str, long_recipe: Path, tmp_path: Path) -> None:
    overrides = [f"model={model}", "stages.pretrain.tokens=600", "stages.long.tokens=600", "stages.last=null"]
    with pytest.raises(InputError, match="rope: has no effect: the model has no rotary attention"):
        load(long_recipe, overrides)
    recipe = load(long_recipe, [*overrides, "stages.long.rope=null"])
    assert run(recipe, tmp_path / "run", None, Display(), check_first=False).status == "done"
    assert open_run(tmp_path / "run", Display()).sequence_length == LONG
