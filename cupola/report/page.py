"""One HTML page that holds everything: no script, no font, no picture from elsewhere."""

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cupola import storage
from cupola.display import count, duration, size
from cupola.report.health import faults_of, health_svgs
from cupola.report.planned import rows
from cupola.report.plots import curve_svgs, loss_plot_svg, palette_css
from cupola.report.records import RunRecords, StageRecords, finite_figures, read_records
from cupola.train.metrics import mean_of_last

HERE = Path(__file__).parent
EVENTS_SHOWN = 200
EVENT_CHARACTERS = 240
SAMPLES_SHOWN = 60


def write_report(folder: Path, records: RunRecords | None = None) -> Path:
    """Write `report.html` of a run, finished or not, into its folder.

    Args:
        records: what is in it, if that has been read.

    Raises:
        CupolaError: the file can't be written.
    """
    path = folder / "report.html"
    storage.write_text(path, render(read_records(folder) if records is None else records))
    return path


def page_template(name: str, folder: Path = HERE) -> jinja2.Template:
    """A page's template, with this package's style sheet to include.

    Args:
        folder: where it lies.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template(name)


def render(records: RunRecords) -> str:
    """The page as text."""
    yardsticks = finite_figures(records.facts.get("xz_bits_per_byte") or {})
    sources = list(dict.fromkeys(source for stage in records.stages for source in stage.heldout))
    return page_template("report.html").render(
        name=records.name,
        palette=palette_css(),
        tiles=_tiles(records),
        stages=[_stage_row(stage, sources) for stage in records.stages],
        planned=rows(records),
        origins=[_origin(stage) for stage in records.stages if "origin" in stage.facts],
        sources=sources,
        yardsticks=[_figure(yardsticks.get(source)) for source in sources] if yardsticks else [],
        loss=loss_plot_svg(records.stages, standalone=False),
        curves=curve_svgs(records.stages, yardsticks),
        health=health_svgs(records.stages),
        faults=faults_of(records.stages),
        samples=_samples(records),
        events=_events(records.ledger),
        events_left_out=max(0, len(records.ledger) - EVENTS_SHOWN),
        decisions=_pairs(records.facts.get("decisions") or {}),
        taken=_taken(records.facts.get("sources") or {}),
        environment=_pairs({**(records.facts.get("versions") or {}), **(records.facts.get("machine") or {})}),
        recipe=records.recipe,
        torn=records.torn,
    )


def final_loss(stage: StageRecords) -> float | None:
    """What `stage.json` states; of an unfinished stage, the same so far."""
    stated = stage.facts.get("final_loss")
    if stated is not None:
        return float(stated)
    loss, tokens, batch = (stage.columns[name] for name in ("loss", "tokens", "batch_tokens"))
    known = np.isfinite(loss) & np.isfinite(tokens) & (batch > 0)
    return mean_of_last(loss[known], tokens[known], batch[known])


def _tiles(records: RunRecords) -> list[tuple[str, str]]:
    """The figures that a reader wants first: (figure, what it is)."""
    tiles = []
    newest = next((stage for stage in reversed(records.stages) if _heldout_of(stage) is not None), None)
    if newest is not None:
        tiles.append((_figure(_heldout_of(newest)), f"held-out bits per byte after {newest.name}"))
    tokens = sum(stage.tokens for stage in records.stages)
    if tokens:
        tiles.append((count(tokens), "tokens of training"))
    seconds = sum(_seconds(stage) for stage in records.stages)
    if seconds:
        tiles.append((duration(seconds), "training time"))
        tiles.append((count(round(tokens / seconds)), "tokens per second"))
    if records.facts.get("parameters"):
        whole = records.facts["parameters"]
        active = records.facts.get("active_parameters", whole)
        part = "" if active == whole else f", {count(active)} active for a token"
        tiles.append((count(whole), f"parameters{part}"))
    return tiles


def _heldout_of(stage: StageRecords) -> float | None:
    stated = stage.facts.get("heldout_bits_per_byte")
    if stated is None and stage.evaluations:
        stated = stage.evaluations[-1].get("bits_per_byte")
    return stated


def _seconds(stage: StageRecords) -> float:
    stated = stage.facts.get("seconds")
    if stated is None:
        seconds = stage.columns["seconds"]
        return float(seconds[seconds == seconds].sum())
    return float(stated)


def _stage_row(stage: StageRecords, sources: list[str]) -> dict[str, Any]:
    memory = stage.columns["memory_bytes"]
    memory = memory[memory == memory]
    loss = final_loss(stage)
    return {
        "name": stage.name,
        "status": stage.facts.get("status") or "unfinished",
        "tokens": count(stage.tokens),
        "steps": f"{stage.facts.get('steps') or stage.steps:,}",
        "time": duration(_seconds(stage)),
        "memory": size(memory.max()) if len(memory) else "–",
        "loss": "–" if loss is None else f"{loss:.3f}",
        "heldout": _figure(_heldout_of(stage)),
        "by_source": [_figure(stage.heldout.get(source)) for source in sources],
    }


def _origin(stage: StageRecords) -> str:
    """Where weights that were not trained here are from."""
    origin = stage.facts["origin"]
    which = f", stage {origin['stage']}" if origin.get("stage") else ""
    return f"{stage.name}: the weights of {origin.get('from')}{which}"


def _samples(records: RunRecords) -> list[dict[str, str]]:
    """Stage by stage, newest last; where there are too many, an even choice that keeps the newest."""
    rows = [(stage, sample) for stage in records.stages for sample in stage.samples]
    chosen = rows
    if len(rows) > SAMPLES_SHOWN:
        gap = (len(rows) - 1) / (SAMPLES_SHOWN - 1)
        chosen = [rows[round(place * gap)] for place in range(SAMPLES_SHOWN)]
    shown, before = [], ""
    for stage, sample in chosen:
        where = f"{stage.name}, after {sample.get('step', '?')} steps"
        prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
        shown.append({"where": "" if where == before else where, "prompt": prompt, "text": text})
        before = where
    return shown


def _events(ledger: list[dict[str, Any]]) -> list[dict[str, str]]:
    shown = []
    for event in ledger[-EVENTS_SHOWN:]:
        facts = {key: value for key, value in event.items() if key not in ("time", "event")}
        shown.append(
            {
                "time": _moment(event.get("time")),
                "event": str(event.get("event", "?")),
                "facts": _cut(_short(facts)),
            }
        )
    return shown


def _cut(text: str) -> str:
    """The beginning of a long text; the ledger has the rest."""
    return text if len(text) <= EVENT_CHARACTERS else text[:EVENT_CHARACTERS].rstrip() + " …"


def _moment(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _taken(sources: dict[str, Any]) -> list[dict[str, str]]:
    """What each source took and what was left out of it."""
    rows = []
    for name, facts in sources.items():
        facts = facts if isinstance(facts, dict) else {}
        taken: dict[str, Any] = facts.get("taken") or {}
        left_out = {**(facts.get("dropped") or {}), **(facts.get("skipped_files") or {})}
        rows.append(
            {
                "name": name,
                "source": str(taken.get("source") or facts.get("source") or "–"),
                "because": "; ".join(map(str, taken.get("because") or [])),
                "documents": _split(facts.get("documents")),
                "bytes": _split(facts.get("bytes")),
                "tokens": _amount(facts.get("tokens")),
                "left_out": ", ".join(f"{_amount(n)} {reason}" for reason, n in left_out.items()) or "–",
                "licences": ", ".join(map(str, facts.get("licences") or {})) or "–",
            }
        )
    return rows


def _split(facts: Any) -> str:
    """`12k + 120`: what is trained on, and what is held out."""
    if isinstance(facts, dict):
        return " + ".join(_amount(facts.get(part, 0)) for part in ("train", "heldout"))
    return _amount(facts)


def _amount(value: Any) -> str:
    return count(value) if isinstance(value, int | float) else "–"


def _pairs(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _value(value)) for key, value in facts.items()]


def _short(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in facts.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
