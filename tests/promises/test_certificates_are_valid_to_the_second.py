"""A client's certificate, an intermediate and a root count from their first second to their last, and no longer."""

import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest

from fixtures import wire
from fixtures.certs import Authority, common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in

SECONDS_AHEAD = 5
"""When the boundary comes: the proxy has started by then."""

YEAR = timedelta(days=365)


@pytest.fixture
def boundary():
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=SECONDS_AHEAD)


@pytest.fixture
def clients(certs, tmp_path, boundary):
    """Certificates of alice by what ends or begins at the boundary, and the roots to trust."""
    periods = {"ends": (boundary - YEAR, boundary), "begins": (boundary, boundary + YEAR)}
    found, roots = {}, [certs.ca]
    for what, period in periods.items():
        not_before, not_after = period
        found["leaf", what] = certs.ca.issue(
            common_names("alice"), usage="client", not_before=not_before, not_after=not_after
        )
        found["intermediate", what] = certs.ca.intermediate(f"{what} soon", period).client("alice")
        roots.append(Authority.root(tmp_path / what, f"{what} soon", period))
        found["root", what] = roots[-1].client("alice")
    bundle = tmp_path / "roots.crt"
    bundle.write_bytes(b"".join(root.crt.read_bytes() for root in roots))
    return found, bundle


@pytest.fixture
def running(proxy, certs, fake_backend, clients):
    shown = certs.client("pgtlsproxy")
    backend = fake_backend(lets_everybody_in)
    primary = passthrough(backend, certs, login="certificate", sslcert=shown.crt, sslkey=shown.key)
    listener = with_tls(certs, ssl_ca_file=clients[1])
    return proxy(config({"tls": listener}, primary=primary), {"pg_hba.conf": "hostssl all all all cert\n"})


def is_let_in(port, certificate):
    try:
        with wire.connected(("127.0.0.1", port), wire.tls_context(certificate=certificate)) as client:
            client.send(wire.startup(user="alice"))
            client.read_until(b"Z")
            return True
    except (ssl.SSLError, EOFError, ConnectionError):
        return False


def test_a_second_before_and_a_second_after(running, clients, boundary):
    """What is tried in the very second of the boundary is not judged: both its ends lie in it."""
    found, _ = clients
    port, moment = running.port("tls"), boundary.timestamp()
    judged = set()
    while time.time() < moment + 2:
        for (which, what), certificate in found.items():
            begun = time.time()
            verdict = is_let_in(port, certificate)
            side = "before" if time.time() < moment else "behind" if begun >= moment + 1 else "in"
            if side != "in":
                assert verdict == ((what == "ends") == (side == "before")), (which, what, side)
                judged.add((which, what, side))
    assert len(judged) == 2 * len(found)
