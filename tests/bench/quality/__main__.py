"""The curve: `python -m tests.bench.quality`. Its last line is one line of JSON; with --record in tests/bench/results/quality.json.

Each point is a student trained from the first so many rows of the training split and judged on the whole test split (`judge`);
TRL with the processor seconds that stillroom took for it, so that it sees fewer rows; a classifier on the same rows. A point that
is known is not computed again, and a training that was killed goes on.
"""

import json
import os
import time
from typing import Any

import torch
from rich.table import Table

from tests.bench.quality import figure, sweep
from tests.bench.quality.sets import SETS, Set
from tests.bench.quality.work import RESULTS, Bench, console, prepare

SIDES = ("ours", "stripped", "theirs", "baseline")


def main() -> None:
    options, bench = prepare(__doc__)
    until = time.monotonic() + options.hours * 3600
    sets = {name: begin(SETS[name], bench, options.rows) for name in options.only}
    for name, side, rows in plan([SETS[name] for name in options.only], options.rows, options.sides):
        if time.monotonic() > until:
            console.print("the hours are over: the rest another time")
            break
        told = point(bench, SETS[name], side, rows)
        sets[name]["points"].setdefault(str(rows), {})[side] = told
        sets[name]["points"] = dict(sorted(sets[name]["points"].items(), key=lambda each: int(each[0])))
        console.print(f"{name}, {rows} rows, {side}: {told['agreement']:.4f} in {told['cpu_seconds']:.0f} s of a processor")
        if options.record:
            record(sets)
    if options.record:
        record(sets)
    console.print(table(sets))
    print(json.dumps(summary(sets)))


def begin(chosen: Set, bench: Bench, rows: list[int]) -> dict[str, Any]:
    """What is cheap: the classifier at all points, and levels to compare with."""
    job = {"set": chosen.name, "rows": sorted({*chosen.points, *rows})}
    told = {each.pop("rows"): each for each in bench.run("baseline", job, chosen.name)}
    return {
        "test_rows": len(chosen.test()),
        "references": chosen.references(),
        "points": {str(count): {"baseline": each} for count, each in told.items() if count in (rows or chosen.points)},
    }


def plan(sets: list[Set], asked: list[int], sides: list[str]) -> list[tuple[str, str, int]]:
    """The points in the order of what they tell: the largest, what it takes the other side, the ends of the curve, the rest."""
    found = []
    for chosen in sets:
        points = asked or list(chosen.points)
        for rows in points:
            ends = rows in chosen.theirs
            found.append((1 if rows == max(points) else 3 if ends else 5, chosen.name, "ours", rows))
            if ends or asked:
                found.append((2 if rows == max(points) else 4, chosen.name, "theirs", rows))
        if chosen.name == "banking77":
            found.append((6, chosen.name, "stripped", max(points)))
    names = [chosen.name for chosen in sets]
    ordered = sorted(found, key=lambda each: (each[0], names.index(each[1]), each[3]))
    return [(name, side, rows) for _, name, side, rows in ordered if side in sides]


def point(bench: Bench, chosen: Set, side: str, rows: int) -> dict[str, Any]:
    """A student of so many rows, on the test split."""
    job = {"set": chosen.name, "rows": rows, "judged": "test"}
    mine = {**job, "recipe": sweep.chosen(chosen.name, "ours") | {"epochs": chosen.epochs(rows)}}
    name = f"{chosen.name}-{rows}"
    if side == "stripped":
        return bench.student("ours", {**mine, "strip": True}, name) | {"recipe": mine["recipe"]}
    ours = bench.student("ours", mine, name)
    if side == "ours":
        return ours | {"recipe": mine["recipe"]}
    recipe = sweep.chosen(chosen.name, "theirs")
    return bench.student("theirs", {**job, "recipe": recipe, "cpu_seconds": ours["cpu_seconds"]}, name) | {"recipe": recipe}


def record(sets: dict[str, Any]) -> None:
    """Sets that this run is not about stay as they are."""
    file = RESULTS / "quality.json"
    sets = (json.loads(file.read_text())["sets"] if file.exists() else {}) | sets
    sets = {name: sets[name] for name in SETS if name in sets}
    machine = {"cores": os.cpu_count(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    told = {"command": "python -m tests.bench.quality --record", "machine": machine, "model": "SmolLM2-135M-Instruct"}
    file.write_text(json.dumps({**told, "sets": sets, "result": summary(sets)}, indent=2) + "\n")
    figure.draw(sets, RESULTS / "quality.png")


def summary(sets: dict[str, Any]) -> dict[str, Any]:
    def told(each: dict[str, Any]) -> dict[str, Any]:
        return {
            side: {key: each[side].get(key) for key in ("agreement", "interval", "macro_f1", "cpu_seconds", "rows_seen")}
            for side in SIDES
            if side in each
        }

    return {
        name: {**found["references"], "rows": {rows: told(each) for rows, each in found["points"].items()}}
        for name, found in sets.items()
    }


def table(sets: dict[str, Any]) -> Table:
    shown = Table("set", "rows", "side", "agreement", "95 %", "macro-F1", "rows seen", "CPU s", "minutes", "ms a row judged")
    for name, found in sets.items():
        for rows, each in found["points"].items():
            for side in SIDES:
                if side not in each:
                    continue
                told = each[side]
                shown.add_row(
                    name,
                    rows,
                    {"ours": "stillroom", "theirs": "TRL"}.get(side, side),
                    f"{told['agreement']:.2%}",
                    "{:.1%} to {:.1%}".format(*told["interval"]),
                    f"{told['macro_f1']:.3f}",
                    str(told.get("rows_seen", "")),
                    f"{told['cpu_seconds']:.0f}",
                    f"{told['seconds'] / 60:.1f}" if "seconds" in told else "",
                    str(told.get("ms_a_row", "")),
                )
        for reference, share in found["references"].items():
            shown.add_row(name, "", reference, f"{share:.2%}")
    return shown


if __name__ == "__main__":
    main()
