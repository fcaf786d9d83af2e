"""Which teacher answers a request: by the header that names one, by the model, or the one for all the rest."""

import asyncio

from proxy.errors import Refusal
from proxy.prices import Prices
from proxy.settings import ProxySettings
from proxy.teacher import Teacher
from store import teachers

HEADER = b"x-stillroom-teacher"  #: its value names a teacher, for any path
_REMEMBERED = 4096  # models; a client may send any text for one
_LONGEST = 256  # characters of a model that is remembered
_QUOTED = 80  # characters of a client's own that a message repeats


class Teachers:
    """All teachers, as STILLROOM_TEACHERS says, or the one at STILLROOM_TEACHER_URL."""

    def __init__(self, settings: ProxySettings) -> None:
        """Raises store.teachers.BadTeachers, a ValueError that says which entry of the file is wrong, and how."""
        self._listed = teachers.read(settings)
        self._named = {entry.name: Teacher(settings, entry, self._listed.key(entry)) for entry in self._listed.entries}
        self._chosen: dict[object, Teacher | None] = {}  # by model
        self.prices = Prices(self._listed.prices)

    @property
    def names(self) -> list[str]:
        """Every teacher's name, in the file's order."""
        return list(self._named)

    def of(self, model: object, named: str | None = None) -> Teacher:
        """The teacher of a request for `model`, or the one that the client has `named`. Raises Refusal.

        `model` is what the body says, None where it says nothing or is not read; anything but a string counts as None.
        """
        if named:
            return self._by_name(named)
        try:
            teacher = self._chosen[model]
        except (KeyError, TypeError):
            model = model if isinstance(model, str) else None
            teacher = self._choose(model)
        if teacher is None:
            raise self._unknown(model if isinstance(model, str) else None)
        return teacher

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(teacher.close() for teacher in self._named.values()))

    def _by_name(self, name: str) -> Teacher:
        teacher = self._named.get(name)
        if teacher is None:
            message = f"There is no teacher {name[:_QUOTED]!r}: there is {', '.join(self._named)}."
            raise Refusal(400, "unknown_teacher", f"Header x-stillroom-teacher: {message}", "x-stillroom-teacher")
        return teacher

    def _choose(self, model: str | None) -> Teacher | None:
        entry = self._listed.of(model)
        teacher = None if entry is None else self._named[entry.name]
        if len(model or "") <= _LONGEST:
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            self._chosen[model] = teacher
        return teacher

    def _unknown(self, model: str | None) -> Refusal:
        how = f"name one of {', '.join(self._named)} in the header x-stillroom-teacher"
        if model is None:
            message = f"No teacher is the default, and this request names no model that says whose it is: {how}."
            return Refusal(404, "model_not_found", message)
        patterns = ", ".join(pattern for entry in self._listed.entries for pattern in entry.models) or "none"
        message = f"No teacher answers the model {model[:_QUOTED]!r}: take one that matches {patterns}, or {how}."
        return Refusal(404, "model_not_found", message, "model")
