"""What a client is told when pg_hba.conf keeps it out.

The words are PostgreSQL's own (`ClientAuthentication` and `auth_failed`, src/backend/libpq/auth.c).
"""

from __future__ import annotations

from pgtlsproxy.identity import printable
from pgtlsproxy.policy.request import AccessRequest
from pgtlsproxy.policy.rule import Method, Replication


def no_entry(request: AccessRequest) -> str:
    """No line applies, or none may be told."""
    if request.replication is Replication.PHYSICAL:
        return f"no pg_hba.conf entry for replication connection from {_origin(request)}"
    return f"no pg_hba.conf entry for {_origin(request)}"


def rejects(request: AccessRequest) -> str:
    """A line with `reject`, or one that lets in somebody else."""
    if request.replication is Replication.PHYSICAL:
        return f"pg_hba.conf rejects replication connection for {_origin(request)}"
    return f"pg_hba.conf rejects connection for {_origin(request)}"


def no_database(request: AccessRequest) -> str:
    """There is no such database. PostgreSQL says so behind the authentication, with 3D000.

    (`InitPostgres`, src/backend/utils/init/postinit.c)
    """
    return f'database "{printable(request.database)}" does not exist'


def failed(method: Method, request: AccessRequest) -> tuple[str, str]:
    """A method's refusal and its SQLSTATE: a wrong name is answered as a wrong password is."""
    user = printable(request.user)
    match method:
        case Method.CERT:
            return f'certificate authentication failed for user "{user}"', "28000"
        case Method.PEER:
            return f'Peer authentication failed for user "{user}"', "28000"
        case Method.SCRAM_SHA_256 | Method.PASSWORD | Method.MD5:
            return f'password authentication failed for user "{user}"', "28P01"
        case Method.LDAP | Method.PAM | Method.RADIUS | Method.BSD:
            return f'{method.upper()} authentication failed for user "{user}"', "28000"
        case Method.GSS:
            return f'GSSAPI authentication failed for user "{user}"', "28000"
        case Method.OAUTH:
            return f'OAuth bearer authentication failed for user "{user}"', "28000"
        case _:
            return f'"{method}" authentication failed for user "{user}"', "28000"


def _origin(request: AccessRequest) -> str:
    parts = [f'host "{request.address}"', f'user "{printable(request.user)}"']
    if request.replication is not Replication.PHYSICAL:
        parts.append(f'database "{printable(request.database)}"')
    parts.append("SSL encryption" if request.tls else "no encryption")
    return ", ".join(parts)
