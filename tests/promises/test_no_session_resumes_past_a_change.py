"""A TLS session from before a change, or from another listener, saves nobody from being judged by what holds now."""

import shutil
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, with_certificate, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until

IDENT = "people alice alice\n"
CLOSED = "closed"
LET_IN = None
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NOT_ALICE = "28000", 'certificate authentication failed for user "alice"'


class Deployment:
    """A proxy whose files can be changed, and alice."""

    def __init__(self, running, certs, alice):
        self.running, self.certs, self.alice = running, certs, alice
        self.folder = running.config.parent

    def log_in(self, context, session=None, listener="tls"):
        """The TLS session, whether it was resumed, and None, an error, or that the connection was closed."""
        address = "127.0.0.1", self.running.port(listener)
        with wire.WireClient(address, source=wire.another_source()) as client:
            assert client.ask_for_tls() == b"S"
            try:
                client.start_tls(context, session=session)
                client.send(wire.startup(user="alice"))
                while (message := client.read_message()).kind not in b"EZ":
                    pass
            except (ssl.SSLError, EOFError, ConnectionError):
                return None, client.tls is not None and client.tls.session_reused, CLOSED
            found = client.tls.session, client.tls.session_reused
            return *found, message.error if message.kind == b"E" else LET_IN


@pytest.fixture
def deploy(proxy, certs, fake_backend):
    def go(not_after=None):
        alice = certs.ca.issue(common_names("alice"), usage="client", not_after=not_after)
        settings = {"ssl_ca_file": "ca.crt", "ssl_crl_file": "ca.crl", "ident_file": "pg_ident.conf"}
        listeners = {
            "tls": with_tls(certs, **settings, ssl_min_protocol_version="TLSv1.2"),
            "strict": with_tls(certs, ssl_ca_file=certs.other_ca.crt, hba_file="strict.conf"),
        }
        running = proxy(
            config(listeners, primary=with_certificate(fake_backend(lets_everybody_in), certs)),
            {
                "pg_hba.conf": "hostssl all all all cert map=people\n",
                "strict.conf": "hostssl all all all cert\n",
                "pg_ident.conf": IDENT,
                "ca.crt": certs.ca.crt.read_bytes(),
                "ca.crl": certs.ca.crl().read_bytes(),
            },
        )
        running.wait_for_event("ready")
        return Deployment(running, certs, alice)

    return go


def revoke(deployment):
    shutil.copy(deployment.certs.ca.crl(deployment.alice), deployment.folder / "ca.crl")


def take_the_ca_out(deployment):
    shutil.copy(deployment.certs.other_ca.crt, deployment.folder / "ca.crt")
    shutil.copy(deployment.certs.other_ca.crl(), deployment.folder / "ca.crl")


def take_the_map_away(deployment):
    (deployment.folder / "pg_ident.conf").write_text("people bob bob\n")


def demand_tls_1_3(deployment):
    text = deployment.running.config.read_text()
    assert "TLSv1.2" in text
    deployment.running.config.write_text(text.replace("TLSv1.2", "TLSv1.3"))


CHANGES = {
    "certificate revoked": (revoke, CLOSED),
    "CA taken out": (take_the_ca_out, CLOSED),
    "no map entry": (take_the_map_away, NOT_ALICE),
}


@pytest.mark.parametrize("version", [V12, V13], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_counts_for_a_session_offered_again(deploy, change, version):
    deployment, (alter, expected) = deploy(), CHANGES[change]
    context = wire.tls_context(certificate=deployment.alice, versions=(version, version))
    session, _, outcome = deployment.log_in(context)
    assert outcome is LET_IN
    alter(deployment)
    assert deployment.running.reload()["event"] == "reloaded"
    assert deployment.log_in(context, session)[1:] == (False, expected)


def test_a_session_of_a_version_that_is_spoken_no_more_is_not_taken_up(deploy):
    deployment = deploy()
    context = wire.tls_context(certificate=deployment.alice, versions=(V12, V12))
    session, _, outcome = deployment.log_in(context)
    assert outcome is LET_IN
    demand_tls_1_3(deployment)
    assert deployment.running.reload()["event"] == "reloaded"
    assert deployment.log_in(context, session)[1:] == (False, CLOSED)


@pytest.mark.parametrize("version", [V12, V13], ids=["TLS 1.2", "TLS 1.3"])
def test_a_certificate_that_ran_out_meanwhile_is_seen(deploy, version):
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)
    deployment = deploy(not_after=end)
    context = wire.tls_context(certificate=deployment.alice, versions=(version, version))
    session, _, outcome = deployment.log_in(context)
    assert outcome is LET_IN
    until(lambda: datetime.now(UTC) > end + timedelta(seconds=1))
    assert deployment.log_in(context, session)[1:] == (False, CLOSED)


@pytest.mark.parametrize("version", [V12, V13], ids=["TLS 1.2", "TLS 1.3"])
def test_a_session_of_one_listener_is_nothing_to_another(deploy, version):
    deployment = deploy()
    context = wire.tls_context(certificate=deployment.alice, versions=(version, version))
    session, _, outcome = deployment.log_in(context)
    assert outcome is LET_IN
    assert deployment.log_in(context, session, "strict")[1:] == (False, CLOSED)
