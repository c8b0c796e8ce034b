import json
import os
import subprocess
import sys

import pytest

from cupola.errors import CupolaError
from cupola.json_lines import read_whole
from cupola.train.metrics import MetricsWriter, cut_back, final_loss


def row(step: int, **facts):
    return {"step": step, "global_step": step, "tokens": 100 * step, "loss": 5.0 - step, **facts}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage" / "metrics.jsonl"


def write(path, steps, **settings):
    writer = MetricsWriter(path, **settings)
    for step in steps:
        writer.write(row(step))
    writer.close()


def test_rows_come_back(path):
    write(path, [1, 2])
    assert read_whole(path) == [row(1), row(2)]
    assert read_whole(path.with_name("none.jsonl")) == []


def test_a_row_is_there_before_the_file_is_closed(path):
    writer = MetricsWriter(path)
    writer.write(row(1))
    assert read_whole(path) == [row(1)]
    writer.close()


def test_rows_survive_a_kill(path):
    code = (
        "import os, pathlib, sys; from cupola.train.metrics import MetricsWriter\n"
        "writer = MetricsWriter(pathlib.Path(sys.argv[1]))\n"
        "writer.write({'step': 1, 'global_step': 1})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}, check=False)
    assert done.returncode == -9
    assert read_whole(path) == [{"step": 1, "global_step": 1}]


def test_cut_back_and_go_on(path):
    write(path, [1, 2, 3, 4])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # torn by a crash
    assert cut_back(path, 2) == 2
    write(path, [3, 4])
    assert [r["step"] for r in read_whole(path)] == [1, 2, 3, 4]


def test_cut_back_removes_a_torn_line_even_if_no_row_is_too_new(path):
    write(path, [1])
    with path.open("a") as file:
        file.write('{"step": 2')
    assert cut_back(path, 1) == 0
    write(path, [2])
    assert [r["step"] for r in read_whole(path)] == [1, 2]


def test_cut_back_of_nothing(path):
    assert cut_back(path, 3) == 0
    assert not path.exists()


def test_what_is_not_finite_is_null_and_the_line_is_json(path):
    writer = MetricsWriter(path)
    writer.write(row(1, gradient_norm=float("inf"), shares={"a": float("nan")}))
    writer.close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["gradient_norm"] is None
    assert read_whole(path)[0]["shares"] == {"a": None}


def test_a_full_disk_is_one_clear_line():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    import pathlib

    writer = MetricsWriter(pathlib.Path("/dev/full"))
    with pytest.raises(CupolaError, match="/dev/full: cannot be written"):
        writer.write(row(1))


def test_tensorboard_has_each_step_once_after_a_resume(path, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = tmp_path / "tensorboard"
    settings = {"tensorboard": curves, "stage": "pretrain"}
    write(path, [1, 2, 3], **settings)
    cut_back(path, 1)
    writer = MetricsWriter(path, global_step=1, **settings)
    writer.write({**row(2), "loss": 0.25, "shares": {"speeches": 0.5}, "skipped": False})
    writer.draw("heldout", {"bits_per_byte": 1.5, "sources": {"speeches": {"bits_per_byte": 1.4}}}, 2)
    writer.close()
    events = accumulator.EventAccumulator(str(curves)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == [(1, 4.0), (2, 0.25)]
    assert [e.value for e in events.Scalars("pretrain/shares/speeches")] == [0.5]
    assert [e.step for e in events.Scalars("pretrain/heldout/sources/speeches/bits_per_byte")] == [2]
    assert not any(tag.endswith("/step") for tag in events.Tags()["scalars"])


def test_tensorboard_is_imported_only_when_it_is_used():
    code = "import sys, cupola.train.loop; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_final_loss_is_the_token_weighted_mean_of_the_last_share():
    rows = [{"tokens": 900, "batch_tokens": 900, "loss": 9.0}]
    rows += [{"tokens": 950, "batch_tokens": 50, "loss": 8.0}]  # ends where the last 5% begin
    rows += [
        {"tokens": 990, "batch_tokens": 40, "loss": 1.0},
        {"tokens": 1000, "batch_tokens": 10, "loss": 2.0},
    ]
    assert final_loss(rows) == pytest.approx((40 * 1.0 + 10 * 2.0) / 50)


def test_final_loss_of_few_or_skipped_steps():
    assert final_loss([]) is None
    big = {"tokens": 1000, "batch_tokens": 1000, "loss": 3.0}
    assert final_loss([big]) == 3.0
    assert final_loss([{"tokens": 10, "batch_tokens": 10, "loss": None, "skipped": True}]) is None
    skipped = {"tokens": 1040, "batch_tokens": 40, "loss": 7.0, "skipped": True}
    assert final_loss([big, skipped]) == 3.0
