"""Certificates made with openssl, as guides for PostgreSQL have it, are taken as they are: for the proxy, and of its clients."""

import os
import re
import subprocess

import pytest

from fixtures.deployments import config, passthrough, with_tls
from fixtures.postgres import password

OPENSSL = {
    # As guides for PostgreSQL make certificates, with smaller keys; what is trusted, and what is shown.
    "signed by itself": (
        "ss.crt",
        """
        openssl genrsa -out ss.key 2048
        openssl req -new -x509 -days 365 -key ss.key -out ss.crt -subj "/CN=localhost/O=MyOrg/C=US"
        """,
    ),
    "by a CA, with a common name alone": (
        "own-ca.crt",
        """
        openssl genrsa -out own-ca.key 2048
        openssl req -new -x509 -days 3650 -key own-ca.key -out own-ca.crt -subj "/CN=PostgreSQL CA/O=MyOrg/C=US"
        openssl genrsa -out cn.key 2048
        openssl req -new -key cn.key -out cn.csr -subj "/CN=localhost/O=MyOrg/C=US"
        openssl x509 -req -in cn.csr -CA own-ca.crt -CAkey own-ca.key -CAcreateserial -out cn.crt -days 365 -sha256
        """,
    ),
    "by a CA, with alternative names": (
        "own-ca.crt",
        """
        printf '%s\\n' '[v3]' 'basicConstraints = CA:FALSE' 'keyUsage = digitalSignature, keyEncipherment' \\
            'extendedKeyUsage = serverAuth' 'subjectAltName = DNS:pg.example.com, DNS:localhost, IP:127.0.0.1' > san.cnf
        openssl genrsa -out own-ca.key 2048
        openssl req -new -x509 -days 3650 -key own-ca.key -out own-ca.crt -subj "/CN=PostgreSQL CA/O=MyOrg/C=US"
        openssl genrsa -out san.key 2048
        openssl req -new -key san.key -out san.csr -subj "/CN=pg.example.com"
        openssl x509 -req -in san.csr -CA own-ca.crt -CAkey own-ca.key -CAcreateserial -out san.crt -days 365 \\
            -sha256 -extfile san.cnf -extensions v3
        """,
    ),
}  # fmt: skip


CLIENT = """
    openssl genrsa -out client.key 2048
    openssl req -new -key client.key -out client.csr -subj "/CN=alice"
    openssl x509 -req -in client.csr -CA "$CA.crt" -CAkey "$CA.key" -CAcreateserial -out client.crt -days 365 -sha256
    chmod 600 *.key
"""


@pytest.mark.parametrize(("trusted", "commands"), OPENSSL.values(), ids=OPENSSL)
def test_both_ends_verify_them(tmp_path, tls_cluster, proxy, certs, psql, trusted, commands):
    environment = os.environ | {"CA": trusted.removesuffix(".crt")}
    subprocess.run(
        ["sh", "-ec", commands + CLIENT], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    leaf = re.findall(r"-out (\w+\.crt)", commands)[-1]
    listener = with_tls(certs) | {
        "ssl_cert_file": tmp_path / leaf, "ssl_key_file": (tmp_path / leaf).with_suffix(".key"), "ssl_ca_file": tmp_path / trusted,
    }  # fmt: skip
    running = proxy(
        config({"l": listener}, primary=passthrough(tls_cluster(17), certs)),
        {"pg_hba.conf": "hostssl all all all trust clientcert=verify-full\n"},
    )
    done = psql(17).run(
        "SELECT session_user", host="localhost", hostaddr="127.0.0.1", port=running.port("l"), user="alice", dbname="alice",
        password=password("alice"), sslmode="verify-full", sslrootcert=tmp_path / trusted, channel_binding="disable",
        sslcert=tmp_path / "client.crt", sslkey=tmp_path / "client.key",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alice\n", "")
