"""The course of a stage and the steps it is made of, against the loop itself and plain readings."""

from collections import Counter

import numpy as np
import pytest

from cupola.data.loader import Loader
from cupola.display import Display
from cupola.evaluate.bits import windows
from cupola.json_lines import read_whole
from cupola.pipeline.beside import inputs_of
from cupola.pipeline.course import course_of
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.preflight import _subject
from cupola.pipeline.prepare import prepare
from cupola.pipeline.rehearsing import steps_of
from cupola.pipeline.run import run
from cupola.pipeline.stage import stage_clock
from cupola.recipe.loading import load

DECISIONS = Decisions("fp32", 256, 1, "cpu", 512, None, {}, 1e9, "")


def test_it_counts_what_the_loop_does(tiny_recipe, tmp_path):
    recipe = load(tiny_recipe, ["health.every=3 steps", "evaluate.every=30%", "checkpoint.every=7 steps"])
    report = run(recipe, tmp_path / "run", "pretrain", Display(), check_first=False)
    assert report.status == "done"
    folder = RunFolder(tmp_path / "run")
    files = folder.stage(1, "pretrain")
    stage = recipe.stages["pretrain"]
    course = course_of(recipe, stage, stage_clock(stage, prepare(recipe, Display()).train_sources(stage)))
    rows = read_whole(files.metrics)
    tokens = np.diff([0, *(row["tokens"] for row in rows)])
    sizes = Counter(zip((row["sequence_length"] for row in rows), tokens.tolist(), strict=True))
    assert dict(course.steps) == dict(sizes)
    assert len(course.steps) > 3
    assert course.evaluations + 1 == len(read_whole(files.evaluations))
    assert course.looks == len(read_whole(files.health))
    assert course.saves == sum(event["event"] == "checkpoint" for event in folder.ledger.events())


def test_steps_are_made_of_the_microbatches_that_the_loader_gives(tiny_recipe):
    recipe = load(tiny_recipe)
    prepared = prepare(recipe, Display())
    subject, _ = _subject(recipe, "pretrain", recipe.stages["pretrain"], prepared, DECISIONS)
    made, found = steps_of(subject)
    stores = prepared.train_stores(subject.stage)
    with Loader(subject.order, stores, microbatch_tokens=256) as batches:
        for batch in batches:
            size = (subject.clock.sequence_length(batch.start), batch.end - batch.start)
            assert made[size] == Counter(tuple(part.tokens.shape) for part in batch.microbatches)
    assert set(found) <= {shape for step in made.values() for shape in step}


@pytest.mark.parametrize("length", [1, 7, 64])
def test_what_is_read_of_documents_is_what_the_windows_hold(length):
    sizes = [1, 5, 6, 7, 8, 63, 64, 65, 200, 1000]
    plain = 0
    for size in sizes:
        for window in windows(np.zeros(size + 1, dtype=np.int64), length, max(1, length // 2)):
            plain += window.length
    assert inputs_of(np.array(sizes), length) == plain
