"""The README's picture and table, made from a finished run: `python -m bench.readme runs/quickstart`.

Writes docs/quickstart.svg and prints what each stage left: held-out bits per byte of text beside `xz -9`, and
the stage's own figures, the samples, as Markdown.
"""

import sys
from pathlib import Path

from cupola.report import loss_plot_svg, read_records

OWN = {
    "preference_accuracy": "of held-out pairs in the right order",
    "reward": "of held-out questions right, by the likeliest answer",
    "reward_sampled": "by a sampled one",
}
"""Metrics of a stage's end that the table has."""


def main(run: str) -> None:
    """Read the run's files; nothing is computed anew."""
    records = read_records(Path(run))
    picture = Path(__file__).parents[1] / "docs" / "quickstart.svg"
    picture.write_text(loss_plot_svg(records.stages, standalone=True), encoding="utf-8")
    xz = records.facts["xz_bits_per_byte"]
    stages = [stage for stage in records.stages if stage.facts.get("status") == "done"]
    texts = [source for source in xz if source in stages[0].facts["heldout"]]
    print(f"| | {' | '.join(texts)} | answers, and more | seconds |")
    print("|---" * (len(texts) + 3) + "|")
    print("| `xz -9` |" + "".join(f" {xz[source]:.3f} |" for source in texts) + " | |")
    for stage in stages:
        facts = stage.facts
        bits = "".join(f" {facts['heldout'][source]['bits_per_byte']:.3f} |" for source in texts)
        others = [
            f"{source} {figures['bits_per_byte']:.3f}"
            for source, figures in facts["heldout"].items()
            if source not in texts
        ]
        metrics = facts.get("metrics", {})
        others += [f"{metrics[name]:.1%} {words}" for name, words in OWN.items() if name in metrics]
        print(f"| {stage.name} |{bits} {'; '.join(others)} | {facts['seconds']:.0f} |")
    for sample in records.stages[-1].samples[-3:]:
        print("> " + " ".join((sample["prompt"] + sample["text"]).split()))


if __name__ == "__main__":
    main(sys.argv[1])
