"""The weights that a run begins with become its stage `begin`: a checkpoint of step 0 in `stages/00-begin`.

From there on they are the run's own. The first stage has them as its parent (so they are what DPO and the KL
of GRPO compare with), `eval`, `generate` and `export` read them by `--stage begin`, and a run whose origin is
gone goes on. They are copied, since a run must not change with a folder that is not its own. Rows for tokens
that they have not met are added here (`models.extending`).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from cupola import storage
from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.verifying import read_facts, verify
from cupola.corpus import tokenizer as tokenizers
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.export.folder import read_folder
from cupola.export.tensors import weight_files
from cupola.models.extending import extended
from cupola.pipeline.folder import RunFolder, StageFolder, final_checkpoint, set_aside, write_record
from cupola.pipeline.origin import CONFIG, has_unmarked_template, origin_stage, read_origin, recipe_of
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.records import DONE
from cupola.recipe.origin import BEGIN, Origin
from cupola.recipe.schema import Recipe


def lay_out_beginning(folder: RunFolder, recipe: Recipe, prepared: Prepared, display: Display) -> None:
    """Have the weights that a recipe begins with in the run's folder, whole and as the origin has them now.

    Weights of another origin, or for another tokenizer, are set aside; where the origin is gone, what is here
    stays.

    Raises:
        InputError: there are no such weights, or the tokenizer is not theirs.
        CupolaError: they are damaged, or the disk is full.
    """
    if recipe.begin is None:
        return
    stage, path = folder.stage(0, BEGIN), Path(recipe.begin.weights)
    if path.resolve() == folder.path.resolve():
        raise InputError(
            f"begin: {path} is the folder of this very run, which cannot begin with what it makes; choose"
            " another name or --out"
        )
    if not path.exists() and stage.facts().get("status") == DONE and _is_whole(stage, display):
        display.say(f"{path} is gone; the run goes on with its own copy of the weights that it began with")
        return
    origin = read_origin(path, recipe.begin.stage)
    facts = _identity(origin)
    key = storage.digest(
        {"origin": facts, "vocabulary": prepared.vocabulary, "tokenizer": prepared.tokenizer.fingerprint}
    )
    there = stage.facts()
    if there.get("key") == key and there.get("status") == DONE and _is_whole(stage, display):
        return
    if there and there.get("key") != key:
        set_aside(folder, stage, "the weights that the run begins with, or the tokenizer, changed", display)
    talks = any(stage.reads != "text" for stage in recipe.stages.values())
    if talks and recipe.tokenizer.chat_template is None and has_unmarked_template(path):
        display.say(
            f"{path}: its chat template does not mark what is answered ({{% generation %}}), so conversations"
            " are written as ChatML; tokenizer.chat_template takes another"
        )
    _write(folder, stage, origin, prepared, {"from": str(path), "stage": origin.stage, **facts}, key, display)


def own_tokenizer(folder: RunFolder, recipe: Recipe) -> Recipe:
    """The recipe with the run's copy of a tokenizer and template that are gone with what it began with."""
    settings, own = recipe.tokenizer, folder.tokenizer
    if recipe.begin is None or Path(recipe.begin.weights).exists() or not own.is_dir():
        return recipe
    gone = {
        key: str(copy)
        for key, copy in (("path", own / tokenizers.FILE), ("chat_template", own))
        if (stated := getattr(settings, key)) is not None and not Path(stated).exists()
    }
    return recipe.model_copy(update={"tokenizer": settings.model_copy(update=gone)})


def _is_whole(stage: StageFolder, display: Display) -> bool:
    try:
        with display.task("verifying the weights that the run begins with"):
            verify(final_checkpoint(stage))
    except CupolaError as error:
        display.warn(f"stage {BEGIN}: {error}; the weights are read again")
        return False
    return True


def _identity(origin: Origin) -> dict[str, Any]:
    """What the weights are, wherever they lie; of a run whether they have learnt to answer."""
    tokenizer = storage.file_sha256(origin.tokenizer) if origin.tokenizer else None
    if origin.stage is None:
        files = [origin.path / CONFIG, *weight_files(origin.path)]
        return {
            "tokenizer_sha256": tokenizer,
            "files": {file.name: storage.file_sha256(file) for file in files},
        }
    run = RunFolder(origin.path)
    weights = read_facts(final_checkpoint(origin_stage(run, origin.stage)))["weights_sha256"]
    stages = recipe_of(run).stages
    answers = origin.stage in stages and stages[origin.stage].reads != "text"
    return {"tokenizer_sha256": tokenizer, "weights_sha256": weights, "answers": answers}


def _write(
    folder: RunFolder,
    stage: StageFolder,
    origin: Origin,
    prepared: Prepared,
    facts: dict[str, Any],
    key: str,
    display: Display,
) -> None:
    weights = _for_tokenizer(_read(origin, display), origin, prepared, display)
    folder.ledger.append("stage_begun", stage=BEGIN, step=0, tokens=0, key=key)
    about: dict[str, Any] = {"stage": BEGIN, "step": 0, "global_step": 0, "tokens": 0, "seconds": 0.0}
    about |= {"vocabulary": prepared.vocabulary, "tokenizer": prepared.tokenizer.fingerprint}
    with display.task("writing the weights that the run begins with"):
        path = checkpoint.save(stage.checkpoints, weights, {}, about)
    done = {"status": DONE, "checkpoint": path.name, "tokens": 0, "steps": 0, "seconds": 0.0, "origin": facts}
    write_record(stage.record_path, {"name": BEGIN, "key": key, **done})
    folder.ledger.append("checkpoint", stage=BEGIN, step=0, tokens=0, path=path.name)
    folder.ledger.append("stage_done", stage=BEGIN, **done)
    which = f", stage {origin.stage}" if origin.stage else ""
    display.say(f"begins with the weights of {origin.path}{which}")


def _read(origin: Origin, display: Display) -> dict[str, Tensor]:
    if origin.stage is not None:
        path = final_checkpoint(origin_stage(RunFolder(origin.path), origin.stage))
        return checkpoint.load(path, with_optimizer=False).weights
    found = read_folder(origin.path, display)
    for note in found.notes:
        display.say(note)
    return found.weights


def _for_tokenizer(
    weights: dict[str, Tensor], origin: Origin, prepared: Prepared, display: Display
) -> dict[str, Tensor]:
    """The weights with a row for every token."""
    there = int(weights["embedding.weight"].shape[0])
    new = prepared.tokenizer
    known, pieces = there, {token: list[int]() for token in range(there, new.size)}
    if origin.tokenizer is not None:
        old = Tokenizer.load(origin.tokenizer)
        known, pieces = min(old.size, there), _pieces(old, new)
    if pieces:
        names = ", ".join(new.token_bytes(token).decode(errors="replace") for token in list(pieces)[:8])
        more = ", ..." if len(pieces) > 8 else ""
        display.say(
            f"{len(pieces)} tokens are new to the weights ({names}{more}): each begins as the mean of what"
            f" its text was before; embedding and head have {prepared.vocabulary} rows (they had {there})"
        )
    if not pieces and prepared.vocabulary == there:
        return weights
    return extended(weights, prepared.vocabulary, known, pieces)


def _pieces(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """New token -> the tokens that its text was to the old tokenizer.

    Raises:
        InputError: a token of the old one is another to the new one.
    """
    theirs, ours = old.ids(), new.ids()
    for token, number in theirs.items():
        if ours.get(token) != number:
            found = f"is {ours[token]}" if token in ours else "is no token"
            raise InputError(
                f"{new.origin}: {token!r} {found}, and {number} to the weights that the run begins with"
                f" ({old.origin}); take theirs, or one that has all their tokens and more"
            )
    added = sorted(number for token, number in ours.items() if token not in theirs)
    if added and added[0] < old.size:
        raise InputError(f"{new.origin}: gives {added[0]} to a new token, which is below {old.size}")
    return {number: old.encode(new.token_bytes(number).decode(errors="replace")).tolist() for number in added}
