"""With host_probe, a client that proves itself to the server is led to the host that target_session_attrs wants, or nowhere."""

import socket
import time

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear
from fixtures.postgres import TLS_HBA, password
from fixtures.wire import PATIENCE, WireClient

ROLE, SECRET = "pgtlsproxy_probe", "probe-secret"
PROBE = {"user": ROLE, "passfile": "probe.pass"}
PASSFILE = f"localhost:*:postgres:{ROLE}:{SECRET}\n"
HBA = {"pg_hba.conf": "host all all all scram-sha-256\n"}
FILES = HBA | {"probe.pass": PASSFILE}
CREATE = f"SET default_transaction_read_only = off; CREATE ROLE {ROLE} LOGIN PASSWORD '{SECRET}';"
READ_ONLY = "default_transaction_read_only"
CERTIFIED = "pgtlsproxy_certified_probe"
BY_CERTIFICATE = f"hostssl all {CERTIFIED} all cert map=probe\n{TLS_HBA}"
PRIMARY = {"in_hot_standby": "off", "default_transaction_read_only": "off"}
STANDBY = {"in_hot_standby": "on", "default_transaction_read_only": "off"}
REFUSED = ("57P03", "the database system is not available")


def led(certs, ports, wanted="read-write", **more):
    """A backend of these hosts."""
    return {
        "host": ["localhost"] * len(ports),
        "hostaddr": ["127.0.0.1"] * len(ports),
        "port": list(ports),
        "sslrootcert": certs.ca.crt,
        "login": "passthrough",
        "target_session_attrs": wanted,
        "host_probe": PROBE,
        **more,
    }


def log_in(psql, running, listener="l", user="alice"):
    """The port of the server that it lands on, or what it is refused with."""
    done = psql(17).run(
        "SHOW port", host="127.0.0.1", port=running.port(listener), user=user, dbname="alice",
        password=password(user), sslmode="disable",
    )  # fmt: skip
    return int(done.stdout) if done.returncode == 0 else done.stderr


def refusal(running, since, listener="l"):
    return running.wait_for_event("session_decided", since=since, listener=listener, verdict="refused")


# --- Two servers, of which one is read-only ----------------------------------------------------------------

CHOICES = {
    "writable first": (("writable", "read_only"), "read-write", "writable"),
    "writable second": (("read_only", "writable"), "read-write", "writable"),
    "read-only": (("writable", "read_only"), "read-only", "read_only"),
    "primary": (("read_only", "writable"), "primary", "read_only"),
    "no standby preferred": (("writable", "read_only"), "prefer-standby", "writable"),
    "no standby": (("writable", "read_only"), "standby", None),
    "by certificate": (("read_only", "writable"), "read-write", "writable"),
}


@pytest.fixture(scope="module")
def servers(tls_cluster):
    found = {
        name: tls_cluster(
            17, BY_CERTIFICATE, ident=f"probe pgtlsproxy {CERTIFIED}\n", settings={READ_ONLY: read_only}
        )
        for name, read_only in (("writable", "off"), ("read_only", "on"))
    }
    for cluster in found.values():
        cluster.psql(f"{CREATE} CREATE ROLE {CERTIFIED} LOGIN;")
    yield found
    for cluster in found.values():
        cluster.psql(f"SET {READ_ONLY} = off; DROP ROLE {ROLE}, {CERTIFIED};")


@pytest.fixture(scope="module")
def running(servers, shared_proxy, certs):
    backends = {
        name.replace(" ", "_"): led(certs, [servers[host].port for host in hosts], wanted)
        for name, (hosts, wanted, _) in CHOICES.items()
    }
    shown = certs.client("pgtlsproxy")
    backends["by_certificate"] |= {
        "sslcert": shown.crt,
        "sslkey": shown.key,
        "host_probe": {"user": CERTIFIED},
    }
    return shared_proxy(config({name: in_clear(backend=name) for name in backends}, **backends), FILES)


@pytest.mark.parametrize("name", CHOICES)
def test_psql_lands_on_the_host_that_is_wanted_whichever_is_first(running, servers, psql, name):
    hosts, _, chosen = CHOICES[name]
    since = running.mark()
    found = log_in(psql, running, name.replace(" ", "_"))
    if chosen is not None:
        assert found == servers[chosen].port
        return
    assert REFUSED[1] in found
    decided = refusal(running, since, name.replace(" ", "_"))
    assert (decided["sqlstate"], decided["kind"]) == ("57P03", "backend_unreachable")
    for host in hosts:
        where = f"localhost (127.0.0.1:{servers[host].port}): host_probe: server is not in hot standby mode"
        assert where in decided["reason"]


def test_hosts_that_exchange_their_roles_are_followed_and_nobody_lands_on_the_wrong_one(
    own_cluster, proxy, certs, psql
):
    """One listener finds it out by asking again, the other by the login of somebody who had to be refused."""
    old, new = own_cluster(17), own_cluster(17, settings={READ_ONLY: "on"})
    for cluster in (old, new):
        cluster.psql(CREATE)
    ports = [old.port, new.port]
    running = proxy(
        config(
            {"l": in_clear(), "lasting": in_clear(backend="lasting")},
            primary=led(certs, ports),
            lasting=led(certs, ports, host_probe=PROBE | {"interval": "1h"}),
        ),
        FILES,
    )
    assert {log_in(psql, running, listener) for listener in ("l", "lasting")} == {old.port}
    old.set(**{READ_ONLY: "on"})
    new.set(**{READ_ONLY: "off"})
    for cluster in (old, new):
        cluster.reload()
    since = running.mark()
    assert REFUSED[1] in log_in(psql, running, "lasting")
    decided = refusal(running, since, "lasting")
    assert decided["sqlstate"] == "57P03"
    assert "session is read-only; it has changed since host_probe asked it" in decided["reason"]
    assert log_in(psql, running, "lasting") == new.port
    deadline = time.monotonic() + PATIENCE
    while (found := log_in(psql, running)) != new.port:
        assert REFUSED[1] in str(found)
        assert time.monotonic() < deadline


# --- Servers that do what a test says ----------------------------------------------------------------------


class Host:
    """A fake server: what it reports, and the passwords of its roles."""

    def __init__(self, fake_backend, certs, parameters):
        self.parameters = parameters
        self.secrets = {ROLE: SECRET, "alice": password("alice")}
        self.fake = fake_backend(self._serve, certs.server)
        self.port = self.fake.port

    def _serve(self, conversation):
        user = conversation.accept()["user"]
        if conversation.do_scram(self.secrets[user]):
            conversation.let_in(parameters=self.parameters)
            conversation.answer_queries()

    def logins(self, user):
        return sum((each.startup or {}).get("user") == user for each in self.fake.conversations)


@pytest.fixture
def hosts(fake_backend, certs):
    """A host for each set of parameters."""
    return lambda *reported: [Host(fake_backend, certs, parameters) for parameters in reported]


@pytest.fixture
def leading(proxy, certs):
    def start(ports, files=None, **more):
        return proxy(config({"l": in_clear()}, primary=led(certs, ports, **more)), FILES | (files or {}))

    return start


def let_in(running):
    """What the server reports to a client that it lets in."""
    with WireClient(("127.0.0.1", running.port("l"))) as client:
        client.send(wire.startup(user="alice"))
        return [each.body for each in wire.log_in(client, password("alice")) if each.kind == b"S"]


def refused(running):
    """Why a client is refused before anything is asked of it."""
    with WireClient(("127.0.0.1", running.port("l"))) as client:
        client.send(wire.startup(user="alice"))
        assert client.read_error().error == REFUSED
        return running.wait_for_event("session_decided", verdict="refused", **client.where)["reason"]


WRITABLE = b"in_hot_standby\0off\0"


def test_a_host_that_has_changed_lets_nobody_in_and_no_other_host_hears_of_the_client(hosts, leading):
    first, second = hosts(PRIMARY, STANDBY)
    running = leading([first.port, second.port], host_probe=PROBE | {"interval": "1h"})
    assert WRITABLE in let_in(running)
    first.parameters, second.parameters = STANDBY, PRIMARY
    with WireClient(("127.0.0.1", running.port("l"))) as client:
        client.send(wire.startup(user="alice"))
        answer, _ = wire.try_to_prove(client, password("alice"))
        assert answer.error == REFUSED, "the client has heard that it is let in"
        assert client.read_to_end() == b""
        decided = running.wait_for_event("session_decided", verdict="refused", **client.where)
    assert "session is read-only; it has changed since host_probe asked it" in decided["reason"]
    assert second.logins("alice") == 0
    assert WRITABLE in let_in(running)
    assert (first.logins("alice"), second.logins("alice")) == (2, 1)


def test_a_host_that_hangs_is_passed_over_and_asked_once_an_interval(hosts, leading):
    (second,) = hosts(PRIMARY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        running = leading(
            [port, second.port],
            connect_timeout="1h",
            host_probe=PROBE | {"interval": "1h", "timeout": "0.3s"},
        )
        for _ in range(3):
            assert WRITABLE in let_in(running)
        silent.settimeout(PATIENCE)
        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert second.logins(ROLE) == 1


def test_a_host_that_is_down_is_passed_over(hosts, leading):
    (second,) = hosts(PRIMARY)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert WRITABLE in let_in(leading([port, second.port]))


@pytest.mark.parametrize("missing", PRIMARY)
def test_a_server_that_does_not_say_what_it_is_is_passed_over(hosts, leading, missing):
    silent, telling = hosts({name: value for name, value in PRIMARY.items() if name != missing}, PRIMARY)
    assert WRITABLE in let_in(leading([silent.port, telling.port]))
    assert f"host_probe: the server does not report {missing}" in refused(leading([silent.port]))
    assert silent.logins("alice") == 0


def test_a_probe_with_the_wrong_password_refuses_and_the_log_says_so(hosts, leading):
    (host,) = hosts(PRIMARY)
    reason = refused(leading([host.port], {"probe.pass": f"*:*:*:{ROLE}:wrong\n"}))
    where = f"localhost (127.0.0.1:{host.port})"
    assert f'{where}: host_probe: the backend refuses user "{ROLE}": 28P01: password' in reason
    assert "wrong" not in reason
    assert host.logins("alice") == 0


def test_a_probe_without_a_password_for_the_host_refuses_and_the_log_says_which_line_is_missing(
    hosts, leading
):
    (host,) = hosts(PRIMARY)
    running = leading([host.port], {"probe.pass": f"other:*:*:{ROLE}:{SECRET}\n"})
    reason = refused(running)
    path = running.config.parent / "probe.pass"
    assert f"host_probe: no line of {path} is for localhost:{host.port}:postgres:{ROLE}" in reason


def test_a_new_password_of_the_probe_holds_from_the_reload_on(hosts, leading):
    (host,) = hosts(PRIMARY)
    running = leading([host.port], host_probe=PROBE | {"interval": "1h"})
    assert WRITABLE in let_in(running)
    host.secrets[ROLE] = "new-secret"
    (running.config.parent / "probe.pass").write_text(f"*:*:*:{ROLE}:new-secret\n")
    assert running.reload()["event"] == "reloaded"
    assert WRITABLE in let_in(running)
    assert host.logins(ROLE) == 2


def test_a_password_of_the_probe_that_does_not_load_leaves_the_old_one_in_service(hosts, leading):
    (host,) = hosts(PRIMARY)
    running = leading([host.port])
    (running.config.parent / "probe.pass").chmod(0o644)
    failed = running.reload()
    assert (failed["event"], failed["kept"]) == ("reload_failed", ["passwords for backend primary"])
    assert WRITABLE in let_in(running)
    assert host.logins(ROLE) == 1
