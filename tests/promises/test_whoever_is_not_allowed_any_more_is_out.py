"""A reload reaches logins that are under way, and with `revoked_sessions: close` sessions that are there."""

import shutil
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.waiting import until
from fixtures.wire import WireClient, tls_context

HBA = "hostssl all all all cert map=people\n"
IDENT = "people alice alice\npeople bob bob\n"


class Deployment:
    """A proxy whose every file can be changed, before a backend that lets everybody in."""

    def __init__(self, running, certs, backend):
        self.running = running
        self.certs = certs
        self.backend = backend
        self.people = {name: certs.ca.issue(common_names(name), usage="client") for name in ("alice", "bob")}

    def write(self, name, content):
        (self.running.config.parent / name).write_bytes(content)

    def revoke(self, *names):
        shutil.copy(
            self.certs.ca.crl(*(self.people[name] for name in names)), self.running.config.parent / "ca.crl"
        )

    def connect(self, stack, name):
        """Somebody whose StartupMessage is with the backend; what comes next is the backend's to decide."""
        client = stack.enter_context(WireClient(("127.0.0.1", self.running.port("tls"))))
        assert client.ask_for_tls() == b"S"
        client.start_tls(tls_context(certificate=self.people[name]))
        client.send(wire.startup(user=name))
        return client

    def log_in(self, stack, name):
        client = self.connect(stack, name)
        client.read_until(b"Z")
        return client


@pytest.fixture
def deploy(proxy, certs, fake_backend):
    def go(**listener):
        backend = fake_backend(lets_everybody_in, certs.server)
        settings = with_tls(
            certs, ssl_ca_file="ca.crt", ssl_crl_file="ca.crl", ident_file="pg_ident.conf", **listener
        )
        running = proxy(
            config({"tls": settings}, primary=passthrough(backend, certs)),
            {
                "pg_hba.conf": HBA,
                "pg_ident.conf": IDENT,
                "ca.crt": certs.ca.crt.read_bytes(),
                "ca.crl": certs.ca.crl().read_bytes(),
            },
        )
        running.wait_for_event("ready")
        return Deployment(running, certs, backend)

    return go


@pytest.fixture
def stalled(deploy):
    """A login of alice's that the backend has not answered yet, and what lets it do so."""

    def go(stack, **listener):
        deployment = deploy(**listener)
        reached, go_on = threading.Event(), threading.Event()

        def script(conversation):
            conversation.accept()
            reached.set()
            assert go_on.wait(wire.PATIENCE)
            conversation.let_in()
            conversation.answer_queries()

        deployment.backend.script = script
        stack.callback(go_on.set)
        client = deployment.connect(stack, "alice")
        assert reached.wait(wire.PATIENCE)
        return deployment, client, go_on

    return go


def take_the_ca_out(deployment):
    deployment.write("ca.crt", deployment.certs.other_ca.crt.read_bytes())
    shutil.copy(deployment.certs.other_ca.crl(), deployment.running.config.parent / "ca.crl")


def reserve_alice(deployment):
    """The backend lets everybody in, and the line and its map would have to name her: the line says all."""
    settings = yaml.safe_load(deployment.running.config.read_text())
    settings["backends"]["primary"]["reserved_users"] = ["postgres", "alice"]
    deployment.running.config.write_text(yaml.safe_dump(settings))


NOT_ALLOWED_ANY_MORE = {
    "certificate revoked": (
        lambda deployment: deployment.revoke("alice"),
        "connection requires a valid client certificate",
        "client_certificate",
    ),
    "CA taken out": (take_the_ca_out, "connection requires a valid client certificate", "client_certificate"),
    "line rejects": (
        lambda deployment: deployment.write("pg_hba.conf", b"hostssl all all all reject\n"),
        "pg_hba.conf rejects connection for host",
        "denied",
    ),
    "no line": (
        lambda deployment: deployment.write("pg_hba.conf", b"hostssl other all all cert\n"),
        "no pg_hba.conf entry for host",
        "denied",
    ),
    "reserved, and let in unasked": (
        reserve_alice,
        "pg_hba.conf rejects connection for host",
        "denied",
    ),
    "no map entry": (
        lambda deployment: deployment.write("pg_ident.conf", b"people bob bob\n"),
        'certificate authentication failed for user "alice"',
        "denied",
    ),
}
"""What is changed, what a client is told whose login is under way, and what kind of refusal it is."""


@pytest.mark.parametrize("change", NOT_ALLOWED_ANY_MORE)
def test_a_login_that_ends_under_a_newer_configuration_is_judged_by_it(stalled, change):
    alter, reply, kind = NOT_ALLOWED_ANY_MORE[change]
    with ExitStack() as stack:
        deployment, client, go_on = stalled(stack)
        alter(deployment)
        assert deployment.running.reload()["event"] == "reloaded"
        go_on.set()
        sqlstate, text = client.read_error().error
        assert sqlstate == "28000"
        assert text.startswith(reply)
        decided = deployment.running.wait_for_event("session_decided", **client.where)
        assert (decided["verdict"], decided["kind"], decided["generation"]) == ("refused", kind, 1)


def test_a_login_that_the_newer_configuration_lets_in_goes_on(stalled):
    with ExitStack() as stack:
        deployment, client, go_on = stalled(stack)
        deployment.revoke("bob")
        assert deployment.running.reload()["event"] == "reloaded"
        go_on.set()
        client.read_until(b"Z")


def test_a_list_counts_although_the_policy_beside_it_is_broken(stalled):
    with ExitStack() as stack:
        deployment, client, go_on = stalled(stack)
        deployment.revoke("alice")
        deployment.write("pg_hba.conf", b"hostssl all all all trsut\n")
        assert deployment.running.reload()["event"] == "reload_failed"
        go_on.set()
        assert client.read_error().error[0] == "28000"


@pytest.mark.parametrize("change", NOT_ALLOWED_ANY_MORE)
def test_with_close_a_session_that_is_there_is_told_and_ended(deploy, change):
    alter, _, kind = NOT_ALLOWED_ANY_MORE[change]
    with ExitStack() as stack:
        deployment = deploy(revoked_sessions="close")
        client = deployment.log_in(stack, "alice")
        alter(deployment)
        assert deployment.running.reload()["event"] == "reloaded"
        assert client.read_error().error == (
            "57P01",
            "terminating connection due to administrator command",
        )
        ended = deployment.running.wait_for_event("session_ended", **client.where)
        assert ended["kind"] == kind
        assert ended["reason"].startswith("not allowed any more since generation 2: ")
        assert ended["cert_serial"] == f"{deployment.people['alice'].certificate.serial_number:x}"


def test_with_close_those_who_are_still_allowed_go_on(deploy):
    with ExitStack() as stack:
        deployment = deploy(revoked_sessions="close")
        alice, bob = (deployment.log_in(stack, name) for name in ("alice", "bob"))
        deployment.revoke("alice")
        deployment.running.reload()
        assert alice.read_error().error[0] == "57P01"
        bob.send(wire.query("SELECT 1"))
        bob.read_until(b"Z")


def test_with_close_a_session_stays_while_it_cannot_be_known(deploy):
    """The backend does not answer what it is asked about roles: nothing says that alice is not allowed."""
    with ExitStack() as stack:
        deployment = deploy(revoked_sessions="close", roles_query={"user": "app"})
        alice = deployment.log_in(stack, "alice")
        deployment.backend.script = hang_up
        deployment.write("pg_hba.conf", HBA.replace("all all all", "all +staff all").encode())
        assert deployment.running.reload()["event"] == "reloaded"
        warned = deployment.running.wait_for_event("sessions_not_judged")
        assert (warned["sessions"], warned["level"]) == (1, "warning")
        assert "roles_query" in warned["reason"]
        alice.send(wire.query("SELECT 1"))
        alice.read_until(b"Z")
        with pytest.raises((OSError, EOFError, AssertionError)):
            deployment.log_in(stack, "alice")


def hang_up(conversation):
    conversation.hang_up()


def test_with_keep_sessions_that_are_there_stay_and_no_new_ones_come(deploy):
    with ExitStack() as stack:
        deployment = deploy()
        alice = deployment.log_in(stack, "alice")
        deployment.revoke("alice")
        deployment.running.reload()
        with pytest.raises((OSError, EOFError, AssertionError)):
            deployment.log_in(stack, "alice")
        alice.send(wire.query("SELECT 1"))
        alice.read_until(b"Z")
        assert deployment.running.log_events("session_ended") == []


def test_a_session_whose_answer_does_not_end_is_cut(deploy):
    """Without close_notify, so that nobody takes what has come for all there was."""
    with ExitStack() as stack:
        deployment = deploy(revoked_sessions="close")

        def script(conversation):
            conversation.accept()
            conversation.let_in()
            conversation.read_message()
            conversation.send(wire.message(b"T", b"\0\0"))  # and no more

        deployment.backend.script = script
        client = deployment.log_in(stack, "alice")
        client.send(wire.query("SELECT 1"))
        client.read_until(b"T")
        deployment.revoke("alice")
        deployment.running.reload()
        with pytest.raises((OSError, EOFError)):
            client.read_exactly(1)
        ended = deployment.running.wait_for_event("session_ended", **client.where)
        assert ended["kind"] == "client_certificate"
        assert ended["reason"].endswith("certificate revoked; its answer did not end")


def test_a_certificate_that_only_ran_out_ends_no_session(deploy):
    """Whoever renews certificates every hour has sessions that are older than theirs."""
    with ExitStack() as stack:
        deployment = deploy(revoked_sessions="close")
        end = datetime.now(UTC) + timedelta(seconds=3)
        deployment.people["alice"] = deployment.certs.ca.issue(
            common_names("alice"), usage="client", not_after=end
        )
        client = deployment.log_in(stack, "alice")
        until(lambda: datetime.now(UTC) > end + timedelta(seconds=1))
        assert deployment.running.reload()["event"] == "reloaded"
        client.send(wire.query("SELECT 1"))
        client.read_until(b"Z")
        deployment.revoke("alice")
        deployment.running.reload()
        assert client.read_error().error[0] == "57P01"
