"""What must hold of each scenario's result: for the tests and for the command alike."""

from typing import Any

FAULTS = ("missing", "twice", "altered", "lost", "strange", "rejected")


def wrong(scenario: str, result: dict[str, Any]) -> list[str]:
    """What is not as promised, in words; empty if all is well."""
    found = [f"{result[name]} {name}" for name in FAULTS if result[name] and (scenario, name) != ("power", "lost")]
    found += result.get("examples", ())[:3] if found else ()
    if any(result.get("exit_codes", [result.get("exit_code", 0)])):
        found.append("the proxy did not end with 0")
    if result.get("spool_empty") is False:
        found.append("the spool is not empty")
    return found + (_OF[scenario](result) if scenario in _OF else [])


def _kills(result: dict[str, Any]) -> list[str]:
    found = []
    if result["acknowledged_per_second"] < 100:
        found.append(f"only {result['acknowledged_per_second']} requests a second")
    if not 0.4 < result["streams"] / result["requests"] < 0.6:
        found.append("streams are not half of the requests")
    if result["open"] == 0:
        found.append("no kill has hit an answer on its way")
    return found + _errors(result)


def _away(result: dict[str, Any]) -> list[str]:
    found = _errors(result)
    if result["broken"]:
        found.append(f"{result['broken']} requests failed: {result['breaks']}")
    if result["not_ready"]:
        found.append("/readyz was not 200")
    if not result["kept_for_the_next_start"]:
        found.append("the database was not away while the proxy stopped")
    if result["seconds_to_stop"] > 20:
        found.append(f"it took {result['seconds_to_stop']} seconds to stop")
    return found


def _full(result: dict[str, Any]) -> list[str]:
    found, spool, refuse = [], result["full"] != "database", result["policy"] == "refuse"
    if spool and refuse:
        found += ["nothing was refused"] * (not result["refused_while_full"])
        found += [f"refused with {result['errors']}"] * (set(result["errors"]) != {"503 not_captured"})
        found += ["refused although there was room"] * bool(result["refused_when_there_was_room"])
        found += ["no stream was broken off"] * (not result["broken"])
    else:
        found += _errors(result)
        found += [f"{result['broken']} requests failed"] * bool(result["broken"])
        found += ["nothing was served"] * (not result["acknowledged_while_full"])
    if spool and not refuse:
        found += [f"{result['unkept']} not kept, {result['uncaptured']} counted"] * (result["unkept"] != result["uncaptured"])
        found += ["the disk was not full"] * (not result["uncaptured"])
        found += ["captures did not resume"] * bool(result["uncaptured_when_there_was_room"])
        found += ["the log does not tell"] * (not any("serving without capturing" in line for line in result["told"]))
    if spool:
        found += ["/readyz does not tell of the spool"] * (result["ready"]["spool"] == "ok")
    if result["full"] == "database":
        found += ["/readyz does not tell of the database"] * (result["ready"]["database"] == "ok")
        found += [f"{result['uncaptured']} not captured"] * bool(result["uncaptured"])
    found += [f"afterwards: {result['ready_after']}"] * (result["ready_after"] != {"spool": "ok", "database": "ok"})
    return found


def _power(result: dict[str, Any]) -> list[str]:
    return [] if result["bytes_cut"] else ["nothing was cut off"]


def _drain(result: dict[str, Any]) -> list[str]:
    found = []
    found += [f"{result['accepted_and_failed']} accepted requests failed"] * bool(result["accepted_and_failed"])
    found += ["new connections were taken"] * (not result["new_connections_refused"])
    found += ["it took longer than 30 seconds"] * (result["seconds"] > 30)
    found += ["nothing was open"] * (not result["open_at_the_signal"] or not result["open_a_second_later"])
    found += ["spool folders are left"] * bool(result["spool_folders_left"])
    return found


def _soak(result: dict[str, Any]) -> list[str]:
    found = _errors(result)
    if result["broken"]:
        found.append(f"{result['broken']} requests failed: {result['breaks']}")
    if not result["same_processes"]:
        found.append("a worker has ended")
    if result["tasks_afterwards"] > result["tasks_idle"]:
        found.append(f"{result['tasks_afterwards']} tasks are left, {result['tasks_idle']} were there at first")
    for trend in [result["parent"], *result["per_worker"]]:
        for name, slack in (("rss_mib", 4 + 0.03 * trend["rss_mib"][0]), ("descriptors", 16), ("threads", 1), ("tasks", 10)):
            then, now = trend[name]
            if now > then + slack:
                found.append(f"{name} grew from {then} to {now}")
    return found


def _errors(result: dict[str, Any]) -> list[str]:
    return [f"errors: {result['errors']}"] if result["errors"] else []


_OF = {
    "kills": _kills, "away": _away, "hung": _away, "full": _full, "power": _power, "drain": _drain, "soak": _soak,
}  # fmt: skip
