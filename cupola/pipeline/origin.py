"""What a recipe's `begin` names, before its weights are read: the folder of a run, or of Hugging Face's.

For the command line, which hands `read_origin` to `recipe.loading.load`; torch is loaded only for a folder
whose `config.json` has to be understood.
"""

from pathlib import Path

import yaml
from pydantic import ValidationError

from cupola.chat.template import load_template
from cupola.checkpoint.verifying import read_facts
from cupola.corpus import tokenizer as tokenizers
from cupola.errors import CupolaError, InputError
from cupola.pipeline.folder import RunFolder, StageFolder, final_checkpoint
from cupola.pipeline.records import DONE, IMPORTED
from cupola.recipe.loading import load
from cupola.recipe.model import Model
from cupola.recipe.origin import BEGIN, Origin
from cupola.recipe.schema import Recipe

CONFIG = "config.json"


def read_origin(path: Path, stage: str | None = None) -> Origin:
    """What model, tokenizer and chat template weights go with.

    Args:
        path: the folder of a run, trained or imported, or one that `save_pretrained` wrote.
        stage: of a run; by default the last one that is finished.

    Raises:
        InputError: there are no such weights, the stage is not finished, or Cupola computes no such model.
    """
    if RunFolder(path).begun:
        return _of_run(RunFolder(path), stage)
    if not path.exists():
        raise InputError(
            f"{path}: there is no such folder (a model of the hub is fetched first, by"
            " `hf download NAME --local-dir DIR`; a run that began with it goes on by the recipe.yaml in its"
            " own folder)"
        )
    if not (path / CONFIG).is_file():
        raise InputError(
            f"{path}: is neither the folder of a run nor of a Hugging Face model (it has no {CONFIG}); of"
            " RWKV's .pth `cupola import` makes a run"
        )
    if stage is not None:
        raise InputError(f"stage {stage}: {path} is no run, so it has no stages; remove it")
    from cupola.export.config import Config
    from cupola.export.formats import read_model

    _, model = read_model(Config.load(path / CONFIG))
    tokenizer = path / tokenizers.FILE
    return Origin(path, None, model, tokenizer if tokenizer.is_file() else None, _template(path))


def _template(folder: Path) -> Path | None:
    """A folder with a template that says which words are answers; most published ones don't."""
    return folder if _marks_answers(folder) else None


def has_unmarked_template(folder: Path) -> bool:
    """Whether its template does not say which words are answers."""
    return _marks_answers(folder) is False


def _marks_answers(folder: Path) -> bool | None:
    try:
        return load_template(folder).marks_answers
    except InputError:
        return None


def _of_run(run: RunFolder, stage: str | None) -> Origin:
    found = origin_stage(run, stage)
    recipe = recipe_of(run)
    model = _model_of(run, recipe, found.name)
    try:
        rows = read_facts(final_checkpoint(found))["vocabulary"]
    except InputError:
        raise
    except CupolaError as error:
        raise InputError(str(error)) from error
    template = run.tokenizer if (run.tokenizer / "chat_template.jinja").is_file() else None
    model = model.model_copy(update={"vocabulary": rows})
    return Origin(run.path, found.name, model, run.tokenizer / tokenizers.FILE, template)


def origin_stage(run: RunFolder, stage: str | None) -> StageFolder:
    """The finished stage of a run that another begins with.

    Raises:
        InputError: there is none, or not of that name.
    """
    there = run.stages()
    if stage is None:
        done = [found for found in there if found.name != BEGIN and found.facts().get("status") == DONE]
        if not done:
            raise InputError(f"{run.path}: has no finished stage to begin with; `{run.command()}` goes on")
        return done[-1]
    found = next((known for known in there if known.name == stage), None)
    if found is None:
        names = ", ".join(known.name for known in there) or "none"
        raise InputError(f"stage {stage}: {run.path} has no such stage; it has {names}")
    if found.facts().get("status") != DONE:
        raise InputError(f"stage {stage} of {run.path}: is not finished; `{run.command()}` goes on with it")
    return found


def _model_of(run: RunFolder, recipe: Recipe, stage: str) -> Model:
    """The model of a stage, `max_positions` being the context that its weights have come to."""
    if stage in recipe.stages:
        model, context = recipe.model_of(stage), recipe.context_of(stage)
    else:
        model = recipe.model
        context = int(run.facts().get(IMPORTED, {}).get("sequence_length", 0))
    if model.is_rotary() and model.max_positions is None and context:
        return model.model_copy(update={"max_positions": context})
    return model


def recipe_of(folder: RunFolder) -> Recipe:
    """The resolved recipe of a run; that of an imported model has no stages, which `load` would refuse.

    Raises:
        CupolaError: it is gone or damaged; says how it is mended.
    """
    path = folder.path / "recipe.yaml"
    cure = folder.mends(recipe_is_whole=False)
    if not path.is_file():
        raise CupolaError(f"{path}: is gone", cure)
    if not folder.imported:
        try:
            return load(path)
        except InputError as error:
            raise CupolaError(str(error), cure) from error
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})", cure) from error
