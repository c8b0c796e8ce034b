"""The folder of one run: what lies where, who may write, what is recorded.

    recipe.yaml      the resolved recipe
    run.json         versions, machine, what `auto` decided, which sources were taken
    ledger.jsonl     what happened, in order
    tokenizer/       the tokenizer, so that the folder can be moved and still speaks
    stages/NN-name/  stage.json, metrics.jsonl, evaluations.jsonl, samples.jsonl, health.jsonl, checkpoints/
    tensorboard/     report.html

One process at a time writes to it (`lock`); readers need no lock. The two records are read only as they were
written (each carries its own SHA-256) and only with what they must hold (`records`); a damaged one is told
with the command that mends it.
"""

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cupola import storage
from cupola.checkpoint.names import DAMAGED, checkpoints
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.ledger import Ledger
from cupola.machine import machine, versions
from cupola.paths import runs_root
from cupola.pipeline.records import DONE, IMPORTED, RUNNING, decisions_fault, run_fault, stage_fault
from cupola.recipe.schema import Recipe

DECIDED = "decided"  # the ledger's event
LOCK = ".lock"
SOON = 0.2
"""Seconds to wait for a lock, which `held` takes for a moment."""


class DamagedRecord(CupolaError):
    """A `run.json` or `stage.json` that is gone, or not what was written, or lacks something; the next
    `cupola run` mends it (`mending`)."""


@contextlib.contextmanager
def hold(path: Path, kind: str, refuse: Callable[[], None]) -> Iterator[None]:
    """Hold a folder for writing; it is made where it is missing.

    Args:
        kind: what it holds, for people.
        refuse: raises where it is something else's; called before anything is made.

    Raises:
        InputError: another process holds it, it can't be made, or it is refused.
    """
    try:
        refuse()
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, timeout=SOON)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{path}: another process is working on this {kind}; wait for it or stop it"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def held(path: Path) -> bool:
    """Whether a process writes to a folder now; False where that can't be found out."""
    if not (path / LOCK).is_file():
        return False
    try:
        with FileLock(path / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


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
        with hold(self.path, "run", lambda: self._refuse_others(name)):
            yield

    def _refuse_others(self, name: str) -> None:
        """Neither somebody's files nor the run of another recipe nor an imported model are taken over."""
        if not self.path.is_dir():
            return
        if not self.begun and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise InputError(f"{self.path}: holds files but no run; choose an empty or new folder")
        if self.imported:
            raise InputError(
                f"{self.path}: holds an imported model and no recipe's stages; train in another folder"
                " (--out), and read this one with eval, generate or export"
            )
        with contextlib.suppress(DamagedRecord):
            there = self.facts().get("name", name)
            if there != name:
                raise InputError(
                    f"{self.path}: is the run of recipe {there}, not of {name}; choose another folder, or say"
                    f" --set name={there} to go on there and have its stages set aside where they differ"
                )

    @property
    def begun(self) -> bool:
        """Whether there is a run here, be its record damaged or gone."""
        return self.record_path.is_file() or self.ledger.path.is_file()

    @property
    def imported(self) -> bool:
        """Whether it is a model from elsewhere, which `cupola run` can do nothing for."""
        with contextlib.suppress(DamagedRecord):
            return IMPORTED in self.facts()
        return self._imported_by_ledger()

    def _imported_by_ledger(self) -> bool:
        return any(event.get("event") == IMPORTED for event in self.ledger.events())

    def mends(self, recipe_is_whole: bool = True) -> str:
        """What mends damage in this folder, for the end of a message.

        Args:
            recipe_is_whole: otherwise `recipe.yaml` here is what is damaged.
        """
        return self._mends(self.imported, recipe_is_whole)

    def _mends(self, imported: bool, recipe_is_whole: bool = True) -> str:
        cure = (
            "importing the model again, as a new run," if imported else f"`{self.command(recipe_is_whole)}`"
        )
        return f"{cure} mends it"

    def command(self, recipe_is_whole: bool = True) -> str:
        """The command that does what is left of this run."""
        recipe = self.path / "recipe.yaml"
        known = shlex.quote(str(recipe)) if recipe_is_whole and recipe.is_file() else "RECIPE"
        return f"cupola run {known} --out {shlex.quote(str(self.path))}"

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
        """The stages that have a record or a checkpoint, in order; the record may be damaged or gone."""
        return [
            stage
            for stage in self.stage_folders()
            if stage.record_path.is_file() or checkpoints(stage.checkpoints)
        ]

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
        return _read(self.record_path, run_fault, self.ledger.path.is_file(), self.damaged)

    def fact(self, name: str) -> Any:
        """One fact of `run.json` that every run has that has trained.

        Raises:
            DamagedRecord: it is not there.
        """
        facts = self.facts()
        if name not in facts:
            raise self.damaged(self.record_path, f"it has no {name}")
        return facts[name]

    def damaged(self, path: Path, why: str) -> DamagedRecord:
        """What to raise about a record of this run."""
        # By the ledger, since whether it is imported is read from the record.
        cure = self._mends(self._imported_by_ledger())
        return DamagedRecord(f"{path}: is damaged ({why}), the checkpoints are not", cure)

    def record(self, **facts: Any) -> None:
        """Add to `run.json`."""
        write_record(self.record_path, {**self.facts(), **facts})

    def record_decisions(self, decisions: dict[str, Any]) -> None:
        """Keep what `auto` means, also in the ledger, since it shapes the weights and may be measured."""
        if self.decided() != decisions:
            self.ledger.append(DECIDED, decisions=decisions)
        self.record(decisions=decisions)

    def decided(self) -> dict[str, Any] | None:
        """What `auto` meant last, by the ledger; None if it does not say so in full."""
        events = [event for event in self.ledger.events() if event.get("event") == DECIDED]
        decisions = events[-1].get("decisions") if events else None
        return None if decisions_fault(decisions) else decisions

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
        self.health = path / "health.jsonl"

    def facts(self) -> dict[str, Any]:
        """What `stage.json` holds: key, status (`running` or `done`), and the results when done; empty
        before the stage is begun.

        Raises:
            DamagedRecord: it is damaged; says how it is mended.
        """
        begun = bool(checkpoints(self.checkpoints))
        return _read(self.record_path, lambda value: stage_fault(value, self.name), begun, self.run.damaged)

    @property
    def run(self) -> RunFolder:
        """The run that it is a stage of."""
        return RunFolder(self.path.parent.parent)

    def record(self, **facts: Any) -> None:
        """Add to `stage.json`."""
        write_record(self.record_path, {**self.facts(), **facts})

    def begin(self, name: str, key: str) -> None:
        """Record that the stage is under way; results of an earlier end of it no longer count."""
        facts = {"name": name, "key": key, "status": RUNNING}
        kept = {kept: value for kept, value in self.facts().items() if kept == "compiled"}
        write_record(self.record_path, {**facts, **kept})

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


def final_checkpoint(folder: StageFolder) -> Path:
    """The checkpoint that a finished stage left.

    Raises:
        CupolaError: the stage is not finished, or the checkpoint is gone.
    """
    facts = folder.facts()
    if facts.get("status") != DONE:
        raise CupolaError(f"stage {folder.name}: is not finished; run it first")
    return folder.checkpoints / facts["checkpoint"]


def set_aside(folder: RunFolder, stage: StageFolder, why: str, display: Display) -> None:
    """Put a stage out of the way, say so and record it; nothing is deleted."""
    aside = stage.set_aside()
    display.warn(f"{stage.name}: {why}; the old stage is kept as {aside.name}")
    folder.ledger.append("stage_set_aside", stage=stage.name, folder=aside.name, why=why)


def runs_in(root: Path) -> list[RunFolder]:
    """The runs in a folder, by name."""
    found = [RunFolder(path) for path in sorted(root.iterdir())] if root.is_dir() else []
    return [run for run in found if run.begun]


def find_run(path: str | Path) -> RunFolder:
    """The run that a path or a bare name (under the runs' folder) means.

    Raises:
        InputError: there is none; names those that exist.
    """
    for candidate in (Path(path).expanduser(), runs_root() / str(path)):
        if RunFolder(candidate).begun:
            return RunFolder(candidate)
    names = [run.path.name for run in runs_in(runs_root())]
    known = f"; {runs_root()} has {', '.join(names)}" if names else ""
    raise InputError(f"{path}: is not the folder of a run (it has no run.json){known}")


def trained_again(run: RunFolder, damaged: list[Path]) -> str:
    """How damaged checkpoints come back, for the end of a message.

    `cupola run` leaves a finished stage alone where a later one is whole, without reading all its bytes; so
    what is damaged is set aside first, by the name that the run itself would give it.
    """
    if run.imported:
        return run.mends()
    aside = [f"mv {shlex.quote(str(path))} {shlex.quote(str(path) + DAMAGED)}" for path in damaged]
    return f"`{' && '.join([*aside, run.command()])}` trains again what is lost"


def write_record(path: Path, facts: dict[str, Any]) -> None:
    """Replace a `run.json` or `stage.json`, with its own SHA-256 in it."""
    storage.write_json(path, storage.sealed(facts))


def _read(
    path: Path,
    fault: Callable[[Any], str | None],
    expected: bool,
    damaged: Callable[[Path, str], DamagedRecord],
) -> dict[str, Any]:
    """A record without its seal; empty if there is none and none is expected."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if expected:
            raise damaged(path, "it is gone") from None
        return {}
    except OSError as error:
        raise CupolaError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        raise damaged(path, "it is no JSON") from None
    if isinstance(value, dict) and not storage.seal_holds(value):
        raise damaged(path, "its SHA-256 is not the one written in it")
    if wrong := fault(value):
        raise damaged(path, wrong)
    return storage.unsealed(value)
