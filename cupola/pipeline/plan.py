"""Which stages a run has to do: each stage has a key, the digest of everything that shapes its weights.

A finished stage whose key is the same is left alone (the last one only after every byte of its checkpoint
has been verified: the run is for it); an unfinished one goes on from its newest verified checkpoint; a stage
whose key has changed is set aside (renamed, never deleted) and done anew, and so are those after it, since a
key contains its parent's.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cupola import storage
from cupola.checkpoint.verifying import any_verified, read_facts, verify
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.pipeline.folder import RunFolder, StageFolder, final_checkpoint, set_aside
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.records import DONE
from cupola.recipe.origin import BEGIN
from cupola.recipe.schema import Recipe, Stage
from cupola.recipe.structure import did_you_mean
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


def stage_names(recipe: Recipe, first: str | None, until: str | None) -> list[str]:
    """The stages to run, from `--from` (None: the first one) to `--until` (None: the last one).

    Raises:
        InputError: one of them names none, or the first comes after the last.
    """
    names = list(recipe.stages)
    for option, stage in (("--from", first), ("--until", until)):
        if stage is not None and stage not in names:
            close = did_you_mean(stage, names)
            hint = f"did you mean {close}?" if close else f"the recipe has {', '.join(names)}"
            raise InputError(f"{option} {stage}: no such stage; {hint}")
    begin = 0 if first is None else names.index(first)
    end = len(names) if until is None else names.index(until) + 1
    if begin >= end:
        raise InputError(f"--from {first} --until {until}: {first} comes after {until}")
    return names[begin:end]


def plan_stages(
    recipe: Recipe,
    prepared: Prepared,
    precision: str,
    folder: RunFolder,
    names: list[str],
    display: Display,
    anew: bool = False,
) -> list[PlannedStage]:
    """Compare the recipe with what the run's folder holds.

    What no longer belongs to the recipe is set aside, also of stages that are not asked for now: whatever
    stands in `stages/` goes with the run's recipe and tokenizer.

    Args:
        names: the stages to run, one after the other; the first ones of the recipe, unless `anew`.
        anew: they are trained again, whatever there is of them, which is set aside with all that came of it.

    Returns:
        Those stages, and with `anew` the finished ones before the last of them.

    Raises:
        InputError: `anew`, and a stage that they come of is not finished. Nothing was set aside.
    """
    planned = _compared(recipe, prepared, precision, folder, display)
    again = _coming_of(recipe, names) if anew else set()
    planned = [replace(stage, action="begin") if stage.name in again else stage for stage in planned]
    last = list(recipe.stages).index(names[-1]) + 1
    planned = [*_with_sound_checkpoints(planned[:last], display), *planned[last:]]
    if anew:
        done = {stage.name for stage in planned if stage.action == "unchanged"}
        require_parents(recipe, names, done)
    for stage in planned:
        if stage.action == "begin" and stage.folder.facts():
            asked = (
                "it is trained anew (--from)" if stage.name in names else "what it came of is trained anew"
            )
            why = asked if stage.name in again else "its settings, data or parent changed"
            set_aside(folder, stage.folder, why, display)
        elif stage.action == "begin" and _is_lost(folder, stage.name):
            display.warn(
                f"stage {stage.name}: {stage.folder.path} is gone; it is trained again from its beginning"
            )
    belonging = {stage.folder.path for stage in planned}
    if recipe.begin:
        belonging.add(folder.stage(0, BEGIN).path)
    for stranger in folder.stages():
        if stranger.path not in belonging:
            set_aside(folder, stranger, "the recipe has no such stage there", display)
    before = {stage.name for stage in planned[:last] if anew and stage.action == "unchanged"}
    return [stage for stage in planned if stage.name in {*names, *before}]


def _compared(
    recipe: Recipe, prepared: Prepared, precision: str, folder: RunFolder, display: Display
) -> list[PlannedStage]:
    """Every stage of the recipe, and what there is of it."""
    planned: list[PlannedStage] = []
    folders = {BEGIN: folder.stage(0, BEGIN)} if recipe.begin else {}
    keys = {name: read_facts(final_checkpoint(each))["weights_sha256"] for name, each in folders.items()}
    for number, (name, stage) in enumerate(recipe.stages.items(), start=1):
        parent = recipe.parent_of(name)
        needed = {
            "parent": keys[parent] if parent else "",
            **{f"beside {n}": keys[n] for n in stage.beside()},
        }
        key = keys[name] = _key(recipe, name, stage, prepared, precision, needed)
        stage_folder = folders[name] = folder.stage(number, name)
        begins_from = folders[parent] if parent else None
        action = _action(stage_folder, key, display)
        beside = {other: folders[other] for other in stage.beside()}
        planned.append(PlannedStage(number, name, stage, key, stage_folder, begins_from, action, beside))
    return planned


def _coming_of(recipe: Recipe, names: list[str]) -> set[str]:
    """Stages and all that begin with the weights of one of them, or ask its reward model."""
    found = set(names)
    for name, stage in recipe.stages.items():  # what a stage comes of stands before it
        if found & {recipe.parent_of(name), *stage.beside()}:
            found.add(name)
    return found


def require_parents(recipe: Recipe, names: list[str], done: Collection[str]) -> None:
    """That stages which are trained anew, and they alone, find what they come of.

    Args:
        done: the stages that are finished.

    Raises:
        InputError: one begins with another, or asks it, that is neither finished nor among them.
    """
    there = {BEGIN, None, *names, *done}
    for name in names:
        needs = {recipe.parent_of(name): "begins with what stage {} left"}
        needs |= dict.fromkeys(recipe.stages[name].beside(), "asks the reward model of stage {}")
        for other, why in needs.items():
            if other not in there:
                raise InputError(
                    f"--from {names[0]}: stage {name} {why.format(other)}, and that is not finished as the"
                    f" recipe has it; say --from {other}, or run without --from"
                )


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
        fresh = stage.action == "begin" or not any_verified(stage.folder.checkpoints)
        if stage.parent and stage.action != "unchanged" and fresh:
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
        "packing": stage.packing != "stream",
        "long_documents": stage.long_documents is not None,
        "supervised": stage.objective == "sft",
        "preference": stage.objective == "dpo",
        "reward": stage.objective == "reward",
        "kto": stage.objective == "kto",
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
