"""Where a database leads: a listener's `databases`, by literal names. Nothing else chooses a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pgtlsproxy.policy.pattern import Pattern
from pgtlsproxy.policy.proofs import Login
from pgtlsproxy.policy.records import Field, Token
from pgtlsproxy.policy.rule import Replication, is_samerole


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTerms:
    """What the policy knows of a backend.

    Args:
        name: its name.
        login: how it is satisfied.
        own_credential: whether it sees a credential of the proxy: login `certificate` or `passfile`, a
            certificate of the proxy, or a Unix socket where `peer` sees the proxy.
        reserved_users: users who need a line that names them where `own_credential`.
        require_auth_none: whether it may let sessions in without asking the client.
    """

    name: str
    login: Login
    own_credential: bool
    reserved_users: frozenset[str]
    require_auth_none: bool


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a database leads.

    Args:
        backend: the backend.
        dbname: what the database is called there; None for the name that was asked for.
    """

    backend: BackendTerms
    dbname: str | None = None

    def called(self, database: str) -> str:
        """What a database that leads here is called at the backend.

        Args:
            database: the name that was asked for.
        """
        return database if self.dbname is None else self.dbname


@dataclass(frozen=True, slots=True, kw_only=True)
class Databases:
    """The databases that can be asked for at a listener.

    Args:
        listed: where those lead that are listed by name.
        others: where all others lead; None where there are none.
    """

    listed: Mapping[str, Destination] = field(default_factory=dict)
    others: Destination | None = None

    @property
    def backends(self) -> tuple[BackendTerms, ...]:
        """The backends that can be reached, each once."""
        return _each_once(self._all())

    @property
    def have_a_map(self) -> bool:
        """Whether the listener says where each database leads, and not that all lead to one backend."""
        return bool(self.listed) or self.others is None or self.others.dbname is not None

    def destination(self, database: str, replication: Replication) -> Destination | None:
        """Where a client goes on to; None where what it asks for is not there.

        Physical replication copies a whole cluster and means no database, even where one is named.
        """
        if replication is Replication.PHYSICAL:
            return self.others
        return self.listed.get(database, self.others)

    def reached_by(self, databases: Field) -> tuple[BackendTerms, ...]:
        """The backends to which a line of pg_hba.conf may let clients, each once.

        Args:
            databases: the line's database column.
        """
        return _each_once(destination for token in databases for destination in self._reached_by(token))

    def _reached_by(self, token: Token) -> Iterator[Destination]:
        """Where the databases lead for which a token may stand, by whatever user."""
        if token.is_keyword("replication"):
            yield from self._others()
        elif isinstance(token, Pattern):
            yield from (
                destination
                for name, destination in self.listed.items()
                if token.program.can_judge(name) and token.program.matches(name)
            )
            yield from self._others()
        elif token.is_keyword("all") or token.is_keyword("sameuser") or is_samerole(token):
            yield from self._all()
        elif token.text in self.listed:
            yield self.listed[token.text]
        else:
            yield from self._others()

    def _all(self) -> Iterator[Destination]:
        yield from self.listed.values()
        yield from self._others()

    def _others(self) -> Iterator[Destination]:
        if self.others is not None:
            yield self.others


def _each_once(destinations: Iterator[Destination]) -> tuple[BackendTerms, ...]:
    return tuple({each.backend.name: each.backend for each in destinations}.values())
