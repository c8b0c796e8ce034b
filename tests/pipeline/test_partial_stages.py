"""Stages that train a part of the weights: fine-tuning with LoRA, resume, reading, and what comes after."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.names import checkpoints
from cupola.cli import main
from cupola.display import Display
from cupola.errors import InputError
from cupola.models import lora, table
from cupola.pipeline import exporting
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.opening import open_run
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity
from tests.displays import Heard
from tests.pipeline.test_resume import NO_ATTENTION, Crash, Saboteur, final_weights
from tests.pipeline.test_sft import chat_recipe  # noqa: F401 (a fixture)

BRIEF = [
    "evaluate={every: 50%, tokens: 16, prompts: [The], sample_tokens: 1}",
    "stages.pretrain.tokens=2000",
    "stages.sft.tokens=10 steps",
    "checkpoint.every=30%",
]
LORA = "stages.sft.lora={rank: 4}"
FAMILIES = {
    "transformer": [],
    "mamba2": [f"model={{family: mamba2, mamba2: {{head_width: 16, state: 8}}, {NO_ATTENTION}}}"],
    "rwkv7": [f"model={{family: rwkv7, rwkv7: {{head_width: 16}}, {NO_ATTENTION}}}"],
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing curves takes longer than these stages, and so does measuring the machine."""
    monkeypatch.setattr("cupola.pipeline.run.write_report", lambda folder, records: None)
    monkeypatch.setattr("cupola.pipeline.decisions.matmul_peak", lambda precision, device: 1e9)


class InFineTuning(Saboteur):
    """Counts that stage's steps alone, with one for each start."""

    def task(self, title: str, total: float | None = None, unit: str = ""):
        return super().task(title, total, unit if title == "sft" else "")


def weights_of(folder: Path, stage: int, name: str) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoints(RunFolder(folder).stage(stage, name).checkpoints)[-1])


def evaluations(folder: Path, stage: int, name: str) -> list[dict]:
    return [
        json.loads(line) for line in RunFolder(folder).stage(stage, name).evaluations.read_text().splitlines()
    ]


def test_learns_and_ends_merged(chat_recipe, tmp_path):  # noqa: F811
    """With the dry run beforehand; a stage after it that freezes goes on from the merged weights."""
    later = (
        "stages.later={objective: sft, data: {counting: 1}, tokens: 3 steps, freeze: [embedding, blocks.0.*]"
    )
    recipe = load(
        chat_recipe, [LORA, "stages.sft.learning_rate.peak=0.02", f"{later}, learning_rate: 1e-3}}"]
    )
    heard = Heard()
    assert run(recipe, tmp_path / "run", None, heard).status == "done"
    assert any(line.startswith("stage sft: trains") and "updates of 14 layers" in line for line in heard.said)
    before, after = weights_of(tmp_path / "run", 1, "pretrain"), weights_of(tmp_path / "run", 2, "sft")
    vocabulary = after.facts["vocabulary"]
    declared = {p.name for p in table.parameters(recipe.model, vocabulary)}
    assert after.weights.keys() == before.weights.keys() == declared
    adapter = checkpoint.load_adapter(after.path)
    assert lora.merged({**before.weights, **adapter}, 2.0).keys() == declared
    for name, tensor in lora.merged({**before.weights, **adapter}, 2.0).items():
        torch.testing.assert_close(after.weights[name], tensor, rtol=0, atol=0)
    moved = {name for name in declared if not torch.equal(before.weights[name], after.weights[name])}
    assert moved == {name.replace("lora_a", "weight") for name in adapter if name.endswith("lora_a")}
    assert after.optimizer == {}
    first, *_, last = evaluations(tmp_path / "run", 2, "sft")
    assert last["bits_per_byte"] < first["bits_per_byte"]
    end = weights_of(tmp_path / "run", 3, "later").weights
    stayed = {name for name in declared if torch.equal(end[name], after.weights[name])}
    assert stayed == {name for name in declared if name.startswith(("embedding.", "blocks.0."))}
    state = weights_of(tmp_path / "run", 3, "later").optimizer
    assert {key.rpartition("/")[0] for key in state} == declared - stayed
    assert not (
        checkpoints(RunFolder(tmp_path / "run").stage(3, "later").checkpoints)[-1] / checkpoint.ADAPTER
    ).exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_off_stage_ends_the_same_to_the_last_bit(family, chat_recipe, tmp_path):  # noqa: F811
    recipe = load(chat_recipe, [*BRIEF, *FAMILIES[family], LORA])
    assert run(recipe, tmp_path / "straight", None, Display(), check_first=False).status == "done"
    saboteur = InFineTuning([8, 13], "crash")
    for _ in range(2):
        with pytest.raises(Crash):
            run(recipe, tmp_path / "broken", None, saboteur, check_first=False)
        newest = weights_of(tmp_path / "broken", 2, "sft")
        assert lora.holds_adapters(newest.weights)
        assert all(key.rpartition("/")[0].endswith(("lora_a", "lora_b")) for key in newest.optimizer)
    assert run(recipe, tmp_path / "broken", None, Display(), check_first=False).status == "done"
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "straight")
    ends = [weights_of(tmp_path / folder, 2, "sft").path for folder in ("broken", "straight")]
    first, second = map(checkpoint.load_adapter, ends)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class AfterTheEnd(Display):
    """Ends the run while it is evaluated at the end of its stage, when the merged weights are saved."""

    def say(self, text: str) -> None:
        if "step 10: held-out answers" in text:
            raise Crash


def test_broken_off_between_the_last_save_and_the_end(chat_recipe, tmp_path):  # noqa: F811
    recipe = load(chat_recipe, [*BRIEF, LORA, "stages.sft.lora.train=[norm.weight]"])
    assert run(recipe, tmp_path / "straight", None, Display(), check_first=False).status == "done"
    with pytest.raises(Crash):
        run(recipe, tmp_path / "broken", None, AfterTheEnd(), check_first=False)
    assert not lora.holds_adapters(weights_of(tmp_path / "broken", 2, "sft").weights)
    assert run(recipe, tmp_path / "broken", None, Display(), check_first=False).status == "done"
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "straight")
    found, expected = (evaluations(tmp_path / name, 2, "sft")[-1] for name in ("broken", "straight"))
    assert found == expected


def test_in_the_middle_everybody_sees_the_adapted_model(chat_recipe, tmp_path):  # noqa: F811
    recipe = load(chat_recipe, [*BRIEF, LORA, "stages.sft.learning_rate.peak=0.05"])
    half = Quantity(50, "%")
    assert run(recipe, tmp_path / "run", None, Display(), check_first=False, stop_at=half).status == "paused"
    opened = open_run(tmp_path / "run", Display(), "sft")
    saved = weights_of(tmp_path / "run", 2, "sft")
    assert lora.holds_adapters(saved.weights)
    base = weights_of(tmp_path / "run", 1, "pretrain").weights
    name = "blocks.0.mixer.query"
    a, b = (saved.weights[f"{name}.{part}"] for part in ("lora_a", "lora_b"))
    assert torch.equal(saved.weights[f"{name}.weight"], base[f"{name}.weight"])
    torch.testing.assert_close(
        opened.module.state_dict()[f"{name}.weight"], base[f"{name}.weight"] + 2 * b @ a
    )
    assert b.any()
    # What the stage itself saw: the evaluation that it wrote down there, made again from the file.
    from cupola.evaluate import answer_bits
    from cupola.pipeline.prepare import prepare

    prepared = prepare(recipe, Display())
    store = prepared.heldout_stores(recipe.stages["sft"])["counting"]
    again = answer_bits(opened.module, store, prepared.tokenizer, most_tokens=16, precision="fp32")
    seen = evaluations(tmp_path / "run", 2, "sft")[-1]["sources"]["counting"]["bits_per_byte"]
    assert again.bits_per_byte == pytest.approx(seen, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stages.sft.lora={rank: 4, targets: [q_proj]}"], r"stages\.sft\.lora\.targets: .*it is query here"),
        (["stages.sft.freeze=[blocks.9.*]"], r"stages\.sft\.freeze: no parameter is called blocks\.9"),
        (["stages.sft.freeze=['*']"], "nothing is left to train"),
    ],
)
def test_what_names_nothing_is_refused_before_anything(chat_recipe, tmp_path, changes, message, capsys):  # noqa: F811
    with pytest.raises(InputError, match=message):
        run(load(chat_recipe, changes), tmp_path / "run", None, Display(), check_first=False)
    assert not (tmp_path / "run").exists()
    assert main(["check", "--no-data", str(chat_recipe), *(f"--set={change}" for change in changes)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_settings_train_again(chat_recipe, tmp_path):  # noqa: F811
    for settings in ([LORA], ["stages.sft.freeze=[head]"]):
        report = run(
            load(chat_recipe, [*BRIEF, *settings]), tmp_path / "run", None, Display(), check_first=False
        )
        assert [stage.status for stage in report.stages][1:] == ["done"]
    assert [stage.status for stage in report.stages] == ["unchanged", "done"]


@pytest.mark.oracle
@pytest.mark.parametrize("parametrisation", ["standard", "completep"])
def test_peft_reads_the_adapter_beside_the_exported_base(chat_recipe, tmp_path, parametrisation):  # noqa: F811
    """By the command line; a parametrisation's multipliers are folded into both."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    scaled = "model.parametrisation={kind: completep, base_width: 16, base_layers: 1}"
    other = [scaled] if parametrisation == "completep" else []
    recipe = load(chat_recipe, [*BRIEF, *other, LORA, "stages.sft.learning_rate.peak=0.05"])
    assert run(recipe, tmp_path / "run", None, Display(), check_first=False).status == "done"
    wanted = {"base": ["--stage", "pretrain"], "adapter": ["--adapter"], "merged": []}
    for name, options in wanted.items():
        assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / name), *options]) == 0
    base, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "merged"))
    tokens = torch.arange(40)[None]
    plain = base(tokens).logits
    with_adapter = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(tokens).logits
    torch.testing.assert_close(with_adapter, merged(tokens).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, with_adapter, atol=1e-2)


@pytest.mark.parametrize(
    ("stage", "settings", "family", "message"),
    [
        (
            "pretrain",
            None,
            "transformer",
            "stage pretrain was trained without LoRA; choose another with --stage",
        ),
        ("sft", {"rank": 4, "train": ["head"]}, "transformer", "stage sft has trained head in full too"),
        ("sft", {"rank": 4}, "rwkv7", "PEFT has no RWKV-7"),
        ("sft", {"rank": 4}, "transformer", "stage sft is not finished; run it to its end"),
    ],
)
def test_what_is_no_adapter_is_not_exported(tmp_path, monkeypatch, stage, settings, family, message):
    recipe = SimpleNamespace(model=SimpleNamespace(family=family))
    facts = {"lora": settings} if settings else {}
    opened = SimpleNamespace(stage=stage, facts=facts, recipe=recipe, checkpoint=tmp_path / "step-3")
    monkeypatch.setattr(exporting, "open_run", lambda *arguments: opened)
    with pytest.raises(InputError, match=f"--adapter: {message}"):
        exporting.export_run("run", tmp_path / "out", Display(), adapter=True)
    assert not (tmp_path / "out").exists()
