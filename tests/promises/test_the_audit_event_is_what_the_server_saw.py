"""What `session_decided` says of a session is what PostgreSQL itself says of it."""

import pytest

from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.drivers import by_certificate
from fixtures.postgres import password

ASKED = """\
SELECT session_user, current_user, current_database(), system_user, pg_backend_pid(), inet_client_port(), version,
       cipher, coalesce(client_dn, ''), coalesce(client_serial, 0), application_name
FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE pid = pg_backend_pid();
"""

HBA = "hostssl all all all cert map=people\n"
IDENT = "people alice bob\npeople alice app\n"


@pytest.fixture(scope="module")
def running(tls_cluster, shared_proxy, certs):
    believing = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    return shared_proxy(
        config(
            {
                "own": with_tls(certs, ident_file="pg_ident.conf", backend="own"),
                "through": with_tls(certs, hba_file="through.conf", backend="through"),
            },
            own=with_certificate(believing, certs),
            through=passthrough(tls_cluster(17), certs),
        ),
        {
            "pg_hba.conf": HBA,
            "pg_ident.conf": IDENT,
            "through.conf": "hostssl all all all scram-sha-256 clientcert=verify-ca\n",
        },
    )


@pytest.mark.parametrize(
    ("listener", "user", "proof"),
    [("own", "bob", "cert"), ("own", "app", "cert"), ("through", "bob", "scram-sha-256")],
)
def test_user_process_port_and_certificate_are_the_servers(running, certs, psql, listener, user, proof):
    """Alice's certificate is bob's by the map, and anybody's where a password is asked for, too."""
    name = f"audit {listener} {user}"
    words = {"user": user, "dbname": user, "application_name": name, "channel_binding": "disable"}
    if listener == "through":
        words["password"] = password(user)
    done = psql(17).run(ASKED, **by_certificate(running, listener, certs, "alice").words | words)
    assert done.returncode == 0, done.stderr
    session_user, current_user, database, system_user, pid, port, version, cipher, dn, serial, said = (
        done.stdout.strip().split("|")
    )
    decided = running.wait_for_event("session_decided", application_name=name)
    assert (decided["verdict"], decided["proof"], decided["cert_dn"]) == ("allowed", proof, "CN=alice")
    assert decided["user"] == session_user == current_user == user
    assert (decided["database"], decided["application_name"]) == (database, said)
    assert (decided["backend_pid"], decided["backend_local_port"]) == (int(pid), int(port))
    assert decided["backend_tls_version"] == version
    assert cipher
    if listener == "own":
        shown = certs.client("pgtlsproxy").certificate
        assert (dn, int(serial)) == ("/CN=pgtlsproxy", shown.serial_number)
        assert (system_user, decided["identity"]) == ("cert:CN=pgtlsproxy", "CN=alice")
    else:
        assert (dn, system_user) == ("", f"scram-sha-256:{user}")
        assert decided["identity"] == user
