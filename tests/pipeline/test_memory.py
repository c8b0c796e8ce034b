"""A model that the machine cannot hold is refused by its counts; what runs out all the same is one line."""

import json
import subprocess
import sys

import psutil
import pytest
import torch

from cupola import objectives, optim
from cupola.cli import main
from cupola.data.batch import Microbatch
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.models import build
from cupola.parallel.engine import LocalEngine
from cupola.pipeline import memory, preflight, run
from cupola.recipe.loading import load
from tests.displays import Heard

HUGE = ["model.width=20000", "model.layers=2000", "model.heads=8"]


def settings(overrides):
    return [part for override in overrides for part in ("--set", override)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("adamw", ""),
        ("muon", ""),
        ("soap", ""),
        ("soap", ", one_sided_above: 1"),
        ("soap", ", largest_preconditioned: 40, state_dtype: bf16"),
    ],
)
def test_what_is_counted_is_what_training_holds(tiny_recipe, kind, settings):
    """Against the tensors of a real step."""
    recipe = load(tiny_recipe, [f"stages.pretrain.optimizer={{kind: {kind}{settings}}}"])
    module = build(recipe.model, 512, 0, torch.device("cpu"))
    optimizer = optim.build(module, recipe.stages["pretrain"].optimizer)
    microbatch = Microbatch.of_rows(torch.zeros(1, 9, dtype=torch.long))
    objective = objectives.build(recipe.stages["pretrain"])
    LocalEngine(module, "fp32", torch.device("cpu")).forward_backward([microbatch], objective, 8)
    optimizer.step()
    held = [tensor for p in module.parameters() for tensor in (p, p.grad)]
    held += [tensor for tensor in optim.optimizer_state(optimizer, module).values() if tensor.ndim]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert memory._bytes_of_training(recipe.model, 512, recipe.stages["pretrain"]) == (expected, kind)


@pytest.mark.parametrize("command", [["check", "--no-data"], ["check"], ["run"]])
def test_a_model_larger_than_the_machine_is_refused_before_anything(
    tiny_recipe, tmp_path, monkeypatch, capsys, command
):
    def never(*arguments, **options):
        raise AssertionError("something was made")

    for module in ("cupola.pipeline.prepare.prepare", "cupola.pipeline.run.prepare"):
        monkeypatch.setattr(module, never)
    assert main([*command, str(tiny_recipe), *settings(HUGE)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: model: 8.41T parameters need at least ")
    assert line.endswith(f"; {memory.CURE}")


def test_without_the_check_and_when_all_is_done_nothing_is_refused(tiny_recipe, tmp_path, monkeypatch):
    recipe = load(tiny_recipe)
    monkeypatch.setattr(memory, "available_memory", lambda device: (10, "is available"))
    with pytest.raises(CupolaError, match=r"and 10 bytes is available; lower model\.width"):
        run.run(recipe, tmp_path / "out", None, Display())
    assert run.run(recipe, tmp_path / "out", None, Display(), check_first=False).status == "done"
    heard = Heard()
    assert run.run(recipe, tmp_path / "out", None, heard).status == "done"
    assert any("nothing to do" in line for line in heard.said)


def test_the_least_of_the_limits_counts(monkeypatch):
    device = torch.device("cpu")
    free = psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_control_group_limits", lambda: iter([free * 2, 1000]))
    assert memory.available_memory(device) == (1000, "is what its control group allows")
    monkeypatch.setattr(memory, "_control_group_limits", lambda: iter([]))
    assert memory.available_memory(device)[0] <= free


def test_a_limit_of_address_space_is_heard(tiny_recipe):
    """In a process of its own, since the limit would stay."""
    code = (
        "import resource, sys; from cupola.cli import main;"
        "resource.setrlimit(resource.RLIMIT_AS, (9 * 10**9, 9 * 10**9)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["check", str(tiny_recipe), "--no-data", *settings(["model.width=4096", "model.layers=8"])]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is left under its limit of address space (ulimit -v)" in done.stderr.splitlines()[-1]


def failing_allocation(*arguments, **options):
    torch.empty(2**60)


def test_memory_that_runs_out_in_the_check_is_one_line(tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "_check_stage", failing_allocation)
    assert main(["check", str(tiny_recipe), "--no-data"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: check: memory ran out (")
    assert "unexpected" not in line


def test_memory_that_runs_out_in_training_fails_the_stage(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cupola.pipeline.stage.train_stage", failing_allocation)
    out = str(tmp_path / "out")
    assert main(["run", str(tiny_recipe), "--out", out, "--no-check", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: stage pretrain: memory ran out (")
    assert json.loads(captured.out.splitlines()[-1])["status"] == "failed"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")])
def test_every_kind_of_it_is_heard_and_no_other(error):
    words = r"^here: memory ran out \((an allocation failed|CUDA out of mem)"
    with pytest.raises(CupolaError, match=words), memory.running_out("here"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory.running_out("here"):
        raise RuntimeError("shapes do not fit")
