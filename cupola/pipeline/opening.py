"""Open a finished or unfinished run for reading: its recipe, tokenizer and the weights of one checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cupola import storage
from cupola.chat.template import FILE as TEMPLATE_FILE
from cupola.chat.template import ChatTemplate, load_template
from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.names import checkpoints, step_of
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.models import build, lora
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision, default_device
from cupola.paths import cache_root
from cupola.pipeline.folder import RunFolder, StageFolder, find_run, trained_again
from cupola.pipeline.origin import recipe_of
from cupola.pipeline.prepare import heldout_texts, prepare
from cupola.pipeline.records import DONE, IMPORTED
from cupola.recipe.adapting import Lora
from cupola.recipe.model import Model
from cupola.recipe.origin import BEGIN
from cupola.recipe.schema import Recipe


@dataclass
class OpenRun:
    """A model ready to read or write text, and where it comes from.

    Attributes:
        answers: whether its stage has learnt from conversations.
        template: how conversations are written down.
        model: as its stage trained it, with the rotary positions that are in force there.
        sequence_length: the longest row that its stage was trained with.
        precision: "fp32" or "bf16", as the run was trained.
    """

    folder: Path
    recipe: Recipe
    stage: str
    checkpoint: Path
    facts: dict[str, Any]
    tokenizer: Tokenizer
    template: ChatTemplate
    model: Model
    module: LanguageModel
    answers: bool
    sequence_length: int
    precision: Precision
    device: torch.device

    def heldout_texts(self, display: Display) -> dict[str, Iterator[str]]:
        """The held-out documents of each source: those that the run held out, as long as the cache has them;
        otherwise the corpora are gathered again, and it is said if they have changed."""
        run = RunFolder(self.folder)
        if run.imported:
            raise InputError(f"{self.folder}: was imported and has held nothing out; give --text FILE")
        recorded = run.fact("heldout")
        folders = {name: cache_root() / facts["folder"] for name, facts in recorded.items()}
        try:
            for path in folders.values():
                storage.verify(path)
        except CupolaError:
            display.say("the cache no longer has this run's held-out text; gathering it again")
            prepared = prepare(self.recipe, display)
            folders = {name: prepared.gathered[name] for name in recorded}
            now = prepared.heldout_facts()
            if changed := [name for name in recorded if now[name]["sha256"] != recorded[name]["sha256"]]:
                display.warn(
                    f"the corpora {', '.join(changed)} have changed since this run: what is held out now is"
                    " not what it was, and the model may have been trained on it"
                )
        return {name: heldout_texts(path) for name, path in folders.items()}


def open_run(path: str | Path, display: Display, stage: str | None = None) -> OpenRun:
    """Load the weights of a run's newest finished stage, of another stage, or of one checkpoint's folder.

    Only the weights are read and verified. Where those of a stage's newest checkpoint are damaged, an older
    one of the stage is taken, and then, if no stage was asked for, the stage before; each with a warning.

    Raises:
        InputError: no such run, stage or checkpoint.
        CupolaError: the weights do not verify, or those of no checkpoint of the stage do.
    """
    folder, stage_folder, loaded = _find(path, stage, display)
    recipe = recipe_of(folder)
    if not folder.imported and is_reward_model(recipe, stage_folder.name):
        raise InputError(
            f"{stage_folder.path}: stage {stage_folder.name} is a reward model, which scores answers and"
            " writes none; choose another with --stage"
        )
    tokenizer = _tokenizer(folder)
    device = default_device()
    try:
        model, length = _model_and_row(folder, recipe, stage_folder)
    except KeyError:
        raise InputError(_foreign(folder, stage_folder, loaded)) from None
    module = build(model, loaded.facts["vocabulary"], seed=0, device=device)
    try:
        lora.load(module, _merged(loaded))  # a critic is no part of what it has learnt to say
        same_tokenizer = loaded.facts["tokenizer"] == tokenizer.fingerprint
    except (RuntimeError, KeyError):
        same_tokenizer = False
    if not same_tokenizer:
        raise InputError(_foreign(folder, stage_folder, loaded))
    module.eval()
    return OpenRun(
        folder=folder.path,
        recipe=recipe,
        stage=stage_folder.name,
        checkpoint=loaded.path,
        facts=loaded.facts,
        tokenizer=tokenizer,
        template=_template(folder),
        model=model,
        module=module,
        answers=_answers(recipe, stage_folder),
        sequence_length=length,
        precision=folder.fact("decisions")["precision"],
        device=device,
    )


def is_reward_model(recipe: Recipe, name: str) -> bool:
    """Whether a stage leaves a model that scores and does not write."""
    return name in recipe.stages and recipe.stages[name].objective == "reward"


def _merged(loaded: checkpoint.Checkpoint) -> dict[str, torch.Tensor]:
    """The plain model's weights, also in the middle of a stage with LoRA."""
    settings = loaded.facts.get("lora")
    return lora.merged(loaded.weights, Lora.model_validate(settings).scale()) if settings else loaded.weights


def _foreign(folder: RunFolder, stage: StageFolder, loaded: checkpoint.Checkpoint) -> str:
    """Why a whole checkpoint does not go with the run's recipe and tokenizer."""
    if stage.path.name.startswith("."):
        return f"{loaded.path}: is not of this run's recipe and tokenizer, but of what was set aside"
    return (
        f"{loaded.path}: is not of the recipe and tokenizer that lie in {folder.path}; if they were changed"
        f" or damaged there, {folder.mends(recipe_is_whole=False)}"
    )


def _tokenizer(folder: RunFolder) -> Tokenizer:
    """The run's tokenizer, every byte of it verified."""
    try:
        if not folder.tokenizer.is_dir():
            raise CupolaError(f"{folder.tokenizer}: is gone")
        storage.verify(folder.tokenizer)
        return Tokenizer.load(folder.tokenizer)
    except CupolaError as error:
        raise CupolaError(str(error), folder.mends()) from error


def _template(folder: RunFolder) -> ChatTemplate:
    """The one that lies beside the run's tokenizer; runs that learn from no conversations may have none."""
    path = folder.tokenizer / TEMPLATE_FILE
    return load_template(path if path.is_file() else None)


def _model_and_row(folder: RunFolder, recipe: Recipe, stage: StageFolder) -> tuple[Model, int]:
    """The model of a stage, and its longest row; KeyError where the recipe has no such stage."""
    if imported := folder.facts().get(IMPORTED):
        length = int(imported["sequence_length"])
        return recipe.model.stretched(None, length), length
    if recipe.begin and stage.name == BEGIN:  # read as what comes of it is, so that figures compare
        length = next(iter(recipe.stages.values())).longest_row()
        length = min(length, recipe.model.max_positions or length)
        return recipe.model.stretched(None, length), length
    return recipe.model_of(stage.name), recipe.stages[stage.name].longest_row()


def _answers(recipe: Recipe, stage: StageFolder) -> bool:
    if stage.name in recipe.stages:
        return recipe.stages[stage.name].reads != "text"
    return bool(stage.facts().get("origin", {}).get("answers"))


def _find(
    path: str | Path, stage: str | None, display: Display
) -> tuple[RunFolder, StageFolder, checkpoint.Checkpoint]:
    """The run, stage and checkpoint that a path means (also a checkpoint, or the link `latest`)."""
    given = Path(path).expanduser()
    found = given.resolve()
    if step_of(found) is None or given.parent.name != "checkpoints":
        folder = find_run(path)
        return folder, *_newest(folder, stage, display)
    stage_folder = StageFolder(found.parent.parent)
    if stage not in (None, stage_folder.name):
        raise InputError(f"--stage {stage}: {path} is a checkpoint of stage {stage_folder.name}")
    if not found.is_dir():
        raise InputError(f"{path}: no such checkpoint")
    run = stage_folder.run
    try:
        return run, stage_folder, checkpoint.load(found, with_optimizer=False)
    except CupolaError as error:
        if stage_folder.path.name.startswith("."):  # set aside: no run trains it again
            raise
        raise CupolaError(str(error), trained_again(run, [found])) from error


def _newest(
    folder: RunFolder, stage: str | None, display: Display
) -> tuple[StageFolder, checkpoint.Checkpoint]:
    stages = folder.stages()
    if stage is not None:
        stages = [found for found in stages if found.name == stage]
        if not stages:
            names = ", ".join(found.name for found in folder.stages()) or "none"
            raise InputError(f"--stage {stage}: this run has no such stage; it has {names}")
    else:  # what it began with only where there is nothing else
        stages = [found for found in stages if found.name != BEGIN] or stages
    finished = [found for found in stages if found.facts().get("status") == DONE]
    damaged: list[str] = []
    bad: list[Path] = []
    for candidate in reversed(finished or stages):
        found: list[str] = []
        loaded = checkpoint.load_newest(candidate.checkpoints, found.append, with_optimizer=False)
        there = checkpoints(candidate.checkpoints)
        bad += there[there.index(loaded.path) + 1 :] if loaded else there
        if loaded is None and finished and not found:
            found.append("its checkpoint is gone")
        damaged += [f"stage {candidate.name}: {why}" for why in found]
        if loaded is None:
            continue
        if damaged:
            used = f"{loaded.path.name} of stage {candidate.name} is used instead"
            display.warn(f"{'; '.join(damaged)}; {used}; {trained_again(folder, bad)}")
        if not finished:
            display.warn(f"stage {candidate.name} is not finished; this is its checkpoint {loaded.path.name}")
        return candidate, loaded
    if damaged:
        raise CupolaError("; ".join(damaged), trained_again(folder, bad))
    raise CupolaError(f"{folder.path}: has no checkpoint yet")
