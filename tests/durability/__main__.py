"""`python -m tests.durability SCENARIO`: one scenario at its full length; exits with 1 where something is not as promised."""

import argparse
import gc
import json
import shutil
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from store.settings import StoreSettings
from tests.durability import away, checks, drain, full, kills, power, report, soak
from tests.durability.outage import Hung, Locked, Stopped, Unreachable
from tests.postgres import server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("scenario", choices=["kills", "away", "hung", "full", "power", "drain", "soak"])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the soak")
    parser.add_argument("--seconds", type=float, default=300.0, help="for which the database is away")
    parser.add_argument(
        "--postgresql", action="store_true", help="not SQLite; `away` stops it, `hung` stops its processes with SIGSTOP"
    )
    parser.add_argument("--full", choices=["spool", "database", "both"], default="spool")
    parser.add_argument("--policy", choices=["serve", "refuse"], default="serve")
    parser.add_argument("--record", action="store_true", help=f"write the result to {report.RESULTS.name}")
    options = parser.parse_args()
    gc.freeze()
    folder = Path(tempfile.mkdtemp(prefix="stillroom-durability-"))
    postgresql = options.postgresql or options.scenario == "hung"
    if postgresql:
        with server() as started:
            result = uvloop.run(_scenario(options, folder, started))
    else:
        result = uvloop.run(_scenario(options, folder, None))
    print(json.dumps(result, indent=2))
    name = f"{options.scenario}{f' {options.full} {options.policy}' if options.scenario == 'full' else ''}"
    name += f", {'PostgreSQL' if postgresql else 'SQLite'}"
    if options.record:
        report.record(name, result, f"python -m tests.durability {' '.join(sys.argv[1:])}")
    wrong = checks.wrong(options.scenario, result)
    if wrong:
        sys.exit(f"Not as promised: {'; '.join(wrong)}. Everything is left in {folder}.")
    shutil.rmtree(folder)


def _scenario(options: argparse.Namespace, folder: Path, server: Any) -> Coroutine[Any, Any, dict[str, Any]]:
    home, file = folder / "home", folder / "home" / "stillroom.db"
    database = StoreSettings(database_url=server.get_uri()).url if server else None
    match options.scenario:
        case "kills":
            return kills.run(home, kills=options.kills, database=database)
        case "away" if server:
            return away.run(home, Stopped(server), Stopped(server), seconds=options.seconds, database=database)
        case "away":
            return away.run(home, Unreachable(file), Locked(file), seconds=options.seconds)
        case "hung":
            return away.run(home, Hung(server), Hung(server), seconds=options.seconds, database=database)
        case "full":
            return full.run(folder, what=options.full, policy=options.policy, seconds=20.0)
        case "power":
            return power.run(home, durability="disk", seconds=20.0)
        case "drain":
            return drain.run(home)
    return soak.run(home, minutes=options.minutes)


if __name__ == "__main__":
    main()
