"""Who is a member of which role, asked of a backend: `roles_query`.

All memberships are read at once, with the proxy's own credential, and serve every session for the query's
lifetime. From the middle of it on they are read anew while sessions still go by what is known, so that
hardly any waits. When the lifetime is over and nothing newer has come, nobody's roles are known.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from pgtlsproxy.config import Backend, RolesQuery
from pgtlsproxy.errors import BackendMisbehaved, BackendUnavailable
from pgtlsproxy.policy.request import Unknown
from pgtlsproxy.policy.roles import Memberships, memberships
from pgtlsproxy.protocol.messages import parse_error_response
from pgtlsproxy.protocol.query import TERMINATE, answer_reader, encode_query, parse_row
from pgtlsproxy.proxy.dial import read_message, send_to_backend
from pgtlsproxy.proxy.own_login import at_a_server, log_in_as
from pgtlsproxy.proxy.resolve import Resolver
from pgtlsproxy.proxy.snapshot import BackendSnapshot
from pgtlsproxy.tls.stream import Leg

FETCH_SECONDS: Final = 10.0
"""How long the backend may take, from the first dial to the last row."""

RETRY_SECONDS: Final = 1.0
"""How long it is left alone after a failure."""

MAX_ROWS: Final = 100_000
"""How many memberships a backend may have."""

REMEMBERED: Final = 64
"""For how many backends the memberships are kept; the least recently used goes first."""

QUERY: Final = (
    "SELECT role.rolname, member.rolname "
    "FROM pg_catalog.pg_auth_members AS m, pg_catalog.pg_roles AS role, pg_catalog.pg_roles AS member "
    "WHERE m.roleid OPERATOR(pg_catalog.=) role.oid AND m.member OPERATOR(pg_catalog.=) member.oid "
    "LIMIT 100001"  # MAX_ROWS, and one that says that there are more
)
"""Every role may ask this. A superuser is a member of what it was made a member of, as in pg_hba.conf."""

Fetch = Callable[[BackendSnapshot, RolesQuery, Resolver], Awaitable[Memberships]]


@dataclass(slots=True)
class _Known:
    """What is known of a backend's roles.

    Attributes:
        backend: its settings when it was asked.
        members: the last answer; None before the first.
        asked_at: when that was asked for, by the monotonic clock.
        failure: why there was no newer one.
        failed_at: when that was.
        bug: what went wrong with us.
        under_way: set when the asking that is under way is over; None where there is none.
    """

    backend: Backend
    members: Memberships | None = None
    asked_at: float = 0.0
    failure: str = ""
    failed_at: float = float("-inf")
    bug: Exception | None = None
    under_way: trio.Event | None = None

    def is_younger_than(self, seconds: float) -> bool:
        return self.members is not None and time.monotonic() - self.asked_at < seconds


class BackendRoles:
    """Asks and remembers; one a process.

    Args:
        fetch: asks a backend; raises BackendUnavailable.
    """

    def __init__(self, fetch: Fetch | None = None) -> None:
        self._fetch = fetch or fetch_memberships
        # Silent: what it cannot find stands in the refusals.
        self._resolver = Resolver(structlog.wrap_logger(structlog.ReturnLogger()))
        self._known: OrderedDict[tuple[str, RolesQuery], _Known] = OrderedDict()

    async def of(self, user: str, backend: BackendSnapshot, query: RolesQuery) -> frozenset[str] | Unknown:
        """The roles that a user is a member of, by what the backend says.

        Args:
            user: which one.
            backend: whom to ask.
            query: as whom, and how long the answer is believed.

        Cancellation: the asking goes on for those who wait for it too.
        """
        known = self._of_backend(backend, query)
        if (
            known.under_way is None
            and not known.is_younger_than(query.lifetime / 2)
            and time.monotonic() - known.failed_at >= RETRY_SECONDS
        ):
            known.under_way = trio.Event()
            trio.lowlevel.spawn_system_task(self._ask, backend, query, known)
        if known.under_way is not None and not known.is_younger_than(query.lifetime):
            await known.under_way.wait()
        if known.members is not None and known.is_younger_than(query.lifetime):
            return known.members.of(user)
        if known.bug is not None:
            raise known.bug
        return Unknown(f"roles_query: {known.failure}")

    def _of_backend(self, backend: BackendSnapshot, query: RolesQuery) -> _Known:
        key = backend.name, query
        known = self._known.get(key)
        if known is None or known.backend != backend.settings:
            known = self._known[key] = _Known(backend.settings)
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def _ask(self, backend: BackendSnapshot, query: RolesQuery, known: _Known) -> None:
        """Ask in a task of nobody's, so that no waiter's end ends it."""
        begin = time.monotonic()
        failure = f"backend {backend.name}: no answer within {FETCH_SECONDS:g} s"
        known.bug = None
        try:
            with trio.move_on_after(FETCH_SECONDS):
                known.members = await self._fetch(backend, query, self._resolver)
                known.asked_at = begin
                failure = ""
        except BackendUnavailable as error:
            failure = error.reason
        except Exception as error:  # noqa: BLE001 - what a system task raises would end the process
            failure, known.bug = "internal error", error
        if failure:
            known.failure, known.failed_at = failure, time.monotonic()
        if known.under_way is not None:
            known.under_way.set()
            known.under_way = None


async def fetch_memberships(backend: BackendSnapshot, query: RolesQuery, resolver: Resolver) -> Memberships:
    """Read all memberships of a backend, at the first of its addresses that answers.

    Raises:
        BackendUnavailable: none does, or not as it should.
    """
    return await at_a_server(
        backend, resolver, query.user, lambda leg: _memberships(leg, backend.settings, query)
    )


async def _memberships(leg: Leg, backend: Backend, query: RolesQuery) -> Memberships:
    logged_in = await log_in_as(leg, backend, query.user, query.dbname, None)
    reader = answer_reader()
    reader.feed(logged_in.unread)
    await send_to_backend(leg, encode_query(QUERY))
    rows: list[tuple[str, ...]] = []
    while (message := await read_message(leg, reader)).type != b"Z":
        if message.type == b"E":
            error = parse_error_response(message.body)
            raise BackendMisbehaved(f"the backend answers {error.sqlstate}: {error.message}")
        if message.type == b"D":
            rows.append(parse_row(message.body, columns=2))
            if len(rows) > MAX_ROWS:
                raise BackendMisbehaved(f"the backend has over {MAX_ROWS} memberships of roles")
    await send_to_backend(leg, TERMINATE)
    return memberships((role, (member,)) for role, member in rows)
