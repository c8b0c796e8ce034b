"""Finished runs as points of a scaling law: the size, the tokens and the held-out loss at the end of a stage.

Only ends count. A schedule that decays ends at its own horizon: on the way there the rate is still high and
the loss above what a shorter schedule had reached with as many tokens, so a run is one point, whatever was
evaluated in its middle (Hoffmann et al. 2022, section 3.1). The loss is of held-out text, all of it: nats a
token, over the sources that the stage learns from, each by its tokens.

N are the parameters that a token is multiplied with: a tied embedding or the head, but neither the table that
tokens are looked up in nor learned positions; of a mixture those that a token meets. So 6 N D is the compute,
attention's scores apart. For small models the table is much of the total, and counting it, or leaving out the
head, bends the law (Porian et al. 2024, arXiv:2406.19146). For large ones the counts are the same.
"""

import glob
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola import storage
from cupola.compare.fleet import last_row
from cupola.errors import InputError
from cupola.models import table
from cupola.models.table import trained
from cupola.pipeline.folder import RunFolder, find_run, runs_in
from cupola.pipeline.origin import recipe_of
from cupola.pipeline.records import DONE
from cupola.plan.fitting import Point
from cupola.recipe.clock import Clock
from cupola.recipe.model import Model
from cupola.recipe.schema import Recipe, Stage

SAME_RATE = 0.05
"""Shares of the peak by which the last learning rates of runs may differ before it is said."""


@dataclass(frozen=True)
class Ending:
    """A stage that a run has finished.

    Attributes:
        parameters: N, as the module counts it.
        tokens: of the stage.
        loss: of held-out text, nats a token.
        token_bytes: of the held-out text, bytes a token.
        vocabulary: rows of embedding and head.
        identity: what has to be the same for the runs of one law, by what it is called.
        epochs: how often the source was read that was read most; None where it isn't recorded.
        rate: the last learning rate as a share of the peak; None where it isn't recorded.
    """

    folder: Path
    stage: str
    recipe: Recipe
    parameters: int
    tokens: int
    loss: float
    token_bytes: float
    vocabulary: int
    identity: dict[str, Any]
    epochs: float | None
    rate: float | None

    @property
    def point(self) -> Point:
        """For `plan.fitting`."""
        return Point(self.parameters, self.tokens, self.loss)

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6.0 * self.parameters * self.tokens

    def bits_per_byte(self, loss: float) -> float:
        """A loss of this text in another unit."""
        return loss / math.log(2) / self.token_bytes


def parameters_of(model: Model, vocabulary: int) -> int:
    """N: those that a token is multiplied with."""
    tables = [p for p in table.parameters(model, vocabulary) if p.role == "embedding"]
    looked_up = sum(p.size for p in tables if not (model.tied and p.name == "embedding.weight"))
    return table.active_count(model, vocabulary) - looked_up


def find_folders(texts: Sequence[str]) -> list[Path]:
    """The runs that are meant, each once: by a run, a folder of runs, a comparison, a sweep, or a pattern.

    Raises:
        InputError: there is nothing of the kind.
    """
    found: dict[Path, Path] = {}
    for text in texts:
        for path in _meant(text):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _meant(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir() and not RunFolder(path).begun:
        runs = runs_in(path / "runs") or runs_in(path)
        if not runs:
            raise InputError(f"{text}: holds no runs")
        return [run.path for run in runs]
    if glob.has_magic(text) and not path.exists():
        places = [place for place in sorted(glob.glob(str(path))) if Path(place).is_dir()]
        if not places:
            raise InputError(f"{text}: nothing has a name of that pattern")
        return [run for place in places for run in _meant(place)]
    return [find_run(text).path]


def read(folder: Path, stage: str | None = None) -> Ending:
    """What a run came to.

    Args:
        stage: by default its first.

    Raises:
        InputError: the stage is not finished, or none that a law can be fitted on.
        CupolaError: a record is damaged.
    """
    run = RunFolder(folder)
    if run.imported:
        raise InputError(f"{folder}: holds an imported model, of which no training is recorded")
    recipe = recipe_of(run)
    name = stage or next(iter(recipe.stages))
    try:
        settings = _learns_anew(recipe, name)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    files = next((known for known in run.stages() if known.name == name), None)
    facts = files.facts() if files else {}
    if files is None or facts.get("status") != DONE:
        raise InputError(f"{folder}: stage {name} is not finished; `{run.command()}` goes on with it")
    rows = int(run.fact("vocabulary"))
    if trained.of_stage(recipe.model_of(name), rows, settings).frozen:
        raise InputError(f"{folder}: stage {name} trains a part of the model, and no law of all of it")
    loss, token_bytes = _heldout(folder, facts["heldout"], settings)
    last = last_row(files.metrics) or {}
    return Ending(
        folder,
        name,
        recipe,
        parameters_of(recipe.model_of(name), rows),
        int(facts["tokens"]),
        loss,
        token_bytes,
        rows,
        _identity(run, settings),
        _epochs(run, name),
        float(last["learning_rate"]) / settings.learning_rate.peak if "learning_rate" in last else None,
    )


def _learns_anew(recipe: Recipe, name: str) -> Stage:
    """The stage, if a law can say anything of it."""
    if name not in recipe.stages:
        raise InputError(f"there is no stage {name}; there are {', '.join(recipe.stages)}")
    stage, parent = recipe.stages[name], recipe.parent_of(name)
    if stage.objective != "next_token":
        raise InputError(f"stage {name} learns {stage.objective}; a law is of text, objective next_token")
    if parent is not None and "weights" in stage.carry:
        raise InputError(
            f"stage {name} goes on from {parent}; a law is of stages that begin with weights drawn anew"
        )
    return stage


def _heldout(folder: Path, by_source: dict[str, dict[str, Any]], stage: Stage) -> tuple[float, float]:
    """(nats a token, bytes a token) over the sources of a stage."""
    mine = [by_source[name] for name in stage.sources() if by_source.get(name, {}).get("tokens")]
    tokens, size = (sum(source[what] for source in mine) for what in ("tokens", "bytes"))
    bits = sum((source["bits_per_byte"] or math.nan) * source["bytes"] for source in mine)
    if not tokens or not math.isfinite(bits):
        raise InputError(
            f"{folder}: its sources have no held-out text, or its loss there is not finite; "
            "`heldout: 0.01` of a corpus holds some back"
        )
    return bits * math.log(2) / tokens, size / tokens


def _identity(run: RunFolder, stage: Stage) -> dict[str, Any]:
    names = stage.sources()
    heldout, sources = run.fact("heldout"), run.fact("sources")
    return {
        "tokenizer": storage.read_manifest(run.tokenizer).get("fingerprint"),
        "held-out text": [heldout[name]["sha256"] for name in names if name in heldout],
        "training text": [sources.get(name, {}).get("fingerprint") for name in names],
        "mixture": stage.model_dump(mode="json", include={"data", "packing", "long_documents"}),
        "longest row, and so the context of what is held out,": stage.longest_row(),
    }


def _epochs(run: RunFolder, stage: str) -> float | None:
    """Of the last dry run, which reads the order."""
    found = None
    for event in run.ledger.events():
        if event.get("event") == "checked":
            found = next((s.get("epochs") for s in event.get("stages", []) if s.get("name") == stage), None)
    return max(found.values(), default=None) if found else None


def require_same(endings: Sequence[Ending]) -> None:
    """That runs can stand in one law.

    Raises:
        InputError: names the first that differs from most of the others, and in what.
    """
    for what in endings[0].identity if endings else ():
        values = [repr(ending.identity[what]) for ending in endings]
        usual, many = Counter(values).most_common(1)[0]
        other = next((e for e, value in zip(endings, values, strict=True) if value != usual), None)
        if other is not None:
            raise InputError(
                f"{other.folder}: its {what} is not that of {many} of the {len(values)} runs; "
                "losses of one law are of one tokenizer and one text: leave it out"
            )


@dataclass(frozen=True)
class Asked:
    """A stage that is not trained yet."""

    name: str
    parameters: int
    tokens: int


def asked(recipe: Recipe, like: Ending) -> Asked:
    """What a recipe asks of the stage that a law is of.

    Raises:
        InputError: the law says nothing of it: another tokenizer, text or row; or its horizon needs the data.
    """
    stage, theirs = _learns_anew(recipe, like.stage), like.recipe
    used = {*stage.sources(), *recipe.tokenizer_mixture()}
    differs = {
        "tokenizer": (recipe.tokenizer, recipe.tokenizer_mixture())
        != (theirs.tokenizer, theirs.tokenizer_mixture()),
        "text": any(recipe.corpora.get(name) != theirs.corpora.get(name) for name in used),
        "mixture": stage.data != theirs.stages[like.stage].data,
        "longest row": stage.longest_row() != theirs.stages[like.stage].longest_row(),
    }
    if other := [what for what, differ in differs.items() if differ]:
        raise InputError(
            f"{recipe.name}: has another {other[0]} than {like.folder}; their law says nothing of it"
        )
    if stage.tokens is None or stage.tokens.unit == "epochs":
        raise InputError(
            f"{recipe.name}: the horizon of {like.stage} is {stage.tokens}; say it in tokens or steps "
            f"(--set stages.{like.stage}.tokens=...)"
        )
    rows = recipe.model.vocabulary or like.vocabulary
    return Asked(recipe.name, parameters_of(recipe.model_of(like.stage), rows), Clock(stage).end)


def cautions(endings: Sequence[Ending]) -> list[str]:
    """What makes a law of these runs less sure than its intervals."""
    lines = []
    rates = [ending.rate for ending in endings if ending.rate is not None]
    if rates and max(rates) - min(rates) > SAME_RATE:
        lines.append(
            f"the runs end at {min(rates):.0%} to {max(rates):.0%} of their peak learning rates; a loss"
            " before the end of a decay lies above that after it, so that such runs are of different laws"
        )
    elif rates and min(rates) > 0.5:
        lines.append(
            "the runs end without a decay of the learning rate: the law is of such runs, and lies above what"
            " a decay would reach"
        )
    again = [ending for ending in endings if (ending.epochs or 0) > 1]
    if again:
        most = max(again, key=lambda ending: ending.epochs or 0)
        lines.append(
            f"{len(again)} of the runs read a source more than once ({most.folder.name} "
            f"{most.epochs:.1f} times); the law takes every token for a fresh one"
        )
    return lines
