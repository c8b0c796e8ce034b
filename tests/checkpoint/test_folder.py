"""Checkpoints: whole or not at all, verified before loading, the one before when the newest is bad."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from cupola import storage
from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.names import step_of
from cupola.checkpoint.verifying import any_verified
from cupola.errors import CupolaError


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.weight": torch.randn(7, 5, generator=generator),
        "a.weight": torch.randn(3, generator=generator).bfloat16(),
    }


def facts(step: int) -> dict:
    """What a trainer states of a checkpoint."""
    position = {"position": 8 * step, "row_length": 4}
    known = {"stage": "pretrain", "seconds": 0.5, "vocabulary": 9, "tokenizer": "t", "data": position}
    return {**known, "step": step, "global_step": step, "tokens": 8 * step}


def save(folder, step):
    return checkpoint.save(folder, tensors(step), {"b.weight/step": torch.tensor(float(step))}, facts(step))


def test_round_trip_is_exact(tmp_path):
    path = save(tmp_path, 3)
    loaded = checkpoint.load(path)
    assert loaded.facts["step"] == 3
    for name, tensor in tensors(3).items():
        assert torch.equal(loaded.weights[name], tensor)
        assert loaded.weights[name].dtype == tensor.dtype
    assert loaded.optimizer["b.weight/step"].item() == 3
    assert (tmp_path / "latest").resolve() == path.resolve()


def test_weights_hash_is_of_names_dtypes_shapes_and_bytes():
    weights = tensors(1)
    expected = hashlib.sha256()
    for name, dtype, shape in (("a.weight", "torch.bfloat16", (3,)), ("b.weight", "torch.float32", (7, 5))):
        expected.update(f"{name} {dtype} {shape}\n".encode())
        expected.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    assert checkpoint.weights_sha256(weights) == expected.hexdigest()
    assert checkpoint.weights_sha256(dict(reversed(weights.items()))) == expected.hexdigest()
    weights["a.weight"] = weights["a.weight"].clone()
    weights["a.weight"][0] += 1
    assert checkpoint.weights_sha256(weights) != expected.hexdigest()


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(tmp_path, file, damage):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    path = newer / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(CupolaError, match=file):
        checkpoint.load(newer)
    told: list[str] = []
    loaded = checkpoint.load_newest(tmp_path, told.append)
    assert loaded is not None
    assert loaded.path == older
    assert len(told) == 1
    assert newer.name in told[0]
    assert file in told[0]


def test_a_broken_manifest_is_refused(tmp_path):
    path = save(tmp_path, 1)
    (path / storage.MANIFEST).write_text("{")
    with pytest.raises(CupolaError, match=storage.MANIFEST):
        checkpoint.load(path)
    assert checkpoint.load_newest(tmp_path, lambda _: None) is None
    assert not any_verified(tmp_path)


FACTS = [
    ("tokens", 16, 17),
    ("weights_sha256", None, "0000"),
    ("step", 2, 3),
    ("data", None, {}),
    ("seconds", 0.5, "0.5"),
    ("global_step", 2, None),
]


@pytest.mark.parametrize(("key", "was", "now"), FACTS)
def test_a_changed_fact_is_damage_and_the_checkpoint_before_is_used(tmp_path, key, was, now):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    manifest = json.loads((newer / storage.MANIFEST).read_text())
    assert was is None or manifest[key] == was
    (newer / storage.MANIFEST).write_text(json.dumps({**manifest, key: now}))
    with pytest.raises(CupolaError, match=rf"{storage.MANIFEST}: is damaged"):
        checkpoint.load(newer)
    told: list[str] = []
    loaded = checkpoint.load_newest(tmp_path, told.append)
    assert loaded is not None
    assert loaded.path == older
    assert [newer.name in text for text in told] == [True]


@pytest.mark.parametrize(("key", "now"), [(key, now) for key, _, now in FACTS if key != "weights_sha256"])
def test_a_manifest_older_than_seals_is_held_against_the_folder_and_itself(tmp_path, key, now):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    manifest = storage.read_manifest(newer)
    (newer / storage.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.load(newer).facts["step"] == 2
    (newer / storage.MANIFEST).write_text(json.dumps({**manifest, key: now}))
    loaded = checkpoint.load_newest(tmp_path, lambda _: None)
    assert loaded is not None
    assert loaded.path == older
    for name in ("data", "weights_sha256", "tokens"):
        without = {fact: value for fact, value in manifest.items() if fact != name}
        (newer / storage.MANIFEST).write_text(json.dumps(without))
        with pytest.raises(CupolaError, match=f"it has no {name}"):
            checkpoint.load(newer)


def test_retain_keeps_the_one_just_saved_and_those_before_it(tmp_path):
    for step in (1, 2, 10, 9):
        last = save(tmp_path, step)
    removed = checkpoint.retain(tmp_path, 2, last)
    assert [step_of(path) for path in removed] == [1]
    assert [step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [2, 9, 10]


def test_a_damaged_optimizer_does_not_matter_to_who_needs_the_weights(tmp_path):
    path = save(tmp_path, 1)
    (path / "optimizer.safetensors").write_bytes(b"")
    loaded = checkpoint.load(path, with_optimizer=False)
    assert loaded.optimizer == {}
    assert torch.equal(loaded.weights["b.weight"], tensors(1)["b.weight"])
    newest = checkpoint.load_newest(tmp_path, pytest.fail, with_optimizer=False)
    assert newest is not None
    assert newest.path == path
    (path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CupolaError, match="weights"):
        checkpoint.load(path, with_optimizer=False)


def test_what_is_newer_than_the_good_one_is_set_aside_until_it_is_saved_again(tmp_path):
    good, bad, worse = (save(tmp_path, step) for step in (4, 6, 8))
    renamed = checkpoint.set_aside_newer(tmp_path, good)
    assert [path.name for path in renamed] == [f"{path.name}.damaged" for path in (bad, worse)]
    assert checkpoint.checkpoints(tmp_path) == [good]
    assert (tmp_path / "latest").resolve() == good.resolve()
    five = save(tmp_path, 5)
    checkpoint.retain(tmp_path, 1, five)
    assert checkpoint.checkpoints(tmp_path) == [five]
    assert all(path.is_dir() for path in renamed)
    seven = save(tmp_path, 7)
    checkpoint.retain(tmp_path, 1, seven)
    assert checkpoint.checkpoints(tmp_path) == [seven]
    assert [path.is_dir() for path in renamed] == [False, True]


def test_without_a_good_one_all_are_set_aside(tmp_path):
    save(tmp_path, 1)
    assert len(checkpoint.set_aside_newer(tmp_path, None)) == 1
    assert checkpoint.checkpoints(tmp_path) == []
    assert not (tmp_path / "latest").is_symlink()
    assert checkpoint.set_aside_newer(tmp_path, None) == []


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    older = save(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "fsync_path", full)
    with pytest.raises(CupolaError, match="No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()
    loaded = checkpoint.load_newest(tmp_path, pytest.fail)
    assert loaded is not None
    assert loaded.path == older
    assert checkpoint.checkpoints(tmp_path) == [older]


@pytest.mark.multiprocess
def test_a_kill_at_any_write_leaves_only_whole_checkpoints(tmp_path):
    """A child saves for ever and is killed at random moments; whatever is visible must verify."""
    child = textwrap.dedent(
        f"""
        import itertools, pathlib, torch
        from cupola.checkpoint import folder as checkpoint
        folder = pathlib.Path({str(tmp_path)!r})
        facts = {facts(0)!r}
        print("ready", flush=True)
        for step in itertools.count(1):
            weights = {{f"w{{i}}": torch.full((300, 300), float(step)) for i in range(4)}}
            path = checkpoint.save(folder, weights, {{}}, {{**facts, "step": step}})
            checkpoint.retain(folder, 2, path)
        """
    )
    seen = 0
    for delay in (0.01, 0.03, 0.07, 0.12, 0.2):
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in checkpoint.checkpoints(tmp_path):
            loaded = checkpoint.load(path)
            assert all((t == loaded.facts["step"]).all() for t in loaded.weights.values())
            seen += 1
    assert seen
