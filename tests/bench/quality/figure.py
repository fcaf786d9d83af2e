"""The curves of `results/quality.json` as `results/quality.png`."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LINES = {
    "ours": ("stillroom, SmolLM2-135M", "#1f5fa8", "o"),
    "theirs": ("TRL, the same model and processor seconds", "#c4511a", "s"),
    "baseline": ("embedding + logistic regression, the same rows", "#4d7d2b", "^"),
}
LEVELS = {"majority_class": ":", "people": "--", "teacher_with_another_prompt": "-."}


def draw(sets: dict[str, Any], path: Path) -> None:
    """A panel for each set: agreement with the teacher by training rows, with 95 % intervals."""
    figure, panels = pyplot.subplots(1, len(sets), figsize=(6.2 * len(sets), 4.8), squeeze=False, layout="constrained")
    for axes, (name, found) in zip(panels[0], sets.items(), strict=True):
        for side, (called, colour, marker) in LINES.items():
            points = [(int(rows), each[side]) for rows, each in found["points"].items() if side in each]
            if not points:
                continue
            shares = [100 * each["agreement"] for _, each in points]
            reach = [[abs(100 * each["interval"][end] - 100 * each["agreement"]) for _, each in points] for end in (0, 1)]
            axes.errorbar(
                [rows for rows, _ in points], shares, yerr=reach, color=colour, marker=marker, label=called, capsize=3, lw=1.6, ms=5
            )
            for rows, each in points if side == "theirs" else []:
                note = f"saw {each['rows_seen']:,}"
                axes.annotate(note, (rows, 100 * each["agreement"]), (0, -14), textcoords="offset points", ha="center", fontsize=8)
        for reference, share in found["references"].items():
            axes.axhline(100 * share, color="#777777", ls=LEVELS[reference], lw=1, label=reference.replace("_", " "))
        ticks = [int(rows) for rows in found["points"]]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks])
        axes.minorticks_off()
        axes.set(title=name, xlabel="training rows", ylabel=f"agreement with the teacher, % of {found['test_rows']:,} test rows")
        axes.grid(alpha=0.25)
    named = {text: line for axes in panels[0] for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
