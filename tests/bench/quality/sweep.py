"""Which recipe: `python -m tests.bench.quality.sweep`. Recorded in results/quality-sweep.json, from where the bench takes it.

Every candidate computes about as many tokens. They learn from a part of the training split and are judged by another part of it;
the test split is not looked at.
"""

import json
import time
from typing import Any

from tests.bench.quality.sets import SETS
from tests.bench.quality.work import RESULTS, Told, console, prepare

FILE = RESULTS / "quality-sweep.json"
DEFAULT = {"rank": 16, "alpha": 32.0, "learning_rate": 2e-3, "batch_rows": 64}
#: What differs from the default: rows, epochs, recipe. A smaller batch computes the shared beginning more often.
OURS: dict[str, list[tuple[int, int, dict[str, Any]]]] = {
    "banking77": [
        (2000, 1, {}),
        (1640, 1, {"batch_rows": 32}),
        (1640, 1, {"batch_rows": 32, "learning_rate": 1e-3}),
        (2000, 1, {"learning_rate": 4e-3}),
        (1160, 1, {"batch_rows": 16, "learning_rate": 1e-3}),
    ],
    "exposure": [(2000, 1, {}), (2000, 1, {"learning_rate": 1e-3})],
}
#: On top of the best of those.
REFINED: dict[str, list[dict[str, Any]]] = {"banking77": [{"rank": 64, "alpha": 128.0}, {"strip": True}]}
#: TRL computes every row whole and sees about so many in the time of the largest point: a larger batch saves it nothing. The
#: gradients are the same, so ours stand in for its.
THEIRS = [
    (480, 1, {"batch_rows": 8, "learning_rate": 1e-3}),
    (480, 1, {"batch_rows": 8}),
    (480, 1, {"batch_rows": 16}),
]


def main() -> None:
    options, bench = prepare(__doc__)
    until = time.monotonic() + options.hours * 3600
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}

    def attempt(name: str, kind: str, rows: int, epochs: int, changed: dict[str, Any]) -> None:
        if time.monotonic() > until:
            return
        recipe = DEFAULT | {"epochs": epochs} | {key: value for key, value in changed.items() if key != "strip"}
        job = {"set": name, "rows": rows, "recipe": recipe, "judged": "validation", "strip": changed.get("strip", False)}
        told = {"kind": kind, "rows": rows, "strip": job["strip"], **recipe}
        told |= bench.student("ours", job, f"sweep-{name}-{rows}x{epochs}")
        console.print(f"{name}, {kind}, {rows} rows x {epochs}, {changed or 'as by default'}: {told['agreement']:.3f}")
        tried = found.setdefault(name, {"tried": []})
        tried["tried"] = [each for each in tried["tried"] if not same(each, told)] + [told]
        tried["chosen"] = best(tried["tried"], {"ours", "refined"}) or DEFAULT
        tried["chosen_trl"] = best(tried["tried"], {"trl"}) or DEFAULT | {"batch_rows": 8}
        FILE.write_text(json.dumps({"command": "python -m tests.bench.quality.sweep", **found}, indent=2) + "\n")

    for name in options.only:
        for rows, epochs, changed in OURS[name]:
            attempt(name, "ours", rows, epochs, changed)
        for rows, epochs, changed in THEIRS if name == "banking77" else []:
            attempt(name, "trl", rows, epochs, changed)
        top = best(found.get(name, {}).get("tried", []), {"ours"}) or DEFAULT
        for changed in REFINED.get(name, []):
            attempt(name, "refined", 2000, 1, top | changed)
    print(json.dumps({name: {key: each[key] for key in ("chosen", "chosen_trl")} for name, each in found.items() if name in SETS}))


def same(one: Told, other: Told) -> bool:
    return all(one.get(key) == other.get(key) for key in ("kind", "rows", "strip", "epochs", *DEFAULT))


def best(tried: list[Told], kinds: set[str]) -> dict[str, Any] | None:
    """The recipe of the candidate that agrees most often: without stripping, which the other side does not have."""
    compared = [each for each in tried if each["kind"] in kinds and not each["strip"]]
    top = max(compared, key=lambda each: (each["agreement"], -each["loss"]), default=None)
    return top and {key: top[key] for key in DEFAULT}


def chosen(name: str, side: str) -> dict[str, Any]:
    """The recorded choice for a set; TRL's was made with banking77."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    if side == "theirs":
        return found.get("banking77", {}).get("chosen_trl") or DEFAULT | {"batch_rows": 8}
    return found.get(name, {}).get("chosen") or DEFAULT


if __name__ == "__main__":
    main()
