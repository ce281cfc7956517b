"""What every proxy of the comparison stands between: the same certificates, PostgreSQL and clients."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.processes import running
from pgtlsproxy.demo.installations import (
    Installation,
    PostgresFailed,
    ServerUser,
    find_installations,
    reachable_folder,
    server_user,
)
from pgtlsproxy.demo.postgres import ADMIN, Cluster
from pgtlsproxy.pki import Issued, issue_server, make_ca

DATABASE: Final = "bench"
USER: Final = "bench"
PASSWORD: Final = "throwaway"  # noqa: S105 - it lives as long as the run
PROXY_NAME: Final = "proxy.test"
"""What clients call every proxy. Nothing resolves it: they are told the address as well (hostaddr)."""
SERVER_NAME: Final = "db.test"

MAX_SESSIONS: Final = 3200
"""Sessions that PostgreSQL and every peer have room for."""

MAJOR: Final = 17
"""The first PostgreSQL that takes TLS without SSLRequest, all that HAProxy and Envoy can speak to it."""

ROW_OCTETS: Final = 1000
BULK_ROWS: Final = 131_072
BULK_OCTETS: Final = ROW_OCTETS * BULK_ROWS
"""Text of one COPY of the table `bulk`."""

_SCALE: Final = 10
_QUIET_SECONDS: Final = 60.0
_SETUP: Final = (
    f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'",
    f"CREATE DATABASE {DATABASE}",
)
_HBA: Final = f"hostssl {DATABASE} {USER} 127.0.0.1/32 scram-sha-256\n"
_TABLES: Final = f"""\
CREATE UNLOGGED TABLE bulk AS
    SELECT repeat(md5(n::text), 31) || '.......' AS line FROM generate_series(1, {BULK_ROWS}) n;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO {USER};
GRANT INSERT ON bulk TO {USER};
VACUUM (FREEZE, ANALYZE);
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Site:
    """What a run is done with.

    Args:
        folder: of the run; everybody may enter it.
        cluster: PostgreSQL. There is no way in but TLS and SCRAM.
        user: as whom PostgreSQL runs, and peers that refuse to run as root.
        ca, proxy: the authority, and the certificate that every proxy shows to clients.
        verifier: the user's SCRAM secret as PostgreSQL has it.
        bulk_file: what COPY out of `bulk` gives.
    """

    folder: Path
    cluster: Cluster
    user: ServerUser
    ca: Issued
    proxy: Issued
    verifier: str
    bulk_file: Path

    @property
    def programs(self) -> Installation:
        """Whose psql and pgbench are the clients."""
        return self.cluster.client

    def conninfo(
        self,
        port: int,
        *,
        tls: bool,
        direct: bool = False,
        name: str = PROXY_NAME,
        channel_binding: str = "disable",
    ) -> str:
        """Words for libpq to get in at a port of 127.0.0.1.

        Args:
            port: whose.
            tls: verified TLS, or clear text.
            direct: TLS without SSLRequest.
            name: who the certificate must name.
            channel_binding: a hop that ends TLS breaks SCRAM's binding to it, so that every peer is asked
                without; only a bridge is not.
        """
        words = [
            f"host={name} hostaddr=127.0.0.1 port={port} dbname={DATABASE} user={USER} password={PASSWORD}",
            f"channel_binding={channel_binding} gssencmode=disable connect_timeout=20",
            f"sslmode=verify-full sslrootcert={self.folder}/ca.crt" if tls else "sslmode=disable",
        ]
        return " ".join([*words, "sslnegotiation=direct"] if direct else words)

    def files(self) -> dict[str, bytes]:
        """Certificates and keys as the proxies want them."""
        chain, key = self.proxy.certificate_pem(), self.proxy.key_pem().reveal()
        return {
            "ca.crt": self.ca.certificate_pem(),
            "proxy.crt": chain,
            "proxy.key": key,
            "proxy.pem": chain + key,
        }

    def client_environment(self) -> dict[str, str]:
        """All that client programs see."""
        return self.programs.environment() | {"HOME": str(self.folder)}

    def wait_until_quiet(self) -> None:
        """Wait until PostgreSQL has let go of sessions that ended."""
        deadline = time.monotonic() + _QUIET_SECONDS
        count = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{USER}'"  # noqa: S608 - a constant
        while int(self.cluster.psql(count).stdout) > 150 and time.monotonic() < deadline:
            time.sleep(0.2)


def find_postgres() -> Installation:
    """The PostgreSQL of the run.

    Raises:
        PostgresFailed: none here will do.
    """
    for found in find_installations():
        if found.major >= MAJOR and found.has("pgbench") and found.has("psql"):
            return found
    raise PostgresFailed(f"no PostgreSQL {MAJOR} or newer with pgbench here: ./dev bench installs one")


@contextmanager
def open_site() -> Iterator[Site]:
    """Start PostgreSQL and fill its tables.

    Raises:
        PostgresFailed: it cannot be done.
    """
    installation, user, ca = find_postgres(), server_user(), make_ca("pgtlsproxy bench CA")
    server = issue_server(ca, [SERVER_NAME, "127.0.0.1"])
    settings = {
        "ssl": "on",
        "max_connections": str(MAX_SESSIONS + 100),
        "shared_buffers": "400MB",
        "log_connections": "off",
        "autovacuum": "off",
        "max_parallel_workers_per_gather": "0",
    }
    files = {"server.crt": server.certificate_pem(), "server.key": server.key_pem().reveal()}
    with (
        tempfile.TemporaryDirectory(prefix="pgtlsproxy-bench-", dir=reachable_folder(user)) as name,
        Cluster(installation, hba=_HBA, settings=settings, files=files, setup=_SETUP) as cluster,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "ca.crt").write_bytes(ca.certificate_pem())
        _fill(cluster)
        verifier = cluster.psql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'").stdout.strip()  # noqa: S608 - a constant
        bulk_file = folder / "bulk.txt"
        bulk_file.write_text(cluster.psql("COPY bulk TO STDOUT", database=DATABASE).stdout)
        proxy = issue_server(ca, [PROXY_NAME])
        yield Site(folder, cluster, user, ca, proxy, verifier, bulk_file)


def _fill(cluster: Cluster) -> None:
    target = ["-h", str(cluster.socket_dir), "-p", str(cluster.port), "-U", ADMIN, DATABASE]
    initialise = [cluster.client.program("pgbench"), "-i", "-q", "-s", str(_SCALE), "--unlogged-tables"]
    with running([*initialise, *target], environment=cluster.client.environment()) as process:
        _, said = process.communicate(timeout=300)
    if process.returncode != 0:
        raise PostgresFailed(f"pgbench -i: {said.decode(errors='replace').strip()}")
    cluster.psql(_TABLES, database=DATABASE)
