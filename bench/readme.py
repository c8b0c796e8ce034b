"""The README's picture and table, made from a finished run: `python -m bench.readme runs/quickstart`.

Writes docs/quickstart.svg and prints the table of held-out bits per byte by source beside `xz -9`, the
time of each phase and the samples, as Markdown.
"""

import sys
from pathlib import Path

from cupola.report import loss_plot_svg, read_records


def main(run: str) -> None:
    """Read the run's files; nothing is computed anew."""
    records = read_records(Path(run))
    picture = Path(__file__).parents[1] / "docs" / "quickstart.svg"
    picture.write_text(loss_plot_svg(records.stages, standalone=True), encoding="utf-8")
    xz = records.facts["xz_bits_per_byte"]
    stages = [stage for stage in records.stages if stage.facts.get("status") == "done"]
    print("| held-out bits per byte | `xz -9` |" + "".join(f" {stage.name} |" for stage in stages))
    print("|---|---|" + "---|" * len(stages))
    for source in xz:
        row = "".join(f" {stage.facts['heldout'][source]['bits_per_byte']:.3f} |" for stage in stages)
        print(f"| {source} | {xz[source]:.3f} |{row}")
    row = "".join(f" **{stage.facts['heldout_bits_per_byte']:.3f}** |" for stage in stages)
    sizes = {source: stages[-1].facts["heldout"][source]["bytes"] for source in xz}
    together = sum(xz[source] * size for source, size in sizes.items()) / sum(sizes.values())
    print(f"| together | {together:.3f} |{row}")
    for stage in stages:
        facts = stage.facts
        print(f"{stage.name}: {facts['tokens']:,} tokens, {facts['steps']} steps, {facts['seconds']:.0f} s")
    for sample in records.stages[-1].samples[-3:]:
        print("> " + " ".join((sample["prompt"] + sample["text"]).split()))


if __name__ == "__main__":
    main(sys.argv[1])
