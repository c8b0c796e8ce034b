"""The folder of a comparison or a sweep.

    comparison.json, comparison.html, loss-by-tokens.svg, ...   what came of it (of a sweep: sweep.json, ...)
    plan.json              what it is, so that nobody else's folder is taken over
    runs/NAME/             one folder a run, as `cupola run` makes it: resumable, readable by every command
    runs/NAME.yaml         the resolved recipe that it runs
    runs/NAME.log          what its process printed, every start after the other

NAME ends in the digest of the recipe. A grid that has changed takes the folders whose digest is in it and
lets the others lie.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from cupola import storage
from cupola.compare.variants import Planned
from cupola.errors import CupolaError, InputError
from cupola.pipeline.folder import RunFolder, StageFolder, hold
from cupola.pipeline.records import DONE
from cupola.recipe.schema import Recipe

Kind = Literal["comparison", "sweep", "comparison of stages"]
LONGEST_NAME = 60


class GroupFolder:
    """Paths of a comparison or a sweep."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        self.plan_path = path / "plan.json"
        self.runs = path / "runs"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder.

        Raises:
            InputError: it is something else's, another process holds it, or it can't be made.
        """
        with hold(self.path, self.kind, self._refuse_others):
            yield

    def _refuse_others(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; a folder is expected")
        if RunFolder(self.path).begun:
            raise InputError(f"{self.path}: is the folder of one run; choose another with --out")
        if not self.plan_path.is_file():
            if any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(
                    f"{self.path}: holds files but no {self.kind}; choose an empty or new folder"
                )
            return
        try:
            kind = json.loads(self.plan_path.read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.plan_path}: cannot be read ({error}); choose another folder") from error
        if kind != self.kind:
            raise InputError(f"{self.path}: is the folder of a {kind}; choose another with --out")

    def write_plan(self, facts: dict[str, Any]) -> None:
        """Say what this folder is."""
        storage.write_json(self.plan_path, {"kind": self.kind, **facts})

    def place(self, planned: Planned) -> Path:
        """The folder of a run: the one that has its digest, else a new name."""
        for path in sorted(self.runs.glob(f"*-{planned.identity}.yaml")):
            return path.with_suffix("")
        label = re.sub(r"[^A-Za-z0-9.=_]+", "-", planned.variant).strip("-.=_").replace("=", "-")
        label = label[:LONGEST_NAME].rstrip("-.") or "run"
        return self.runs / f"{label}-seed{planned.seed}-{planned.identity}"

    def write_recipe(self, planned: Planned) -> Path:
        """Write what a run runs, under the name of its folder."""
        folder = self.place(planned)
        path = folder.with_name(f"{folder.name}.yaml")
        if not path.is_file():
            recipe = planned.recipe.model_copy(update={"name": folder.name})
            values = recipe.model_dump(mode="json", exclude_defaults=True)
            storage.write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        return path

    def others(self, planned: list[Planned]) -> list[str]:
        """Names of the runs that are not of this plan."""
        mine = {self.place(run).name for run in planned}
        return sorted(path.name for path in self.runs.glob("*") if path.is_dir() and path.name not in mine)


def stage_folders(folder: Path, recipe: Recipe, until: str | None) -> list[StageFolder]:
    """The folders of the stages that count, in order."""
    names = list(recipe.stages)
    count = names.index(until) + 1 if until else len(names)
    return [RunFolder(folder).stage(number, name) for number, name in enumerate(names[:count], start=1)]


def is_done(folder: Path, recipe: Recipe, until: str | None) -> bool:
    """Whether every stage that counts is finished by its record; a damaged one `cupola run` mends."""
    with contextlib.suppress(CupolaError):
        return all(stage.facts().get("status") == DONE for stage in stage_folders(folder, recipe, until))
    return False
