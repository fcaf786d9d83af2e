"""`stillroom up`: everything, supervised, in one command, until it is told to stop."""

import errno
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from sqlalchemy.exc import OperationalError

from admin import auth, home, schema
from admin.problems import INSTALL, Conflict, Invalid, Unavailable
from admin.settings import AdminSettings
from admin.supervisor import Child, Supervisor, room_command, room_environment
from store import teachers
from store.teachers import BadTeachers

TICK = 0.25
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(settings: AdminSettings, without: Sequence[str] = ()) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; returns the exit code. Raises Conflict if it runs already or a port is taken."""
    unknown = set(without) - set(home.ROOMS)
    if unknown:
        raise Invalid(f"There is no room {', '.join(sorted(unknown))}: the rooms are {', '.join(home.ROOMS)}.", "unknown_room")
    missing = {room: why for room in home.ROOMS if room not in without and (why := not_runnable(room))}
    wanted = [room for room in home.ROOMS if room not in without and room not in missing]
    with home.lock(settings.home_path):
        for room, host, port in addresses(settings):
            if room in wanted:
                _check_port(room, host, port)
        _introduce(settings, _prepare(settings), missing)
        running = [Child(room, room_command(room), settings.logs / f"{room}.log") for room in wanted]
        return supervise(Supervisor(running, _say, room_environment()), view=sys.stdout.isatty())


def supervise(supervisor: Supervisor, *, view: bool = False) -> int:
    """Keep everything running until a signal says stop; a second one is impatient. Returns 0. Call from the main thread."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if supervisor.stopping:
            supervisor.kill()
        stop.set()

    # What is ignored already stays so: `nohup stillroom up` outlives its terminal.
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        with _screen(supervisor) if view else _no_screen() as refresh:
            while not stop.is_set():
                supervisor.tick()
                refresh()
                stop.wait(TICK)
        _say("stopping; once more to kill")
    finally:
        supervisor.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    _say("stopped")
    return 0


def not_runnable(room: str) -> str | None:
    """Why a room cannot run here, with what installs what is missing; None if it can."""
    if room == "distill":
        missing = [name for name in ("torch", "transformers", "peft", "apscheduler") if find_spec(name) is None]
        return f"{', '.join(missing)} not installed; {INSTALL}" if missing else None
    if room == "serving":
        from serving.settings import ServingSettings

        return vllm_missing() if ServingSettings().student_url is None else None
    return None


def vllm_missing() -> str | None:
    """That vLLM is not installed, with what installs it; None if it is."""
    return f"vLLM not installed; {INSTALL}" if find_spec("vllm") is None else None


def addresses(settings: AdminSettings) -> list[tuple[str, str, int]]:
    """(room, host, port) of what listens."""
    return [("proxy", settings.proxy_host, settings.proxy_port), ("admin", settings.admin_host, settings.admin_port)]


def port_taken(host: str, port: int) -> bool:
    """Whether something listens there already. Raises OSError if the address cannot be listened on at all."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            listener.bind(address)
            listener.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def exposed_key(settings: AdminSettings) -> str | None:
    """The warning owed to whoever lets others use their key; None if only this machine can."""
    if settings.require_key or settings.proxy_host in LOOPBACK or (which := _operators_key(settings)) is None:
        return None
    return (
        f"{which} and the proxy listens on {settings.proxy_host}: whoever reaches port {settings.proxy_port} asks the teacher at "
        "your expense. Give clients keys of their own (`stillroom keys add LABEL`) and set STILLROOM_REQUIRE_KEY=true, put a "
        "firewall before it, or bind it to 127.0.0.1."
    )


def _operators_key(settings: AdminSettings) -> str | None:
    """Where a key of the operator's comes from; None if each client's own is passed on."""
    try:
        entries = teachers.read(settings).entries
    except BadTeachers:  # the doctor and the proxy itself tell of it
        return None
    if any(entry.key_env or entry.key_file for entry in entries):
        return f"{settings.teachers} names keys of yours"
    used = settings.teacher_key is not None and any(entry.name == teachers.ENVIRONMENT for entry in entries)
    return "STILLROOM_TEACHER_KEY is set" if used else None


def _check_port(room: str, host: str, port: int) -> None:
    for _ in range(20):  # rooms of one that was killed a moment ago may still be dying
        try:
            if not port_taken(host, port):
                return
        except OSError as error:
            raise Invalid(
                f"{room} cannot listen on {host}:{port}: {error}. Set STILLROOM_{room.upper()}_HOST.", "bad_address"
            ) from error
        time.sleep(0.1)
    raise Conflict(f"Something listens on {host}:{port} already: stop it, or set STILLROOM_{room.upper()}_PORT.", "port_taken")


def _prepare(settings: AdminSettings) -> str | None:
    """Bring the database up to date; returns what to say of the admin API's token: itself, if this is a first start on a terminal.

    A token belongs on a terminal, never in a log. A database server that is away is no reason not to start: the proxy answers
    without it, the other rooms wait for it.
    """
    try:
        with schema.opened(settings) as db:  # no connection is held while the rooms run
            if not sys.stdout.isatty():
                with db.read() as session:
                    return None if auth.tokens(session) else f"there is no admin token yet. {auth.HOW}"
            with db.begin() as session:
                token = auth.make_first(session, by="first start")
                return f"your admin token, shown only now: {token}" if token else None
    except Unavailable as problem:
        if settings.url.startswith("sqlite") or not isinstance(problem.__cause__, OperationalError):
            raise
        _say(f"WARNING: {problem.message} Requests are answered, and captured once it is back.")
        return None


def _introduce(settings: AdminSettings, token: str | None, missing: dict[str, str]) -> None:
    _say(f"stillroom, home {settings.home_path}")
    if token is not None:
        _say(token)
    for room, why in missing.items():
        _say(f"{room} is left out. {why}")
    if warning := exposed_key(settings):
        _say(f"WARNING: {warning}")
    _say(f"admin API: http://{settings.admin_host}:{settings.admin_port}/docs")
    _say(f"point your client here: http://{settings.proxy_host}:{settings.proxy_port}/v1")


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _no_screen() -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _screen(supervisor: Supervisor) -> Iterator[Callable[[], None]]:
    """A live table below what is printed: each room, how it is, the end of its log."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def render() -> Table:
        table = Table("room", "state", "pid", "restarts", box=None)
        table.add_column("its log ends", no_wrap=True, overflow="ellipsis")
        for child in supervisor.children:
            state = "running" if child.running else "waiting"
            pid = str(child.process.pid) if child.process else ""
            table.add_row(child.room, state, pid, str(child.restarts), Text(child.last_line()))
        return table

    with Live(render(), auto_refresh=False, redirect_stdout=True) as live:
        yield lambda: live.update(render(), refresh=True)
