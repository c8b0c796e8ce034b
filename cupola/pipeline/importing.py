"""A model from elsewhere becomes a run: one finished stage, `imported`, that every command can read.

The folder appears whole or not at all, and an existing one is never touched. Weights become fp32, as all
checkpoints are. The run's recipe names model and tokenizer but no stages: what the model was trained on is
not known here, so nothing of it can be trained again.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola import storage
from cupola.checkpoint import folder as checkpoint
from cupola.corpus import tokenizer as tokenizers
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display, count
from cupola.errors import InputError
from cupola.export import config, rwkv7
from cupola.export.folder import Imported, read_folder
from cupola.models import table
from cupola.paths import runs_root
from cupola.pipeline.folder import RunFolder, write_record
from cupola.pipeline.records import DONE, IMPORTED
from cupola.recipe.schema import Recipe
from cupola.recipe.schema import Tokenizer as TokenizerSettings

CONTEXT, LONGEST_CONTEXT = 2048, 4096
"""Tokens of a row where the file states none, and where it states more: long rows cost memory."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class ImportReport:
    """What became of an import."""

    run: str
    kind: str
    parameters: int
    vocabulary: int
    sequence_length: int
    checkpoint: str


def import_model(
    source: Path,
    out: Path | None,
    display: Display,
    tokenizer: Path | None = None,
    name: str | None = None,
    sequence_length: int | None = None,
) -> ImportReport:
    """Make a run's folder of a Hugging Face folder, or of RWKV-7's `.pth`.

    Args:
        source: the folder or the file; also a folder that holds a `model.pth`, as `cupola export` writes it.
        out: the folder to make; by default `runs/NAME`.
        tokenizer: a `tokenizer.json` or its folder; by default the source's own.
        name: of the run; by default that of `out` or of the source.
        sequence_length: the rows that evaluation reads; by default the model's context, up to 4096.

    Raises:
        InputError: the folder exists, or the source is not usable: one line, and nothing was written.
        CupolaError: the disk is full, or the folder appeared meanwhile.
    """
    name = _name(name, out or source)
    target = out or runs_root() / name
    if target.exists():
        raise InputError(f"{target}: exists; an import makes a new folder, so choose another with --out")
    found = _read(source, display)
    for note in found.notes:
        display.say(note)
    speaker = _tokenizer(source, tokenizer, found)
    length = _sequence_length(found, sequence_length, display)
    count_ = table.count(found.model, found.vocabulary)
    display.say(f"{found.kind} of {count(count_)} parameters, vocabulary {found.vocabulary}")
    with storage.appearing(target, replace=False) as aside:
        saved = _write(RunFolder(aside), name, source, found, speaker, length, display)
    path = target / saved.relative_to(aside)
    return ImportReport(str(target), found.kind, count_, found.vocabulary, length, str(path))


def _name(name: str | None, path: Path) -> str:
    if name is None:
        return re.sub(r"[^A-Za-z0-9._-]+|^[._-]+", "", path.expanduser().absolute().stem) or IMPORTED
    if not NAME.fullmatch(name):
        raise InputError(f"--name {name}: letters, digits, dots, dashes and underscores are expected")
    return name


def _read(source: Path, display: Display) -> Imported:
    if not source.exists():
        raise InputError(
            f"{source}: there is no such folder or file (a model of the hub is fetched first, by"
            " `hf download NAME --local-dir DIR`)"
        )
    if source.is_file():
        if source.suffix != ".pth":
            raise InputError(f"{source}: is neither the folder of a Hugging Face model nor RWKV's .pth")
        return rwkv7.read_file(source, display)
    if (source / rwkv7.FILE).is_file() and not (source / config.FILE).exists():
        return rwkv7.read_file(source / rwkv7.FILE, display)
    return read_folder(source, display)


def _tokenizer(source: Path, given: Path | None, found: Imported) -> Tokenizer:
    folder = source if source.is_dir() else source.parent
    if given is None and not (folder / tokenizers.FILE).is_file():
        hint = ""
        if source.suffix == ".pth":
            hint = (
                " (the World models have a vocabulary of RWKV's own kind, which has to be converted to one)"
            )
        others = [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
        if others:
            hint = (
                f" (it has {others[0]}: transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                f" writes a {tokenizers.FILE})"
            )
        raise InputError(
            f"{source}: has no {tokenizers.FILE} beside its weights{hint}; give one with --tokenizer PATH"
        )
    loaded = Tokenizer.load(given or folder)
    if loaded.size > found.vocabulary:
        raise InputError(
            f"{loaded.origin}: has {loaded.size} ids, the model's embedding only {found.vocabulary} rows; it"
            " is another model's tokenizer"
        )
    return loaded


def _sequence_length(found: Imported, asked: int | None, display: Display) -> int:
    context = found.model.max_positions
    if asked is not None:
        if found.model.positions == "learned" and context is not None and asked > context:
            raise InputError(f"--sequence-length {asked}: the model has {context} learned positions")
        return asked
    if context is None or context <= LONGEST_CONTEXT:
        return context or CONTEXT
    display.say(
        f"its context is {context} tokens; evaluation reads rows of {LONGEST_CONTEXT} unless"
        " --sequence-length says more"
    )
    return LONGEST_CONTEXT


def _write(
    folder: RunFolder,
    name: str,
    source: Path,
    found: Imported,
    tokenizer: Tokenizer,
    sequence_length: int,
    display: Display,
) -> Path:
    """The run's records, tokenizer and checkpoint; returns the checkpoint's folder."""
    origin = str(source.expanduser().resolve())
    with storage.new_folder(folder.tokenizer, {"fingerprint": tokenizer.fingerprint}) as aside:
        tokenizer.save(aside)
    # Relative to the recipe, so that the folder can be moved and be another recipe's `base:`.
    settings = TokenizerSettings(kind="file", path=f"{folder.tokenizer.name}/{tokenizers.FILE}")
    recipe = Recipe(name=name, precision="fp32", tokenizer=settings, model=found.model, stages={})
    folder.record_recipe(recipe)
    imported = {"from": origin, "format": found.kind, "sequence_length": sequence_length}
    folder.record(
        imported=imported,
        decisions={"precision": "fp32"},
        parameters=table.count(found.model, found.vocabulary),
        active_parameters=table.active_count(found.model, found.vocabulary),
        vocabulary=found.vocabulary,
    )
    stage = folder.stage(1, IMPORTED)
    facts: dict[str, Any] = {"step": 0, "global_step": 0, "tokens": 0, "seconds": 0.0}
    facts |= {"stage": IMPORTED, "vocabulary": found.vocabulary, "tokenizer": tokenizer.fingerprint}
    with display.task("writing the checkpoint"):
        path = checkpoint.save(stage.checkpoints, found.weights, {}, facts)
    key = storage.digest({"imported": storage.read_manifest(path)["weights_sha256"]})
    done = {"status": DONE, "checkpoint": path.name, "tokens": 0, "steps": 0, "seconds": 0.0}
    write_record(stage.record_path, {"name": IMPORTED, "key": key, **done})
    folder.ledger.append(IMPORTED, **imported, key=key)
    folder.ledger.append("checkpoint", stage=IMPORTED, step=0, tokens=0, path=path.name)
    folder.ledger.append("stage_done", stage=IMPORTED, **done)
    return path
