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

DECIDED = "decided"  # the ledger's event
IMPORTED = "imported"  # the key of run.json, the ledger's event and the one stage of a model from elsewhere


class DamagedRecord(CupolaError):
    """A `run.json` or `stage.json` that is no JSON object; the next `cupola run` mends it (`mending`)."""


class RunFolder:
    """Paths and records of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / "run.json"
        self.ledger = Ledger(path / "ledger.jsonl")

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the folder for writing, for a recipe of that name.

        Raises:
            InputError: another process holds it, it can't be made, or it is something else's.
        """
        try:
            self._refuse_others(name)
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

    def _refuse_others(self, name: str) -> None:
        """Neither somebody's files nor the run of another recipe are taken over."""
        if not self.path.is_dir():
            return
        begun = self.record_path.exists() or self.ledger.path.exists()
        if not begun and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise InputError(f"{self.path}: holds files but no run; choose an empty or new folder")
        with contextlib.suppress(DamagedRecord):
            there = self.facts().get("name", name)
            if there != name:
                raise InputError(
                    f"{self.path}: is the run of recipe {there}, not of {name}; choose another folder, or say"
                    f" --set name={there} to go on there and have its stages set aside where they differ"
                )

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
        """The stages that have a record, in order; it may be damaged."""
        return [stage for stage in self.stage_folders() if stage.record_path.is_file()]

    def stage_folders(self) -> list["StageFolder"]:
        """The stages' folders, in order, but those that were set aside."""
        folder = self.path / "stages"
        if not folder.is_dir():
            return []
        return [StageFolder(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]

    def facts(self) -> dict[str, Any]:
        """What `run.json` holds; empty before the first start.

        Raises:
            DamagedRecord: it is damaged; says how it is mended.
        """
        return _read(self.record_path, self.path)

    def record(self, **facts: Any) -> None:
        """Add to `run.json`."""
        storage.write_json(self.record_path, {**self.facts(), **facts})

    def record_decisions(self, decisions: dict[str, Any]) -> None:
        """Keep what `auto` means, also in the ledger, since it shapes the weights and may be measured."""
        if self.decided() != decisions:
            self.ledger.append(DECIDED, decisions=decisions)
        self.record(decisions=decisions)

    def decided(self) -> dict[str, Any] | None:
        """What `auto` meant last, by the ledger."""
        events = [event for event in self.ledger.events() if event.get("event") == DECIDED]
        return events[-1].get("decisions") if events else None

    def record_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, and what made it run."""
        values = recipe.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path = self.path / "recipe.yaml"
        if not path.exists() or path.read_bytes() != text.encode():
            storage.write_text(path, text)
        self.record(name=recipe.name, versions=versions(), machine=machine())


class StageFolder:
    """Paths and records of one stage of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name.partition("-")[2]
        self.record_path = path / "stage.json"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.samples = path / "samples.jsonl"

    def facts(self) -> dict[str, Any]:
        """What `stage.json` holds: key, status (`running` or `done`), and the results when done.

        Raises:
            DamagedRecord: it is damaged; says how it is mended.
        """
        return _read(self.record_path, self.path.parent.parent)

    def record(self, **facts: Any) -> None:
        """Add to `stage.json`."""
        storage.write_json(self.record_path, {**self.facts(), **facts})

    def begin(self, name: str, key: str) -> None:
        """Record that the stage is under way; results of an earlier end of it no longer count."""
        facts = {"name": name, "key": key, "status": "running"}
        kept = {kept: value for kept, value in self.facts().items() if kept == "compiled"}
        storage.write_json(self.record_path, {**facts, **kept})

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
            storage.sweep_all(self.checkpoints)


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


def _read(path: Path, run: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CupolaError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DamagedRecord(
            f"{path}: is damaged (the checkpoints are not): `cupola run {run / 'recipe.yaml'} --out {run}`"
            " writes it anew"
        )
    return value
