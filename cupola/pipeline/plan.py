"""Which stages a run has to do: each stage has a key, the digest of everything that shapes its weights.

A finished stage whose key is the same is left alone (the last one only after every byte of its checkpoint
has been verified: the run is for it); an unfinished one goes on from its newest verified checkpoint; a stage
whose key has changed is set aside (renamed, never deleted) and done anew, and so are those after it, since a
key contains its parent's.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cupola import storage
from cupola.checkpoint.verifying import any_verified, verify
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.pipeline.folder import RunFolder, StageFolder
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.records import DONE
from cupola.recipe.schema import Recipe, Stage
from cupola.train.rewards import identity


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan.

    Attributes:
        number: its place in the recipe, from 1.
        key: digest of its settings, sources, tokenizer, model, seed, precision and the keys of the stages
            whose weights it needs.
        parent: the folder of the stage whose weights it begins with, or None.
        beside: those of other stages whose weights it needs, by name (`Stage.beside`).
        action: leave it alone, resume it, or begin it.
    """

    number: int
    name: str
    stage: Stage
    key: str
    folder: StageFolder
    parent: StageFolder | None
    action: Literal["unchanged", "resume", "begin"]
    beside: dict[str, StageFolder] = field(default_factory=dict)


def stage_names_until(recipe: Recipe, until: str | None) -> list[str]:
    """The stages to run.

    Raises:
        InputError: `until` names none of them.
    """
    names = list(recipe.stages)
    if until is None:
        return names
    if until not in names:
        raise InputError(f"--until {until}: no such stage; the recipe has {', '.join(names)}")
    return names[: names.index(until) + 1]


def plan_stages(
    recipe: Recipe, prepared: Prepared, precision: str, folder: RunFolder, names: list[str], display: Display
) -> list[PlannedStage]:
    """Compare the recipe with what the run's folder holds.

    What no longer belongs to the recipe is set aside, also of stages that are not asked for now: whatever
    stands in `stages/` goes with the run's recipe and tokenizer.

    Args:
        names: the stages to run, the first ones of the recipe.
    """
    planned: list[PlannedStage] = []
    keys: dict[str, str] = {}
    folders: dict[str, StageFolder] = {}
    for number, (name, stage) in enumerate(recipe.stages.items(), start=1):
        parent = recipe.parent_of(name)
        needed = {
            "parent": keys[parent] if parent else "",
            **{f"beside {n}": keys[n] for n in stage.beside()},
        }
        key = keys[name] = _key(recipe, name, stage, prepared, precision, needed)
        stage_folder = folders[name] = folder.stage(number, name)
        action = _action(stage_folder, key, display)
        if action == "begin" and stage_folder.facts():
            _set_aside(folder, stage_folder, "its settings, data or parent changed", display)
        elif action == "begin" and _is_lost(folder, name):
            display.warn(f"stage {name}: {stage_folder.path} is gone; it is trained again from its beginning")
        begins_from = folders[parent] if parent else None
        beside = {other: folders[other] for other in stage.beside()}
        planned.append(PlannedStage(number, name, stage, key, stage_folder, begins_from, action, beside))
    belonging = {stage.folder.path for stage in planned}
    for stranger in folder.stages():
        if stranger.path not in belonging:
            _set_aside(folder, stranger, "the recipe has no such stage there", display)
    return _with_sound_checkpoints(planned[: len(names)], display)


def _set_aside(folder: RunFolder, stage: StageFolder, why: str, display: Display) -> None:
    aside = stage.set_aside()
    display.warn(f"{stage.name}: {why}; the old stage is kept as {aside.name}")
    folder.ledger.append("stage_set_aside", stage=stage.name, folder=aside.name, why=why)


def _is_lost(folder: RunFolder, name: str) -> bool:
    """Whether a stage was begun here, was not set aside by a run, and has no folder any more."""
    known = False
    for event in folder.ledger.events():
        if event.get("stage") == name:
            known = event.get("event") != "stage_set_aside"
    return known and name not in {stage.name for stage in folder.stages()}


def _with_sound_checkpoints(planned: list[PlannedStage], display: Display) -> list[PlannedStage]:
    """A finished stage that the run ends with, or from which another has yet to begin, is verified in full;
    if it is damaged, it is done again from what is left of it."""
    sound = list(planned)
    needed = {sound[-1].name} if sound else set()
    for index in reversed(range(len(sound))):
        stage = sound[index]
        if stage.action == "unchanged" and stage.name in needed:
            try:
                with display.task(f"verifying the checkpoint of stage {stage.name}"):
                    verify(final_checkpoint(stage.folder))
            except CupolaError as error:
                _warn_of_damage(stage.name, error, display)
                stage = sound[index] = replace(stage, action="resume")
        if stage.action != "unchanged":
            needed |= set(stage.beside)
        if stage.parent and stage.action != "unchanged" and not any_verified(stage.folder.checkpoints):
            needed.add(stage.parent.name)
    return sound


def _key(
    recipe: Recipe, name: str, stage: Stage, prepared: Prepared, precision: str, needed: dict[str, str]
) -> str:
    """
    Args:
        needed: the keys of the stages whose weights it needs, by what for.
    """
    return storage.digest(
        {
            "seed": recipe.seed,
            "model": recipe.model_of(name).model_dump(mode="json"),
            "vocabulary": prepared.vocabulary,
            "precision": precision,
            "tokenizer": prepared.tokenizer.fingerprint,
            "name": name,
            "stage": _shaping(stage),
            "sources": {name: store.fingerprint for name, store in prepared.train_stores(stage).items()},
            **needed,
            **({"template": prepared.template.fingerprint} if stage.reads != "text" else {}),
        }
    )


def _shaping(stage: Stage) -> dict[str, Any]:
    """The stage's settings that have an effect, and the code of its rewards.

    Whose weights it begins with is in its parent's key, and its rotary positions are the model's.
    """
    counts = {
        "parent": False,
        "rope": False,
        "preference": stage.objective == "dpo",
        "reward": stage.objective == "reward",
        "policy": stage.samples,
        "ppo": stage.objective == "ppo",
        "freeze": bool(stage.freeze),
        "lora": stage.lora is not None,
    }
    settings = stage.model_dump(
        mode="json", exclude={key for key, has_effect in counts.items() if not has_effect}
    )
    if stage.samples:
        settings["policy"]["rewards"] = identity(stage.policy.rewards)
    return settings


def _action(folder: StageFolder, key: str, display: Display) -> Literal["unchanged", "resume", "begin"]:
    facts = folder.facts()
    if facts.get("key") != key:
        return "begin"
    if facts.get("status") == DONE:
        path = folder.checkpoints / facts["checkpoint"]
        try:
            verify(path, contents=False)
            return "unchanged"
        except CupolaError as error:
            _warn_of_damage(folder.name, error, display)
    return "resume"


def _warn_of_damage(stage: str, error: CupolaError, display: Display) -> None:
    display.warn(
        f"stage {stage}: was finished, but {error}; it is trained again from its newest whole checkpoint, or"
        " from where it began"
    )


def final_checkpoint(folder: StageFolder) -> Path:
    """The checkpoint that a finished stage left.

    Raises:
        CupolaError: the stage is not finished, or the checkpoint is gone.
    """
    facts = folder.facts()
    if facts.get("status") != DONE:
        raise CupolaError(f"stage {folder.name}: is not finished; run it first")
    return folder.checkpoints / facts["checkpoint"]
