"""Folders and files appear whole, whatever interrupts; leftovers are swept; the umask says who may read."""

import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola import storage
from cupola.errors import CupolaError


def make(target: Path, text: str) -> None:
    with storage.new_folder(target, {"text": text}) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "file.txt").write_text(text)
        (aside / "sub" / "private.txt").write_text(text)
        (aside / "sub" / "private.txt").chmod(0o600)  # as some libraries do


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt_before_second_rename(monkeypatch, error: type[BaseException]) -> None:
    """The old folder has been moved away when the new one should take its place."""
    rename = os.rename

    def interrupted(source, target):
        if storage.ASIDE in str(source) and not str(source).endswith(storage.OLD):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_between_the_renames_the_old_folder_stays(tmp_path, monkeypatch, error):
    make(tmp_path / "it", "old")
    with monkeypatch.context() as patch:
        interrupt_before_second_rename(patch, error)
        with pytest.raises((KeyboardInterrupt, CupolaError)):
            make(tmp_path / "it", "new")
    assert storage.verify(tmp_path / "it")["text"] == "old"
    assert names(tmp_path) == ["it"]
    make(tmp_path / "it", "new")
    assert storage.verify(tmp_path / "it")["text"] == "new"
    assert names(tmp_path) == ["it"]


KILLED = """
    import os, pathlib
    from cupola import storage
    rename = os.rename
    os.rename = lambda source, target: os._exit(9) if storage.ASIDE in str(source) else rename(source, target)
    with storage.new_folder(pathlib.Path({target!r}), {{"text": "new"}}) as aside:
        (aside / "file.txt").write_text("new")
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("sweep", [storage.sweep, lambda target: storage.sweep_all(target.parent)])
def test_killed_between_the_renames_the_old_folder_is_put_back_by_the_next_sweep(tmp_path, sweep):
    make(tmp_path / "it", "old")
    code = textwrap.dedent(KILLED.format(target=str(tmp_path / "it")))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "it").exists()
    sweep(tmp_path / "it")
    assert storage.verify(tmp_path / "it")["text"] == "old"
    assert names(tmp_path) == ["it"]


def test_a_sweep_takes_its_own_leftovers_and_puts_nothing_over_what_is_there(tmp_path):
    make(tmp_path / "it", "new")
    for name in ("it-00000000", "it-old", "it-gone", "it-other-00000000", "other-old"):
        (tmp_path / f"{storage.ASIDE}{name}").mkdir()
    storage.sweep(tmp_path / "it")
    assert names(tmp_path) == [".aside-it-other-00000000", ".aside-other-old", "it"]
    assert storage.verify(tmp_path / "it")["text"] == "new"


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_permissions_are_what_the_umask_leaves(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        make(tmp_path / "made" / "it", "text")
        storage.write_json(tmp_path / "record.json", {})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "made": folder,
        "it": folder,
        "sub": folder,
        "file.txt": file,
        "private.txt": file,
        storage.MANIFEST: file,
        "record.json": file,
    }


def test_files_that_dead_writers_left_are_swept_and_those_of_living_ones_stay(tmp_path):
    dead, living = (tmp_path / f"{storage.ASIDE}{name}-00000000" for name in ("dead", "living"))
    for path in (dead, living):
        path.write_text("{")
    hours_ago = time.time() - 2 * storage.SECONDS_OF_A_WRITE
    os.utime(dead, (hours_ago, hours_ago))
    storage.write_text(tmp_path / "it", "text")
    assert names(tmp_path) == [living.name, "it"]


def test_a_write_that_is_interrupted_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    storage.write_text(tmp_path / "it", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            storage.write_text(tmp_path / "it", "new")
    assert (tmp_path / "it").read_text() == "old"
    assert names(tmp_path) == ["it"]


@pytest.mark.parametrize("manifest", ["[]", "{", '{"files": {"sub/file.txt": 3}}', '{"files": []}', "\xff"])
def test_a_manifest_that_is_none_is_a_clear_error(tmp_path, manifest):
    make(tmp_path / "it", "text")
    (tmp_path / "it" / storage.MANIFEST).write_bytes(manifest.encode("latin-1"))
    with pytest.raises(CupolaError, match=storage.MANIFEST):
        storage.verify(tmp_path / "it")


def test_only_the_files_asked_for_are_verified(tmp_path):
    with storage.new_folder(tmp_path / "it") as aside:
        (aside / "a").write_text("a")
        (aside / "b").write_text("b")
    (tmp_path / "it" / "b").write_text("c")
    storage.verify(tmp_path / "it", only=["a"])
    for only in (None, ["b"], ["a", "b"]):
        with pytest.raises(CupolaError, match=r"it/b: is damaged"):
            storage.verify(tmp_path / "it", only=only)
    with pytest.raises(CupolaError, match="does not say what c holds"):
        storage.verify(tmp_path / "it", only=["c"])


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(tmp_path):
    facts = {"text": "é", "share": 0.1, 7: [1, (2, None)], "none": None, storage.SEAL: "another folder's"}
    with storage.new_folder(tmp_path / "it", facts) as aside:
        (aside / "a").write_text("a")
    path = tmp_path / "it" / storage.MANIFEST
    whole = path.read_bytes()
    read = storage.verify(tmp_path / "it")
    assert (read["text"], read["7"], storage.SEAL in read) == ("é", [1, [2, None]], False)
    seal = whole.index(storage.SEAL.encode())
    for place in range(len(whole)):
        if bytes([whole[place]]).isspace() or seal <= place < seal + len(storage.SEAL):
            continue  # layout, or the seal's own name: the facts are what was written
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(CupolaError):
            storage.verify(tmp_path / "it")


def make_unless_there(target: Path, meanwhile: Callable[[], object]) -> None:
    with storage.new_folder(target, replace=False) as aside:
        (aside / "new").touch()
        meanwhile()


def test_a_folder_that_appears_meanwhile_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "it"
    refused = pytest.raises(CupolaError, match=r"it: somebody else made it meanwhile.*; choose another name")
    with refused:
        make_unless_there(target, target.mkdir)
    (target / "precious").write_text("mine")
    with refused:
        make_unless_there(target, lambda: None)
    assert (names(tmp_path), names(target)) == (["it"], ["precious"])
    shutil.rmtree(target)
    with refused:
        make_unless_there(target, lambda: target.symlink_to("nowhere"))
    target.unlink()
    make_unless_there(target, lambda: None)
    assert names(target) == [storage.MANIFEST, "new"]


def test_made_between_the_look_and_the_rename_it_is_left_too(tmp_path, monkeypatch):
    make(tmp_path / "it", "old")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(CupolaError, match="somebody else made it meanwhile"):
        make_unless_there(tmp_path / "it", lambda: None)
    assert storage.verify(tmp_path / "it")["text"] == "old"


@pytest.mark.parametrize("kind", [OSError, CupolaError])
def test_what_fails_in_a_folder_aside_is_said_of_its_target(tmp_path, kind):
    def fail(aside):
        if kind is CupolaError:
            raise CupolaError(f"{aside / 'weights'}: cannot be written", "make room")
        with (aside / "full").open("wb"):
            raise OSError(28, "No space left on device", str(aside / "full"))

    with pytest.raises(CupolaError) as caught, storage.new_folder(tmp_path / "it") as aside:
        fail(aside)
    assert storage.ASIDE not in f"{caught.value} {caught.value.problem}"
    assert str(caught.value).startswith(str(tmp_path / "it"))
    assert names(tmp_path) == []
