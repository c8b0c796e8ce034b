"""What the blocks of a recipe must agree on, beyond what each field can know by itself.

Every check yields the key at fault and one line that says the rule and the mend. `loading.load` has all of
them run before anything is spent; what depends on data (is there enough text?) is the pipeline's to say.
"""

from collections.abc import Iterator

from cupola.recipe.corpora import CALLED, KINDS, Corpus
from cupola.recipe.model_checks import model_problems
from cupola.recipe.origin import BEGIN
from cupola.recipe.problem import Problem
from cupola.recipe.schema import Recipe
from cupola.recipe.stage_checks import known_sources, read_by, stage_problems


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything that is wrong with a recipe whose stages are filled in (`defaults.fill_stages`)."""
    for name, corpus in recipe.corpora.items():
        yield from _corpus(("corpora", name), corpus)
    yield from _tokenizer(recipe)
    yield from model_problems(recipe.model)
    yield from _scale(recipe)
    yield from _begin(recipe)
    if not recipe.stages:
        yield Problem(("stages",), "a recipe needs at least one stage, such as pretrain")
    for name, stage in recipe.stages.items():
        yield from stage_problems(recipe, name, stage)


def _corpus(path: tuple[str, ...], corpus: Corpus) -> Iterator[Problem]:
    kinds = corpus.read_from()
    if not corpus.kinds():
        yield Problem(path, f"names no source; give one of {', '.join(KINDS)}")
    if len(kinds) > 1:
        yield Problem(path, f"names {' and '.join(kinds)}; a corpus has one source, so make it two corpora")
    if corpus.subset and not corpus.huggingface:
        yield Problem((*path, "subset"), "only a huggingface source has subsets; remove it")
    for key, message in corpus.generation_faults():
        yield Problem((*path, key), message)
    if corpus.holds() != "text":
        yield from _records(path, corpus)
    if corpus.fallback:
        if corpus.fallback.holds() != corpus.holds():
            line = (
                f"holds {corpus.fallback.holds()} and stands in for {corpus.holds()}; take one of one format"
            )
            yield Problem((*path, "fallback"), line)
        yield from _corpus((*path, "fallback"), corpus.fallback)


def _records(path: tuple[str, ...], corpus: Corpus) -> Iterator[Problem]:
    called = CALLED[corpus.holds()]
    if corpus.python and not corpus.generate:
        yield Problem((*path, "format"), f"what Python carries are no {called}; remove it")
    for key in ("text_field", "min_document_bytes"):
        if getattr(corpus, key) != Corpus.model_fields[key].default:
            yield Problem((*path, key), f"has no effect on {called}, which are read whole; remove it")


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    tokenizer = recipe.tokenizer
    if tokenizer.kind == "file" and not tokenizer.path:
        yield Problem(("tokenizer", "path"), "kind file needs the path of a tokenizer.json")
    if tokenizer.kind == "bpe" and not tokenizer.train_on and recipe.stages:
        first, stage = next(iter(recipe.stages.items()))
        if stage.reads != "text":
            yield Problem(
                ("tokenizer", "train_on"),
                f"is missing: stage {first} reads no text; name text, or take `kind: file`",
            )
    if tokenizer.kind == "bpe" and tokenizer.path:
        yield Problem(("tokenizer", "path"), "has no effect on kind bpe; add `kind: file`, or remove it")
    train_on = sorted(tokenizer.train_on or {})
    yield from known_sources(("tokenizer", "train_on"), set(train_on), recipe)
    yield from read_by("the tokenizer's training", "text", ("tokenizer", "train_on"), train_on, recipe)
    rows = recipe.model.vocabulary
    if tokenizer.kind == "bpe" and rows and rows < tokenizer.vocabulary:
        yield Problem(
            ("model", "vocabulary"),
            f"{rows} is less than the tokenizer's {tokenizer.vocabulary}; raise it, or lower "
            f"tokenizer.vocabulary to {rows}",
        )


def _begin(recipe: Recipe) -> Iterator[Problem]:
    if BEGIN in recipe.stages:
        yield Problem(
            ("stages", BEGIN), "is the name of the weights that a run begins with; call the stage otherwise"
        )
    if not recipe.begin:
        return
    taken = [name for name in recipe.stages if recipe.parent_of(name) == BEGIN]
    if not any("weights" in recipe.stages[name].carry for name in taken):
        yield Problem((BEGIN,), "no stage takes its weights; let the first one carry weights, or remove it")


def _scale(recipe: Recipe) -> Iterator[Problem]:
    for name in ("data", "tensor", "pipeline", "context"):
        workers = getattr(recipe.scale, name)
        if workers not in (1, "auto"):
            yield Problem(
                ("scale", name), f"{workers} workers: parallel layouts are not built yet; leave it at 1"
            )
