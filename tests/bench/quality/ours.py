"""stillroom's side, in a process of its own: `python -m tests.bench.quality.ours JOB.json`. Goes on where it was killed.

Writes a line of JSON: what `distill.train` tells of the training, and the processor time it took, loading included.
"""

import json
import sys
import time
from pathlib import Path

from distill import recipe, stripping
from distill.train import Progress, train  # sets what torch's OpenMP reads, before torch is loaded
from tests.bench.quality.sets import SETS


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rows, out = SETS[job["set"]].train(job["rows"]), Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    spent = out / "cpu_seconds"  # also what a killed process computed in vain
    before = float(spent.read_text()) if spent.exists() else 0.0

    def note(progress: Progress) -> None:
        spent.write_text(str(before + time.process_time()))
        if progress.step % 10 == 0:
            print(f"step {progress.step} of {progress.total_steps}, loss {progress.loss:.4f}", file=sys.stderr)

    result = train(
        base=Path(job["base"]),
        rows=rows,
        out=out,
        recipe=recipe.load().model_copy(update=job["recipe"]),
        on_progress=note,
        transform=stripping.learn([row.messages for row in rows]) if job.get("strip") else None,
    )
    told = {
        "cpu_seconds": round(float(spent.read_text()), 1),
        "seconds": result.train_seconds,
        "steps": result.steps,
        "rows_seen": job["recipe"]["epochs"] * result.rows,
        "tokens": result.computed_tokens,
        "loss": result.final_loss,
        "peak_mib": round(result.peak_memory / 2**20),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
