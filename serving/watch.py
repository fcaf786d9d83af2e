"""Whether a vLLM still generates. `/health` answers 200 with a hung engine, so now and then it is asked for one token."""

import queue
import threading
from dataclasses import dataclass

from serving.vllm import StudentError, StudentServer


@dataclass(frozen=True)
class Timing:
    """Patience, in seconds."""

    probe_every: float = 15.0
    probe_timeout: float = 60.0  #: generous: under load a token waits its turn
    probe_again: float = 2.0  #: after a failure
    probe_failures: int = 3  #: in a row, and it counts as dead
    first_pause: float = 1.0  #: before a restart; doubled each time
    longest_pause: float = 60.0
    steady: float = 300.0  #: well for this long, and the pause is the first one again
    missing_pause: float = 30.0  #: before looking again for a base model or a vLLM that was not there


PATIENT = Timing()


class Watch:
    """Probes one server. `tick` never waits: the answer is awaited in a thread."""

    def __init__(self, server: StudentServer, model: str, timing: Timing) -> None:
        self.server, self.model, self.timing = server, model, timing
        self.failures = 0
        self.trouble = ""
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asking = False
        self._due = 0.0  # monotonic; the first probe at once

    @property
    def dead(self) -> bool:
        return self.failures >= self.timing.probe_failures

    def tick(self, now: float) -> None:
        """Take an answer that has come, ask again when it is time. `now` is monotonic."""
        if self._asking:
            try:
                self.trouble = self._answers.get_nowait()
            except queue.Empty:
                return
            self._asking = False
            self.failures = self.failures + 1 if self.trouble else 0
            self._due = now + (self.timing.probe_again if self.trouble else self.timing.probe_every)
        if now >= self._due:
            self._asking = True
            threading.Thread(target=self._ask, name="probe", daemon=True).start()

    def _ask(self) -> None:
        try:
            self.server.probe(self.model, self.timing.probe_timeout)
        except StudentError as error:
            self._answers.put(str(error))
        except RuntimeError as error:  # the client was closed meanwhile
            self._answers.put(str(error))
        else:
            self._answers.put("")
