"""Child processes: gone with their parent, and with all they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from store import children

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]
# Starts a child of its own the way stillroom does, says its pid, and sleeps.
PARENT = (
    "import sys, time; from store import children; "
    "child = children.spawn([sys.executable, '-c', 'import time; time.sleep(60)']); print(child.pid, flush=True); time.sleep(60)"
)


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_child_is_stopped_by_sigterm() -> None:
    child = children.spawn(SLEEP)
    assert children.stop(child, grace=5) == -signal.SIGTERM


def test_a_child_that_does_not_listen_is_killed() -> None:
    child = children.spawn(DEAF, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert children.stop(child, grace=0.2) == -signal.SIGKILL
    child.stdout.close()


def test_a_child_gets_the_environment_it_is_given_and_the_parents() -> None:
    code = "import os; print(os.environ['STILLROOM_X'], 'PATH' in os.environ)"
    child = children.spawn([sys.executable, "-c", code], stdout=subprocess.PIPE, environment={"STILLROOM_X": "yes"})
    assert child.communicate()[0].split() == [b"yes", b"True"]


def test_a_child_dies_when_its_parent_is_killed() -> None:
    root = str(Path(children.__file__).parents[1])
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root})
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_signalling_a_child_that_is_gone_does_nothing() -> None:
    child = children.spawn([sys.executable, "-c", ""])
    child.wait()
    children.signal_group(child, signal.SIGTERM)
