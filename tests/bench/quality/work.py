"""Jobs, each in a process of its own, and what they told, kept: a job whose outcome is known is not done again."""

import argparse
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from serving import base
from tests.bench.quality.sets import SETS
from tests.bench.train.cases import DATA

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "tests" / "bench" / "results"
THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5000", "OPENBLAS_NUM_THREADS": "1"}  # the first two as distill/train.py
Told = dict[str, Any]
console = Console(stderr=True, width=150)


@dataclass(frozen=True)
class Bench:
    """Where jobs and outcomes are, and what the jobs need."""

    folder: Path
    base: Path  #: model folder
    trl: Path  #: where TRL is installed
    classifier: Path  #: where scikit-learn and the embedding model are installed

    def run(self, module: str, job: Told, name: str) -> list[Told]:
        """What a job printed, a line of JSON each."""
        kept = self.known(module, job, name)
        if not kept.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            given = kept.with_suffix(".job")
            given.write_text(json.dumps(job | {"base": str(self.base), "out": str(kept.with_suffix(""))}))
            console.print(f"{name}: {module} ...")
            places = [ROOT, self.trl] if module == "theirs" else [ROOT, self.classifier] if module == "baseline" else [ROOT]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "HF_HUB_OFFLINE": "1", **THREADS}
            with kept.with_suffix(".log").open("a") as log:
                command = [sys.executable, "-m", f"tests.bench.quality.{module}", given]
                done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {module} ended with {done.returncode}: see {kept.with_suffix('.log')}")
            partial = kept.with_suffix(".part")
            partial.write_text(done.stdout)
            partial.rename(kept)
        return [json.loads(line) for line in kept.read_text().splitlines()]

    def known(self, module: str, job: Told, name: str) -> Path:
        """Where a job's outcome is, or will be; another one's elsewhere."""
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / f"{name}-{module}-{digest}.jsonl"

    def student(self, side: str, job: Told, name: str) -> Told:
        """`ours` or `theirs`, trained and judged by `job["judged"]`."""
        training = {key: value for key, value in job.items() if key != "judged"}
        (trained,) = self.run(side, training, name)
        adapter = self.known(side, training, name).with_suffix("") / "adapter"
        (judged,) = self.run("judge", {**job, "adapter": str(adapter.relative_to(ROOT))}, name)
        return trained | {key: value for key, value in judged.items() if key != "answers"}


def prepare(told: str | None) -> tuple[argparse.Namespace, Bench]:
    """What was asked for, and where it is done: by one process at once."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETS), help="names of sets, separated by commas")
    parser.add_argument("--rows", default="", help="numbers of training rows, separated by commas, in place of each set's own")
    parser.add_argument("--sides", default="ours,theirs,stripped", help="what is trained, separated by commas")
    parser.add_argument("--hours", type=float, default=24, help="after so many nothing new is begun")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache/models")
    parser.add_argument("--trl", type=Path, default=ROOT / ".cache/bench/trl", help="where TRL is installed")
    parser.add_argument("--classifier", type=Path, default=ROOT / ".cache/bench/quality-env", help="likewise scikit-learn")
    parser.add_argument("--record", action="store_true", help="write quality.json and quality.png in tests/bench/results")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no recorded traffic in {DATA}: set STILLROOM_DATA")
    options.only = options.only.split(",")
    options.rows = [int(rows) for rows in options.rows.split(",") if rows]
    options.sides = options.sides.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the job with it
    folder = ROOT / ".cache/bench/quality"
    folder.mkdir(parents=True, exist_ok=True)
    options.lock = (folder / "lock").open("w")
    try:
        fcntl.flock(options.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SystemExit(f"another one is at work in {folder}") from None
    return options, Bench(folder, base.prepare(base.DEFAULT, options.models).resolve(), options.trl, options.classifier)
