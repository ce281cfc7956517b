"""SSLRequest, GSSENCRequest and direct TLS, in every order, get the answers of a PostgreSQL without GSSAPI.

PostgreSQL 17 of the tests has GSSAPI, 18 has it or not by where it comes from; with it they are asked where
that makes no difference.
"""

import itertools
import ssl
from functools import cache

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.fake_backend import lets_everybody_in
from fixtures.shared_proxy import refusal_of

HBA = "hostssl all all all trust\n"
REQUESTS = {"ssl": wire.SSL_REQUEST, "gssenc": wire.GSSENC_REQUEST}
SEQUENCES = [
    sequence for count in (1, 2, 3, 4) for sequence in itertools.product(REQUESTS, repeat=count)
]  # fmt: skip


@pytest.fixture(scope="module")
def backend(shared_fake_backend):
    return shared_fake_backend(lets_everybody_in)


@pytest.fixture(scope="module")
def unix_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unix")


@pytest.fixture(scope="module")
def running(shared_proxy, certs, backend, unix_folder):
    tls = with_tls(certs, listen=["127.0.0.1:0", f"unix:{unix_folder}:5432"])
    return shared_proxy(
        config({"tls": tls, "clear": in_clear()}, primary=passthrough(backend, certs, require_auth="none")),
        {"pg_hba.conf": HBA},
    )


@pytest.fixture(scope="module")
def servers(tls_cluster):
    """PostgreSQL by (major, whether ssl is on)."""
    return {
        (major, encrypted): tls_cluster(
            major, HBA, settings=None if encrypted else {"ssl": "off", "ssl_ca_file": ""}
        )
        for major in (17, 18)
        for encrypted in (True, False)
    }


def answers(client, sequence):
    """The byte that answers each request in turn, in TLS from `S` on; an error's code and text at its end."""
    said = []
    for name in sequence:
        client.send(REQUESTS[name])
        answer = client.read_exactly(1)
        said.append(answer)
        if answer == b"S":
            client.start_tls()
        if answer == b"E":
            (error,) = wire.messages(answer + client.read_to_end())
            sqlstate, text = error.error
            said[-1] = sqlstate, text.replace("3.0 to 3.0", "3.0 to 3.2")
            break
    return said


@cache
def does_gss(cluster):
    """Whether this PostgreSQL was built with GSSAPI: then it answers `G`, which a proxy without it never does."""
    with wire.WireClient((cluster.host, cluster.port)) as direct:
        return answers(direct, ["gssenc"]) == [b"G"]


def test_a_request_too_many_is_one_line_in_the_log(running):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        answers(client, ("gssenc", "gssenc"))
        decided = refusal_of(running, client)
        assert (decided["kind"], decided["sqlstate"]) == ("client_protocol", "0A000")


def no_version(name):
    code = {"ssl": 5679, "gssenc": 5680}[name]
    return "0A000", f"unsupported frontend protocol 1234.{code}: server supports 3.0 to 3.2"


def expected(sequence, *, encrypted, direct):
    """PostgreSQL's rule in words of our own: each request once, none behind `S`."""
    said, done = [], set()
    for name in sequence:
        if name in done:
            return [*said, no_version(name)]
        done.add(name)
        if name == "ssl" and encrypted and not direct:
            said.append(b"S")
            done = {"ssl", "gssenc"}
        else:
            said.append(b"N")
    return said


@pytest.mark.parametrize("sequence", SEQUENCES, ids=",".join)
@pytest.mark.parametrize("listener", ["tls", "clear"])
def test_each_request_is_answered_once_and_in_any_order(running, servers, listener, sequence):
    wanted = expected(sequence, encrypted=listener == "tls", direct=False)
    with wire.WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source()) as client:
        assert answers(client, sequence) == wanted
    for (major, encrypted), cluster in servers.items():
        if encrypted == (listener == "tls") and ("gssenc" not in sequence or not does_gss(cluster)):
            with wire.WireClient((cluster.host, cluster.port)) as direct:
                assert answers(direct, sequence) == wanted, major


@pytest.mark.parametrize("sequence", SEQUENCES, ids=",".join)
def test_inside_direct_tls_both_are_refused_once(running, servers, sequence):
    wanted = expected(sequence, encrypted=True, direct=True)
    cluster = servers[18, True]
    for address in (("127.0.0.1", running.port("tls")), (cluster.host, cluster.port)):
        with wire.WireClient(address) as client:
            client.start_tls()
            assert answers(client, sequence) == wanted


@pytest.mark.parametrize(
    "sequence", [("ssl",), ("gssenc",), ("ssl", "gssenc"), ("gssenc", "ssl")], ids=",".join
)
def test_at_a_unix_socket_no_encryption_is_offered(running, unix_folder, sequence):
    with wire.WireClient(f"{unix_folder}/.s.PGSQL.5432") as client:
        assert answers(client, sequence) == [b"N"] * len(sequence)
        client.send(wire.startup(user="alice"))
        assert client.read_error().error == (
            "28000",
            'no pg_hba.conf entry for host "[local]", user "alice", database "alice", no encryption',
        )


def logs_in(client):
    client.send(wire.startup(user="alice"))
    return client.read_until(b"Z")[0].code == 0


@pytest.mark.parametrize("before", [(), ("ssl",), ("gssenc",), ("gssenc", "ssl")], ids=",".join)
def test_a_session_may_follow_refused_requests_inside_direct_tls(running, before):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        client.start_tls()
        assert client.tls.selected_alpn_protocol() == "postgresql"
        answers(client, before)
        assert logs_in(client)


def test_tls_may_follow_a_refused_gssenc_request(running):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert answers(client, ["gssenc", "ssl"]) == [b"N", b"S"]
        assert logs_in(client)


@pytest.mark.parametrize("sequence", [("ssl",), ("ssl", "gssenc"), ("gssenc",)], ids=",".join)
def test_a_cancel_request_may_follow_refused_requests(running, sequence):
    with wire.WireClient(("127.0.0.1", running.port("clear")), source=wire.another_source()) as client:
        assert answers(client, sequence) == [b"N"] * len(sequence)
        client.send(wire.cancel_request(1, b"none"))
        assert client.read_to_end() == b""


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["postgresql"], "postgresql"),
        (["h2", "postgresql"], "postgresql"),
        (["postgresql", "h2"], "postgresql"),
    ],
)
@pytest.mark.parametrize("asked", [True, False], ids=["after SSLRequest", "direct"])
def test_postgresql_is_chosen_from_what_alpn_offers(running, asked, offered, selected):
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert not asked or client.ask_for_tls() == b"S"
        client.start_tls(wire.tls_context(alpn=offered))
        assert client.tls.selected_alpn_protocol() == selected
        assert logs_in(client)


@pytest.mark.parametrize(
    "offered", [["h2"], ["http/1.1"], ["PostgreSQL"], ["postgresql2", "p"]], ids=",".join
)
@pytest.mark.parametrize("asked", [True, False], ids=["after SSLRequest", "direct"])
def test_alpn_without_postgresql_ends_the_handshake(running, servers, asked, offered):
    context = wire.tls_context(alpn=offered)
    with wire.WireClient(("127.0.0.1", running.port("tls")), source=wire.another_source()) as client:
        assert not asked or client.ask_for_tls() == b"S"
        with pytest.raises(ssl.SSLError, match="(?i)no application protocol|NO_APPLICATION_PROTOCOL"):
            client.start_tls(context)
        assert client.read_to_end() == b""
        decided = refusal_of(running, client)
        assert (decided["kind"], decided["sqlstate"]) == ("client_tls", None)
        assert "postgresql" in decided["reason"]
    with wire.WireClient((servers[17, True].host, servers[17, True].port)) as direct:
        assert not asked or direct.ask_for_tls() == b"S"
        with pytest.raises(ssl.SSLError, match="(?i)no application protocol|NO_APPLICATION_PROTOCOL"):
            direct.start_tls(context)


def test_without_alpn_tls_after_ssl_request_works(running):
    with wire.connected(
        ("127.0.0.1", running.port("tls")), wire.tls_context(alpn=()), source=wire.another_source()
    ) as client:
        assert client.tls.selected_alpn_protocol() is None
        assert logs_in(client)


def test_without_alpn_direct_tls_is_closed_without_a_word(running, servers, backend):
    backend.forget()
    for address in (("127.0.0.1", running.port("tls")), (servers[17, True].host, servers[17, True].port)):
        with wire.WireClient(address) as client:
            client.start_tls(wire.tls_context(alpn=()))
            client.send(wire.startup(user="alice"))
            assert client.read_to_end() == b""
            if address[1] == running.port("tls"):
                assert "without ALPN" in refusal_of(running, client)["reason"]
    assert backend.conversations == []


@pytest.mark.parametrize("listener", ["clear", "unix"])
def test_direct_tls_where_none_is_offered_is_closed_without_a_word(running, unix_folder, listener):
    address = f"{unix_folder}/.s.PGSQL.5432" if listener == "unix" else ("127.0.0.1", running.port(listener))
    since = running.mark()
    with wire.WireClient(address) as client:
        client.hello()
        client.send_raw(client.pending())
        assert client.sock.recv(1) == b""
    decided = running.wait_for_event("session_decided", since=since, **client.where)
    assert (decided["verdict"], decided["kind"]) == ("refused", "client_protocol")
