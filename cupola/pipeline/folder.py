"""The folder of one run: what lies where, who may write, what is recorded.

    recipe.yaml      the resolved recipe
    run.json         versions, machine, what `auto` decided, which sources were taken
    ledger.jsonl     what happened, in order
    tokenizer/       the tokenizer, so that the folder can be moved and still speaks
    stages/NN-name/  stage.json, metrics.jsonl, evaluations.jsonl, samples.jsonl, checkpoints/
    tensorboard/     report.html

One process at a time writes to it (`lock`); readers need no lock.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cupola import storage
from cupola.errors import CupolaError, InputError
from cupola.ledger import Ledger
from cupola.machine import machine, versions
from cupola.paths import runs_root
from cupola.recipe.schema import Recipe


class RunFolder:
    """Paths and records of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger(path / "ledger.jsonl")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing.

        Raises:
            InputError: another process holds it, or it can't be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{self.path}: another process is working on this run; wait for it or stop it"
            ) from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def stage(self, number: int, name: str) -> "StageFolder":
        """The folder of the stage that runs as `number` (from 1)."""
        return StageFolder(self.path / "stages" / f"{number:02d}-{name}")

    def stages(self) -> list["StageFolder"]:
        """The stages that have begun, in order."""
        folder = self.path / "stages"
        if not folder.is_dir():
            return []
        found = [StageFolder(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        return [stage for stage in found if stage.facts()]

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds; empty before the first start."""
        return _read(self.path / "run.json")

    def record(self, **facts: Any) -> None:
        """Add to `run.json`."""
        storage.write_json(self.path / "run.json", {**self.facts(), **facts})

    def record_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, and what made it run."""
        values = recipe.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if not (self.path / "recipe.yaml").exists() or (self.path / "recipe.yaml").read_text() != text:
            storage.write_text(self.path / "recipe.yaml", text)
        self.record(name=recipe.name, versions=versions(), machine=machine())


class StageFolder:
    """Paths and records of one stage of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.partition("-")[2]
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.samples = path / "samples.jsonl"

    def facts(self) -> dict[str, Any]:
        """What `stage.json` holds: key, status (`running` or `done`), and the results when done."""
        return _read(self.path / "stage.json")

    def record(self, **facts: Any) -> None:
        """Add to `stage.json`."""
        storage.write_json(self.path / "stage.json", {**self.facts(), **facts})

    def set_aside(self) -> Path:
        """Rename the folder out of the way; nothing is deleted."""
        target = self.path.with_name(f".{self.path.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        while target.exists():
            target = target.with_name(target.name + "x")
        self.path.rename(target)
        return target

    def sweep(self) -> None:
        """Remove what a killed save left behind."""
        if self.checkpoints.is_dir():
            for leftover in self.checkpoints.glob(f"{storage.ASIDE}*"):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover, ignore_errors=True)


def find_run(path: str | Path) -> RunFolder:
    """The run that a path or a bare name (under the runs' folder) means.

    Raises:
        InputError: there is none; names those that exist.
    """
    for candidate in (Path(path).expanduser(), runs_root() / str(path)):
        if (candidate / "run.json").is_file():
            return RunFolder(candidate)
    names = sorted(p.parent.name for p in runs_root().glob("*/run.json"))
    known = f"; {runs_root()} has {', '.join(names)}" if names else ""
    raise InputError(f"{path}: is not the folder of a run (it has no run.json){known}")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CupolaError(f"{path}: does not hold a record of Cupola")
    return value
