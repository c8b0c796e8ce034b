"""What `auto` means: measured on a passable amount of work, recorded, and changes of it said."""

import contextlib

import pytest

from cupola.display import Display, Task
from cupola.models import table
from cupola.pipeline import decisions
from cupola.pipeline.decisions import decide, sample_shape
from cupola.recipe.loading import load
from tests.displays import Heard


@pytest.fixture
def recorded(tiny_recipe):
    return decide(load(tiny_recipe), 512, None, Display()).as_json()


def test_other_microbatches_are_said(tiny_recipe, recorded):
    heard = Heard()
    changed = decide(load(tiny_recipe, ["scale.microbatch_tokens=128"]), 512, recorded, heard)
    assert changed.microbatch_tokens == 128
    [line] = [text for text in heard.said if "microbatches" in text]
    assert line == "microbatches had 256 tokens and now have 128: the last bits of its weights may differ"
    heard = Heard()
    decide(load(tiny_recipe), 512, recorded, heard)
    assert not [text for text in heard.said if "microbatches" in text]


def test_the_dtype_of_muon_is_recorded_and_its_change_said(tiny_recipe, recorded):
    assert recorded["muon_dtype"] in ("bfloat16", "float32")
    other = {"bfloat16": "float32", "float32": "bfloat16"}[recorded["muon_dtype"]]
    heard = Heard()
    decide(load(tiny_recipe), 512, {**recorded, "muon_dtype": other}, heard)
    assert heard.warnings == [
        f"Muon iterated in {other} and now does in {recorded['muon_dtype']}: updates differ slightly"
    ]
    heard = Heard()
    of_old = {key: value for key, value in recorded.items() if key != "muon_dtype"}
    decide(load(tiny_recipe), 512, of_old, heard)
    assert heard.warnings == []


def test_without_muon_there_is_nothing_to_record(tiny_recipe):
    recipe = load(tiny_recipe, ["stages.pretrain.optimizer=adamw"])
    assert decide(recipe, 512, None, Display()).muon_dtype is None


@pytest.mark.parametrize(
    ("length", "microbatch", "cost", "shape"),
    [
        (256, 4096, 1e6, (8, 256)),  # cheap: 2048 tokens, as many rows as that is
        (256, 512, 1e6, (2, 256)),  # never more than a microbatch
        (256, 4096, 4e8, (1, 256)),  # 500 tokens are affordable
        (1024, 4096, 4e8, (1, 256)),  # less than a row: a quarter of one
        (1024, 4096, 1e12, (1, 256)),  # however dear
        (4096, 4096, 1e6, (1, 2048)),
        (64, 128, 1e12, (2, 64)),
    ],
)
def test_a_pass_is_of_about_so_much_work(length, microbatch, cost, shape):
    assert sample_shape(length, microbatch, cost) == shape


def test_a_large_vocabulary_is_measured_on_fewer_tokens():
    model = load("quickstart").model
    small, large = (
        sample_shape(128, 4096, table.flops_per_token(model, vocabulary, 128))
        for vocabulary in (8192, 131072)
    )
    assert small[0] * small[1] > large[0] * large[1]


def test_measuring_shows_how_far_it_is(tiny_recipe, monkeypatch):
    seen = []

    class Bar(Task):
        def advance(self, amount: float = 1) -> None:
            seen.append(amount)

    class Watching(Display):
        @contextlib.contextmanager
        def task(self, title, total=None, unit=""):
            seen.append((title, total, unit))
            yield Bar()

    recipe = load(tiny_recipe, ["precision=auto"])
    decide(recipe, 512, None, Watching())
    assert seen[0] == ("measuring bf16 against fp32 on 8 x 32 tokens", decisions.PASSES, "passes")
    assert seen[1:] == [1] * decisions.PASSES
