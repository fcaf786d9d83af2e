"""Asking one teacher: the client's own request, under the client's key or the operator's."""

from collections.abc import AsyncIterator, Callable

from proxy.base import Base
from proxy.client import Client
from proxy.errors import Refusal, TimedOut, Unreachable, Unsendable, UpstreamError
from proxy.headers import CREDENTIALS, IN_PROTOCOLS, PROTOCOLS, Headers, secrets, to_teacher
from proxy.http1 import Http1Answer
from proxy.settings import ProxySettings
from proxy.trust import Trust
from proxy.upstream import Answer, Upstream, header_lines
from store import teachers
from store.keys import PREFIX
from store.teachers import DEPLOYED, ENVIRONMENT, Entry, Format, NoDeployment

VIRTUAL = PREFIX.encode()  #: how stillroom's own keys begin; no teacher is to see one
_PREFIX = len(b"/v1")
_CARRY_KEYS = (*CREDENTIALS, PROTOCOLS)


class Teacher:
    """One API, with the clients it trusts and the connections to it."""

    def __init__(self, settings: ProxySettings, entry: Entry | None = None, key: str | None = None) -> None:
        """`entry` asked with `key`, the operator's; without an entry the teacher that the environment names."""
        if entry is None:
            entry, secret = teachers.environment(settings), settings.teacher_key
            key = secret.get_secret_value() if secret else None
        self.name = entry.name
        self.base = Base(entry.url)
        self._entry = entry
        self._plain = entry.plain
        self._key = key
        self._trust = Trust()
        self._added: Headers = [(name.encode(), value.encode()) for name, value in entry.headers.items()]
        self._replaced = {name for name, _ in self._added}
        self._secrets: list[bytes] = []
        if key is not None:
            credential = _encoded(entry.credential(key))
            self._secrets = secrets([credential])
            if entry.format != Format.OPENAI:
                self._replaced.add(b"authorization")
                self._added.append(credential)
        self._upstream = Upstream(
            connect_timeout=entry.connect_timeout or settings.connect_timeout,
            read_timeout=entry.read_timeout or settings.read_timeout,
            url=entry.url,
        )

    async def ask(
        self,
        client: Client,
        body: bytes | AsyncIterator[bytes],
        model: str | None = None,
        *,
        own_key: bool = False,
        upgrades: bool = False,
        fresh: bool = False,
    ) -> Answer:
        """Forward the request with `body`: /v1/x?y goes to {url}/x?y, on Azure to where it belongs.

        `model` is what the body names, where that is known; `own_key`: the client's key is stillroom's, so the teacher's own
        has to do; `upgrades`: to WebSocket; `fresh`: on a new connection. Raises UpstreamError, and Refusal where there is no key
        or no deployment to ask with.
        """
        target, headers = self.target(client, model), self.headers(client, own_key=own_key, upgrades=upgrades)
        length = None if client.length is None else client.length.decode()
        return await self._upstream.open(
            client.method, self.base, target, headers, body, length=length, upgrades=upgrades, fresh=fresh
        )

    def offer(
        self, client: Client, body: bytes, then: Callable[[Http1Answer], None], model: str | None = None, *, own_key: bool = False
    ) -> Http1Answer | None:
        """As `ask`, without a task, if a connection is kept; else nothing is done, and None returned. See `Upstream.offer`."""
        target, made = self.target(client, model), client.head.derived
        lines = made.get((self, own_key))
        if lines is None or client.query:
            lines = made[self, own_key] = header_lines(self.base, self.headers(client, own_key=own_key))
        return self._upstream.offer(self.base, target, lines, body, then)

    def target(self, client: Client, model: str | None = None) -> bytes:
        """Path and query below `base` for this request. Raises Refusal if they need a model's name that is not there."""
        path, query = client.raw_path[_PREFIX:], client.query
        if self._plain:
            return path + b"?" + query if query else path
        try:
            return self._entry.target(path, query, model)
        except NoDeployment as error:
            how = "Name it in the body's `model`, or ask /v1/deployments/NAME/... for the deployment."
            raise Refusal(400, "no_deployment", f"No deployment: {error}. {how}", "model") from error

    def headers(self, client: Client, *, own_key: bool = False, upgrades: bool = False) -> Headers:
        """The client's headers as this teacher gets them, but for host and framing. Raises Refusal if there is no key to send."""
        if client.query and VIRTUAL in client.query:
            raise Refusal(
                400, "key_in_query", "A stillroom key is in the query, which would go to the teacher: send it in a header."
            )
        if self._key is None and (own_key or _virtual(client.head.headers)):
            raise Refusal(401, "no_teacher_key", f"A stillroom key is not the teacher's, which has none of its own: {self._how()}.")
        headers = to_teacher(client.head.headers, self._key)
        if upgrades and self._key is not None:
            headers = [(name, _keyless(value) if name == PROTOCOLS else value) for name, value in headers]
        if self._added:
            headers = [*(pair for pair in headers if pair[0] not in self._replaced), *self._added]
        return headers

    def wants_model(self, client: Client) -> bool:
        """Whether `ask` needs to know the model that the body names: Azure's dated API has a deployment in the path."""
        return self._entry.format == Format.AZURE_DEPLOYMENTS and client.raw_path[_PREFIX:] in DEPLOYED

    def judged(self, client: Client, status: int, *, own_key: bool = False) -> list[bytes] | None:
        """The teacher has answered a completion for this client: 2xx accepts its key, 401 and 403 refuse it.

        Returns the keys of a request that it did not answer well: what it says instead may quote them. Else None.
        """
        of_client = self._key is None and not own_key
        if status < 400:
            if of_client and status < 300:
                self._trust.accept(client.head)
            return None
        if of_client and status in (401, 403):
            self._trust.revoke(client.head)
        if of_client:
            return secrets(client.head.headers, client.query)
        return [*self._secrets, *secrets([], client.query)]

    def trusts(self, client: Client, *, own_key: bool = False) -> bool:
        """Whether a student may answer this client: its key is stillroom's, the operator's is used, or its own is good."""
        return own_key or self._key is not None or self._trust.accepted(client.head)

    def refusal(self, error: UpstreamError) -> Refusal:
        """What a client is told when the teacher gave no answer."""
        listed = self.name != ENVIRONMENT
        if isinstance(error, Unsendable):
            return Refusal(400, "bad_request", f"The request cannot be forwarded: {error}.")
        if isinstance(error, TimedOut):
            setting = f"read_timeout of teacher {self.name!r}" if listed else "STILLROOM_READ_TIMEOUT"
            return Refusal(504, "teacher_timeout", f"No answer from the teacher: {error} ({setting}).")
        if isinstance(error, Unreachable):
            setting = f"the url of teacher {self.name!r} in STILLROOM_TEACHERS" if listed else "STILLROOM_TEACHER_URL"
            return Refusal(502, "teacher_unreachable", f"No teacher: {error}. Check the network and {setting}.")
        return Refusal(502, "teacher_lost", f"No answer from the teacher: {error}. The request can be sent again.")

    async def close(self) -> None:
        """Close every connection."""
        await self._upstream.close()

    def _how(self) -> str:
        if self.name == ENVIRONMENT:
            return "set STILLROOM_TEACHER_KEY"
        return f"give teacher {self.name!r} a key_env or key_file in STILLROOM_TEACHERS"


def _virtual(headers: Headers) -> bool:
    for name, value in headers:  # noqa: SIM110 - any() would cost twice as much
        if name in _CARRY_KEYS and VIRTUAL in value:
            return True
    return False


def _keyless(protocols: bytes) -> bytes:
    return b",".join(each for each in protocols.split(b",") if not each.strip().startswith(IN_PROTOCOLS))


def _encoded(header: tuple[str, str]) -> tuple[bytes, bytes]:
    return header[0].encode(), header[1].encode()
