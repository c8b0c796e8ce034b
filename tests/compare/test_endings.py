"""Runs as points of a law: what is read of their folders, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from cupola.compare import endings
from cupola.errors import InputError
from cupola.plan.fitting import most_telling
from cupola.recipe.model import Model
from tests.compare.law_runs import BYTES, size_of, write_run


def test_what_is_read_of_a_run(tmp_path: Path):
    """Loss over the stage's own sources by their tokens; N without the table of the embedding."""
    found = endings.read(write_run(tmp_path / "a", 2, 32, 400_000, 3.25))
    assert found.loss == pytest.approx(3.25)
    assert found.bits_per_byte(found.loss) == pytest.approx(3.25 / math.log(2) / BYTES)
    assert (found.parameters, found.tokens, found.stage) == (size_of(2, 32), 400_000, "pretrain")
    assert found.flops == 6 * size_of(2, 32) * 400_000
    assert (found.rate, found.epochs) == (0.0, 0.5)


def test_the_count_of_parameters():
    """A tied head counts once; learned positions and the table do not; of a mixture what a token meets."""
    plain: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2}
    untied = endings.parameters_of(Model(**plain), 320)
    assert endings.parameters_of(Model(**plain, tied=True), 320) == untied == size_of(2, 32)
    positions = Model(**plain, positions="learned", max_positions=64)
    assert endings.parameters_of(positions, 320) == untied


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": "u"}, "odd: its tokenizer is not that of 3 of the 4 runs"),
        ({"heldout": "i"}, "odd: its held-out text is not that of 3 of the 4"),
        ({"text": "y"}, "odd: its training text is not"),
        ({"data": {"speeches": 2, "manuals": 1}}, "odd: its mixture is not"),
        ({"sequence_length": 32}, "odd: its longest row"),
    ],
)
def test_runs_that_do_not_go_together(tmp_path, settings, words):
    odd = write_run(tmp_path / "odd", 2, 32, 400_000, 3.0, **settings)
    others = [write_run(tmp_path / f"r{n}", 2, 32, 400_000, 3.0) for n in range(3)]
    runs = [endings.read(folder) for folder in (odd, *others)]
    endings.require_same(runs[1:])
    with pytest.raises(InputError, match=words):
        endings.require_same(runs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"status": "running"}, "stage pretrain is not finished; `cupola run"),
        ({"freeze": ["embedding"]}, "trains a part of the model"),
        ({"loss": math.nan}, "no held-out text, or its loss there is not finite"),
    ],
)
def test_a_run_that_is_no_point(tmp_path, settings, words):
    loss = settings.pop("loss", 3.0)
    folder = write_run(tmp_path / "a", 2, 32, 400_000, loss, **settings)
    with pytest.raises(InputError, match=words):
        endings.read(folder)


def test_a_stage_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no stage long; there are pretrain"):
        endings.read(write_run(tmp_path / "a", 2, 32, 400_000, 3.0), "long")


def test_folders_that_are_meant(tmp_path, monkeypatch):
    """A run, a folder of runs, a comparison, a pattern; each run once."""
    for place in ("all/law-a", "all/law-b", "compared/runs/c", "all/other"):
        write_run(tmp_path / place, 2, 32, 400_000, 3.0)
    (tmp_path / "empty").mkdir()

    def names(*texts: str) -> list[str]:
        return [path.name for path in endings.find_folders([str(tmp_path / text) for text in texts])]

    assert names("all/law-*", "all/law-a") == ["law-a", "law-b"]
    assert names("all") == ["law-a", "law-b", "other"]
    assert names("compared", "all/other") == ["c", "other"]
    with pytest.raises(InputError, match="holds no runs"):
        names("empty")
    with pytest.raises(InputError, match="nothing has a name of that pattern"):
        names("none-*")


def test_cautions(tmp_path):
    runs = [
        endings.read(write_run(tmp_path / f"r{n}", 2, 32, 400_000, 3.0, rate=rate, epochs=epochs))
        for n, (rate, epochs) in enumerate([(0.0, 0.5), (0.2, 1.5), (1.0, 0.2), (1.0, 0.3)])
    ]
    mixed, again = endings.cautions(runs)
    assert "end at 0% to 100% of their peak learning rates" in mixed
    assert again.startswith("1 of the runs read a source more than once (r1 1.5 times)")
    (flat,) = endings.cautions(runs[2:])
    assert "without a decay" in flat
    assert endings.cautions(runs[:1]) == []


def test_runs_that_would_add_most(tmp_path):
    """One size and one horizon are there: others are asked for, and never more compute than the largest."""
    points = [endings.read(write_run(tmp_path / "a", 2, 32, 400_000, 3.0)).point] * 2
    wanted = most_telling(points, 4)
    largest = points[0].parameters * points[0].tokens
    assert all(run.parameters * run.tokens <= 1.001 * largest for run in wanted)
    assert len({run.parameters for run in wanted}) > 1
    assert len({run.tokens for run in wanted}) > 1
