"""What `cupola eval` measures besides bits per byte: probes of long contexts, loss by position, tasks."""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from cupola.cli.options import show_table
from cupola.display import Display
from cupola.errors import InputError


@dataclass(frozen=True)
class Measured:
    """Figures for `--json`, and the table that people see."""

    figures: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""

    def show(self) -> None:
        """Print the table."""
        show_table(self.columns, self.rows)
        if self.remark:
            click.echo(self.remark)


@dataclass(frozen=True)
class Asked:
    """The options, with what they are by default; lengths may be none, and are the stage's row then."""

    probes: tuple[str, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    attempts: int
    ks: tuple[int, ...]
    seed: int
    plot: Path | None

    @classmethod
    def read(cls, by_position: bool, tasks: str | None, plot: str | None, **options: Any) -> "Asked":
        """Check the options by themselves.

        Raises:
            InputError: says which is wrong.
        """
        lengths, ks = _unlike(options["lengths"]), _unlike(options["ks"])
        if by_position and len(lengths) > 1:
            raise InputError(f"--length {lengths[1]}: --by-position reads rows of one length; give one")
        most = max(ks, default=1)
        attempts = most if options["attempts"] is None else options["attempts"]
        if ks and attempts < most:
            raise InputError(f"--pass-at {most}: takes at least {most} attempts, not {attempts}")
        names = () if tasks is None else _unlike(name.strip() for name in tasks.split(","))
        if not all(names):
            raise InputError(f"--tasks {tasks!r}: give names with commas between them")
        depths = options["depths"] or 5
        return cls(
            _unlike(options["probes"]),
            names,
            lengths,
            tuple(place / (depths - 1) for place in range(depths)) if depths > 1 else (0.5,),
            options["samples"] or (100 if tasks else 20),
            attempts,
            ks,
            options["seed"] or 0,
            _plot_file(plot),
        )


def _unlike(values: Any) -> tuple[Any, ...]:
    """Each value once, in order."""
    return tuple(dict.fromkeys(values))


def _plot_file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix != ".svg":
        raise InputError(f"--plot {name}: an SVG is drawn; take a name that ends in .svg")
    if path.is_dir():
        raise InputError(f"--plot {name}: is a folder; name a file")
    return path


def _draw(path: Path | None, svg: str, display: Display) -> None:
    if path is not None:
        from cupola.storage import write_text

        write_text(path, svg)
        display.say(f"{path}: written")


def probes(opened: Any, asked: Asked, display: Display) -> Measured:
    """Each kind of probe at each length and depth."""
    from cupola.corpus.generators.retrieval import Kind
    from cupola.evaluate import probe, refuse_beyond_positions

    lengths = asked.lengths or (opened.sequence_length,)
    refuse_beyond_positions(opened.module, lengths)
    found = {
        kind: probe(
            opened.module,
            opened.tokenizer,
            cast(Kind, kind),
            lengths,
            asked.depths,
            asked.samples,
            seed=asked.seed,
            precision=opened.precision,
            display=display,
        )
        for kind in asked.probes
    }
    if asked.plot:
        from cupola.report.long_context import heat_map_svg

        _draw(asked.plot, heat_map_svg(found), display)
    figures = {kind: [cell.facts() for cell in cells] for kind, cells in found.items()}
    rows = []
    for kind, cells in found.items():
        for length in lengths:
            own = [cell for cell in cells if cell.length == length]
            shares = [f"{cell.accuracy:.2f}" for cell in own]
            mean = sum(cell.log_probability for cell in own) / len(own)
            rows.append([kind, f"{length:,}", *shares, f"{mean:.2f}"])
    columns = ["", "tokens", *(f"depth {depth:.0%}" for depth in asked.depths), "log p"]
    return Measured(
        {"seed": asked.seed, "probes": figures},
        columns,
        rows,
        f"share of {asked.samples} found; log p: mean log-probability of the right answer, in nats",
    )


def by_position(
    opened: Any, texts: Mapping[str, list[str]], kind: str, asked: Asked, display: Display
) -> Measured:
    """Loss by position of all texts together, and under `kind` that of each name; there is at least one."""
    from cupola.evaluate import loss_by_position, refuse_beyond_positions

    length = asked.lengths[0] if asked.lengths else opened.sequence_length
    refuse_beyond_positions(opened.module, [length])
    found = {
        name: loss_by_position(
            opened.module,
            opened.tokenizer,
            documents,
            length,
            precision=opened.precision,
            display=display,
            title=f"{name} by position",
        )
        for name, documents in texts.items()
    }
    together = functools.reduce(operator.add, found.values())
    if not together.rows:
        raise InputError(
            f"--length {length}: no text is so long; take a shorter length, or give a long --text FILE"
        )
    if asked.plot:
        from cupola.report.long_context import position_svg

        _draw(asked.plot, position_svg(found), display)
    known = {name: {b.first: b for b in losses.buckets()} for name, losses in found.items() if losses.rows}
    rows = []
    for bucket in together.buckets():
        error = "-" if bucket.standard_error is None else f"{bucket.standard_error:.3f}"
        own = [f"{buckets[bucket.first].loss:.3f}" for buckets in known.values()] if len(known) > 1 else []
        positions = f"{bucket.first:,}" + (f" to {bucket.last:,}" if bucket.last > bucket.first else "")
        rows.append([positions, f"{bucket.loss:.3f}", error, f"{bucket.tokens:,}", *own])
    figures = {"length": length, **together.facts()}
    figures[kind] = {name: losses.facts() for name, losses in found.items()}
    columns = ["read before", "loss", "standard error", "tokens", *(known if len(known) > 1 else [])]
    return Measured(figures, columns, rows, f"nats per token; {together.rows} rows of {length:,} tokens")


def tasks(opened: Any, asked: Asked, display: Display) -> Measured:
    """The accuracy of answers to each task's questions."""
    from cupola.evaluate.tasks import score_task
    from cupola.pipeline.folder import RunFolder
    from cupola.pipeline.questions import find_exam

    recorded = RunFolder(Path(opened.folder)).facts().get("sources", {})
    exams = {name: find_exam(opened.recipe, recorded, name, asked.samples, display) for name in asked.tasks}
    found = {}
    for name, exam in exams.items():
        if len(exam.questions) < asked.samples:
            display.warn(
                f"{name}: there are {len(exam.questions)} questions, and {asked.samples} are asked for"
            )
        found[name] = score_task(
            opened.module,
            opened.tokenizer,
            opened.template,
            exam.questions,
            exam.marks,
            attempts=asked.attempts,
            ks=asked.ks,
            seed=asked.seed,
            precision=opened.precision,
            display=display,
            title=name,
        )
    figures = {name: {"source": exams[name].source, **score.facts()} for name, score in found.items()}
    in_parts = any(score.score != score.greedy for score in found.values())
    rows = []
    for name, score in found.items():
        shares = [
            score.greedy,
            *([score.score] if in_parts else []),
            *([score.sampled] if score.sampled else []),
        ]
        shown = map(_share, [*shares, *score.pass_at.values()])
        rows.append([name, *shown, f"{score.greedy.count:,}", exams[name].source])
    columns = [
        "",
        "greedy",
        *(["mean mark"] if in_parts else []),
        *(["temperature 1"] if asked.attempts else []),
    ]
    columns += [*(f"pass@{k}" for k in asked.ks), "questions", "from"]
    return Measured({"seed": asked.seed, "tasks": figures}, columns, rows, "± one standard error")


def _share(share: Any) -> str:
    error = "" if share.standard_error is None else f" ± {share.standard_error:.1%}"
    return f"{share.accuracy:.1%}{error}"
