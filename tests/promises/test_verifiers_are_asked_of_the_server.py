"""`auth_query`: the server itself says what a user's verifier is, and nobody can tell from outside of whom it says so."""

import socket
import threading
import time

import pytest

from fixtures import wire
from fixtures.auth_query import AUTH_QUERY, FILES, LOOKUP_ROLE, SQL, install, questions
from fixtures.deployments import config, in_clear, passthrough, with_certificate, with_tls
from fixtures.postgres import TLS_HBA, password
from fixtures.scram_servers import end_point
from fixtures.shared_proxy import refusal_of
from fixtures.wire import PATIENCE, WireClient

HBA = "host all all all trust\n"
SCRAM_HBA = "host all all all scram-sha-256\n"
LOGGED = {"log_statement": "all"}

BOTH_HBA = f"hostssl all alice,bob,app,renewed all cert map=pgtlsproxy\n{TLS_HBA}"
BOTH_IDENT = "".join(f"pgtlsproxy pgtlsproxy {role}\n" for role in ("alice", "bob", "app", "renewed"))
"""Users by the proxy's certificate, and the role that asks by its password."""

HOSTILE = (
    "it's",
    'quo"ted',
    "back\\slash",
    "$1; --",
    "'; DROP TABLE x; --",
    "x" * 63,
    "Grüße",
    "a b",
    "%s {}",
)


def quoted(name):
    return '"{}"'.format(name.replace('"', '""'))


SETUP = (
    "CREATE ROLE nologin PASSWORD 'nologin-secret'; "
    "CREATE ROLE expired LOGIN PASSWORD 'expired-secret' VALID UNTIL '2001-01-01'; "
    "CREATE ROLE lasting LOGIN PASSWORD 'lasting-secret' VALID UNTIL 'infinity'; "
    "CREATE ROLE nothing LOGIN; "
    "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'standby-secret'; "
    "CREATE ROLE md5_only LOGIN PASSWORD 'md5d6fd467a8f48b6603f515e403372de6f'; "
) + "".join(f"CREATE ROLE {quoted(name)} LOGIN PASSWORD 'hostile'; " for name in HOSTILE)


@pytest.fixture(scope="module", params=[15, 17])
def cluster(request, tls_cluster):
    found = tls_cluster(request.param, settings=LOGGED)
    install(found)
    found.psql(SETUP)
    yield found
    found.psql(
        f"DROP ROLE nologin, expired, lasting, nothing, standby, md5_only, {', '.join(map(quoted, HOSTILE))}"
    )


@pytest.fixture(scope="module")
def running(cluster, shared_proxy, certs):
    other = certs.ca.server("localhost")
    return shared_proxy(
        config(
            {"l": with_tls(certs, other, auth_query=AUTH_QUERY), "clear": in_clear(auth_query=AUTH_QUERY)},
            primary=passthrough(cluster, certs),
        ),
        {"pg_hba.conf": HBA} | FILES,
    )


def connect(psql, certs, port, user="alice", secret=None, **words):
    encryption = {"sslmode": "verify-full", "sslrootcert": certs.ca.crt}
    return psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname="alice",
        password=secret or password(user), **(encryption | words),
    )  # fmt: skip


def log_in(port, certs, user, secret, *, binding="require", **words):
    """A login by psycopg: the user that it is then, or the server's words."""
    import psycopg

    try:
        with psycopg.connect(
            host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname="alice", password=secret,
            sslmode="verify-full", sslrootcert=str(certs.ca.crt), channel_binding=binding, **words,
        ) as connection:  # fmt: skip
            return connection.execute("SELECT current_user").fetchone()[0]
    except psycopg.OperationalError as error:
        return str(error).partition("FATAL:  ")[2].partition("\n")[0] or str(error)


def failed(user):
    return f'password authentication failed for user "{user}"'


# --- Who is let in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
@pytest.mark.parametrize("user", ["alice", "lasting"])
def test_psql_logs_in_with_every_channel_binding(running, certs, each_psql, user, binding):
    done = connect(each_psql, certs, running.port("l"), user, channel_binding=binding)
    assert (done.stdout, done.stderr) == (f"{user}\n", "")


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
def test_psycopg_logs_in_with_every_channel_binding(running, certs, binding):
    assert log_in(running.port("l"), certs, "bob", password("bob"), binding=binding) == "bob"


@pytest.mark.parametrize("user", HOSTILE)
def test_a_name_is_a_value_and_never_a_part_of_the_query(running, certs, user):
    assert log_in(running.port("l"), certs, user, "hostile") == user
    assert log_in(running.port("l"), certs, user, "wrong").startswith("password authentication failed")


REFUSED = {
    "nobody": ("x", "knows no role of that name that may log in"),
    "nologin": ("nologin-secret", "knows no role of that name that may log in"),
    "postgres": (password("postgres"), "superusers and replication roles are left out"),
    "standby": ("standby-secret", "superusers and replication roles are left out"),
    "expired": ("expired-secret", "says that the password has expired"),
    "nothing": ("x", "has no SCRAM verifier for the role"),
    "md5_only": ("md5_only-secret", "has no SCRAM verifier for the role"),
    "alice": ("wrong", "does not fit the client's proof"),
    'O\'Neil \\ "x"': ("x", "knows no role of that name"),
}


@pytest.mark.parametrize("user", REFUSED)
def test_whoever_has_no_verifier_is_refused_by_the_server_and_the_log_says_why(running, certs, user):
    secret, why = REFUSED[user]
    since = running.mark()
    assert log_in(running.port("l"), certs, user, secret, application_name=f"refused {user}") == failed(user)
    decided = running.wait_for_event(
        "session_decided", since=since, application_name=f"refused {user}", kind="backend_refused"
    )
    assert decided["sqlstate"] == "28P01"
    assert "auth_query at backend primary" in decided["reason"]
    assert why in decided["reason"]


def exchange(running, certs, listener, user, flag):
    """A wrong proof by hand: what came, as (type, length, SQLSTATE), and the server-first-message."""
    client = WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source())
    with client:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(wire.startup(user=user, database="alice"))
        opening = client.read_message()
        header = b"p=tls-server-end-point,," if flag == "p" else b"n,,"
        bound = end_point(certs.ca.server("localhost")) if flag == "p" else b""
        challenge = wire.begin_scram(client, flag=header, opening=opening, end_point=bound)
        client.send(wire.message(b"p", challenge.final()))
        refused = client.read_message()
        assert refused.fields["M"] == f'password authentication failed for user "{user}"'
        assert client.read_to_end() == b""
    sizes = opening.kind, len(opening.body), len(challenge.server_first)
    return [*sizes, refused.kind, refused.fields["C"], challenge.asked["i"]], challenge.asked["s"]


@pytest.mark.parametrize("flag", ["p", "n"])
def test_a_wrong_proof_takes_the_same_road_for_everybody(running, certs, flag):
    users = ("alice", "nobody", "nologin", "md5_only", "expired", "nothing", "postgres")
    found = {user: exchange(running, certs, "l", user, flag) for user in users}
    assert len({str(road) for road, _ in found.values()}) == 1


def test_whoever_fails_costs_one_question_listed_or_not(running, certs, cluster):
    """By the time that a refusal takes nobody can tell whom the proxy knew."""
    for _ in range(2):  # asked for, and remembered from before
        for user in ("alice", "nobody", "expired"):
            before = questions(cluster)
            assert log_in(running.port("l"), certs, user, "wrong") == failed(user)
            assert questions(cluster) - before == 1, user


def test_a_name_that_is_no_text_to_the_server_is_nobodys(running, certs):
    client = WireClient(("127.0.0.1", running.port("clear")), source=wire.another_source())
    with client:
        client.send(wire.startup(("user", b"\xff\xfe"), database="alice"))
        client.send(wire.message(b"p", wire.begin_scram(client, flag=b"y,,").final()))
        assert client.read_message().fields["C"] == "28P01"
    decided = running.wait_for_event("session_decided", **client.where)
    assert "can have no role of that name" in decided["reason"]
    assert log_in(running.port("l"), certs, "alice", password("alice")) == "alice"


def test_the_function_tells_nobody_but_its_role(cluster):
    for statement in ("SELECT * FROM pgtlsproxy.auth_query('bob')", "SELECT * FROM pg_authid"):
        done = cluster.psql(f"SET ROLE alice; {statement}", check=False)
        assert "permission denied" in done.stderr
    done = cluster.psql(f"SET ROLE {LOOKUP_ROLE}; SELECT * FROM pg_authid", check=False)
    assert "permission denied" in done.stderr


def test_the_function_may_be_another_roles(own_cluster):
    cluster = own_cluster(15)
    name = 'an odd "role\'s"'
    cluster.psql("\\set role '{}'\n{}".format(name.replace("'", "''"), SQL.read_text("utf-8")))
    asked = cluster.psql(
        f"SET ROLE {quoted(name)}; SELECT rolname, rolvaliduntil FROM pgtlsproxy.auth_query('bob')"
    )
    assert asked.stdout == "bob|\n"


@pytest.mark.parametrize("made", [
    "CREATE SCHEMA pgtlsproxy AUTHORIZATION alice",
    "CREATE SCHEMA pgtlsproxy; CREATE FUNCTION pgtlsproxy.auth_query(text) RETURNS text LANGUAGE sql AS 'SELECT $1';"
    "ALTER FUNCTION pgtlsproxy.auth_query(text) OWNER TO alice",
])  # fmt: skip
def test_a_function_is_not_made_where_somebody_else_could_exchange_it(own_cluster, made):
    cluster = own_cluster(17)
    cluster.psql(made)
    done = cluster.psql(SQL.read_text("utf-8"), check=False)
    assert "belongs to a role that is no superuser" in done.stderr
    assert cluster.psql(f"SELECT FROM pg_roles WHERE rolname = '{LOOKUP_ROLE}'").stdout == ""


@pytest.mark.parametrize("made", [
    "CREATE ROLE mallory CREATEROLE; SET ROLE mallory; CREATE ROLE {role} LOGIN PASSWORD 'known'",
    "CREATE ROLE {role} LOGIN; GRANT {role} TO alice",
])  # fmt: skip
def test_a_role_in_whose_name_somebody_else_may_ask_is_not_given_the_function(own_cluster, made):
    cluster = own_cluster(17)
    cluster.psql(made.format(role=LOOKUP_ROLE))
    done = cluster.psql(SQL.read_text("utf-8"), check=False)
    assert "the role that asks has members that are no superusers" in done.stderr
    assert cluster.psql("SELECT FROM pg_namespace WHERE nspname = 'pgtlsproxy'").stdout == ""


# --- What is remembered ----------------------------------------------------------------------------------


@pytest.fixture
def server(own_cluster):
    cluster = own_cluster(17, BOTH_HBA, ident=BOTH_IDENT, settings=LOGGED)
    install(cluster)
    cluster.psql("CREATE ROLE renewed LOGIN PASSWORD 'first'")
    return cluster


def bridging(proxy, server, certs, **query):
    """Sessions are asked by the server, which lets in by password alone."""
    server.write("pg_hba.conf", f"local all all trust\n{TLS_HBA}")
    server.reload()
    listener = with_tls(certs, certs.ca.server("localhost"), auth_query=AUTH_QUERY | query)
    return proxy(config({"l": listener}, primary=passthrough(server, certs)), {"pg_hba.conf": HBA} | FILES)


def asking(proxy, server, certs, hba=SCRAM_HBA, **query):
    """Sessions are asked by the proxy, and the server believes its certificate."""
    listener = with_tls(certs, auth_query=AUTH_QUERY | query, scram_mock_secret_file="mock")
    backend = with_certificate(server, certs)
    lookup = passthrough(server, certs)
    listener["auth_query"] = listener["auth_query"] | {"backend": "lookup"}
    return proxy(config({"l": listener}, primary=backend, lookup=lookup), {"pg_hba.conf": hba} | FILES)


def test_a_new_password_is_good_at_once_and_the_old_one_is_not(proxy, server, certs):
    """The bridge looks once past what it remembers."""
    running = bridging(proxy, server, certs, lifetime="1h")
    port = running.port("l")
    assert log_in(port, certs, "renewed", "first") == "renewed"
    server.psql("ALTER ROLE renewed PASSWORD 'second'")
    assert log_in(port, certs, "renewed", "second") == "renewed"
    assert log_in(port, certs, "renewed", "first") == failed("renewed")
    server.psql("ALTER ROLE renewed VALID UNTIL '2001-01-01'")
    assert log_in(port, certs, "renewed", "second") == failed("renewed")
    server.psql("DROP ROLE renewed")
    assert log_in(port, certs, "renewed", "second") == failed("renewed")


IF_UNTOUCHED = (
    "SELECT rolname, CASE WHEN pg_catalog.current_setting('search_path') = 'pg_catalog' "
    "AND pg_catalog.current_setting('client_encoding') = 'SQL_ASCII' "
    f"AND current_user = '{LOOKUP_ROLE}' THEN rolpassword END, rolvaliduntil FROM pgtlsproxy.auth_query($1)"
)


def test_nothing_that_a_client_says_reaches_the_session_that_asks(proxy, server, certs):
    """Nor what an administrator has set for the role."""
    server.psql(f"ALTER ROLE {LOOKUP_ROLE} SET search_path = evil")
    running = bridging(proxy, server, certs, lifetime=0, query=IF_UNTOUCHED)
    for options in ("-c search_path=evil", "-c client_encoding=latin1", "-c role=alice"):
        words = {"options": options, "client_encoding": "latin1", "application_name": "evil"}
        assert log_in(running.port("l"), certs, "bob", "wrong", **words) == failed("bob")
        assert log_in(running.port("l"), certs, "alice", password("alice"), **words) == "alice"
        assert log_in(running.port("l"), certs, "bob", password("bob")) == "bob"


def test_a_verifier_is_asked_for_once_in_its_lifetime(proxy, server, certs):
    running = bridging(proxy, server, certs, lifetime="1h")
    for _ in range(5):
        assert log_in(running.port("l"), certs, "alice", password("alice")) == "alice"
    assert questions(server) == 1


@pytest.mark.parametrize("method", ["scram-sha-256", "password"])
def test_the_proxy_asks_for_passwords_by_what_the_server_says(proxy, server, certs, method):
    running = asking(proxy, server, certs, f"host all all all {method}\n", lifetime="1h")
    port, binding = running.port("l"), "prefer" if method == "password" else "require"
    assert log_in(port, certs, "renewed", "first", binding=binding) == "renewed"
    assert log_in(port, certs, "renewed", "wrong", binding=binding) == failed("renewed")
    assert log_in(port, certs, "nobody", "x", binding=binding) == failed("nobody")
    server.psql("ALTER ROLE renewed PASSWORD 'second'")
    assert log_in(port, certs, "renewed", "second", binding=binding) == "renewed"
    assert log_in(port, certs, "renewed", "first", binding=binding) == failed("renewed")


def test_an_old_password_is_refused_after_a_reload(proxy, server, certs):
    running = asking(proxy, server, certs, lifetime="1h")
    port = running.port("l")
    assert log_in(port, certs, "renewed", "first") == "renewed"
    server.psql("ALTER ROLE renewed PASSWORD 'second'")
    running.reload()
    assert log_in(port, certs, "renewed", "first") == failed("renewed")
    assert log_in(port, certs, "renewed", "second") == "renewed"


@pytest.mark.parametrize(
    "change", ["ALTER ROLE renewed PASSWORD 'second'", "ALTER ROLE renewed VALID UNTIL '2001-01-01'"]
)
@pytest.mark.parametrize("method", ["scram-sha-256", "password"])
def test_a_password_that_is_good_no_more_when_the_login_ends_lets_nobody_in(
    proxy, server, certs, method, change
):
    """A login that began before a reload is held against what the server says behind it."""
    running = asking(proxy, server, certs, f"host all all all {method}\n", lifetime="1h")
    assert log_in(running.port("l"), certs, "renewed", "first", binding="prefer") == "renewed"
    with WireClient(("127.0.0.1", running.port("l"))) as client:
        client.send(wire.startup(user="renewed", database="alice"))
        if method == "password":
            assert client.read_message().code == 3
            said = b"first\0"
        else:
            said = wire.begin_scram(client).final("first")
        server.psql(change)
        assert running.reload()["event"] == "reloaded"
        client.send(wire.message(b"p", said))
        if method != "password":
            assert client.read_message().code == 12
        refused = client.read_message()
        assert (refused.kind, refused.fields["C"]) == (b"E", "28P01")
        assert client.read_to_end() == b""
    reason = refusal_of(running, client)["reason"]
    assert "the password was good, and is not by the newest auth_query at backend lookup" in reason


def test_no_verifier_reaches_the_log(proxy, server, certs):
    running = bridging(
        proxy,
        server,
        certs,
        query="SELECT rolname, (rolpassword::int)::text, NULL::timestamptz FROM pgtlsproxy.auth_query($1)",
    )
    log_in(running.port("l"), certs, "renewed", "first")
    decided = running.wait_for_event("session_decided", verdict="refused")
    assert "a message with a secret in it, which is not shown" in decided["reason"]
    verifier = server.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'renewed'").stdout.strip()
    assert not any(part in str(running.log_events()) for part in (*verifier.split("$"), *verifier.split(":")))


def test_a_password_file_that_cannot_be_read_leaves_the_old_one_in_service(proxy, server, certs):
    running = bridging(proxy, server, certs)
    passfile = running.config.with_name("lookup.pass")
    passfile.write_text("not a line\n")
    failed_reload = running.reload()
    assert (failed_reload["event"], failed_reload["kept"]) == (
        "reload_failed",
        ["password for auth_query of listener l"],
    )
    assert log_in(running.port("l"), certs, "alice", password("alice")) == "alice"
    passfile.write_text(f"*:*:*:{LOOKUP_ROLE}:wrong\n")
    assert running.reload()["event"] == "reloaded"
    since = running.mark()
    assert log_in(running.port("l"), certs, "alice", password("alice")) == failed("alice")
    reason = running.wait_for_event("session_decided", since=since, verdict="refused")["reason"]
    assert f'has no answer: backend primary: the backend refuses user "{LOOKUP_ROLE}": 28P01' in reason


def test_with_no_lifetime_every_login_asks(proxy, server, certs):
    running = asking(proxy, server, certs, lifetime=0)
    port = running.port("l")
    assert log_in(port, certs, "renewed", "first") == "renewed"
    server.psql("ALTER ROLE renewed PASSWORD 'second'")
    assert log_in(port, certs, "renewed", "first") == failed("renewed")
    assert log_in(port, certs, "renewed", "second") == "renewed"


def test_a_password_that_expires_between_two_logins_is_refused(proxy, server, certs):
    running = asking(proxy, server, certs, lifetime="1h")
    port = running.port("l")
    server.psql("ALTER ROLE renewed VALID UNTIL 'tomorrow'")
    assert log_in(port, certs, "renewed", "first") == "renewed"
    until = time.time() + 3
    server.psql(f"ALTER ROLE renewed VALID UNTIL '{time.strftime('%F %T+00', time.gmtime(until))}'")
    running.reload()
    while log_in(port, certs, "renewed", "first") == "renewed":
        assert time.time() < until + 10 * PATIENCE
    assert time.time() >= int(until)


def test_salts_do_not_show_who_is_known(proxy, server, certs):
    running = asking(proxy, server, certs, lifetime="1s")
    roads = {
        user: [exchange_with_proxy(running, user) for _ in range(3)] for user in ("alice", "nobody", "x")
    }
    assert {len(set(found)) for found in roads.values()} == {1}
    assert len({found[0][1] for found in roads.values()}) == 3
    assert len({found[0][0] for found in roads.values()}) == 1
    server.stop()
    for user, found in roads.items():
        assert exchange_with_proxy(running, user) == found[0], user


def exchange_with_proxy(running, user):
    with WireClient(("127.0.0.1", running.port("l")), source=wire.another_source()) as client:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
        client.send(wire.startup(user=user, database="alice"))
        challenge = wire.begin_scram(client)
        client.send(wire.message(b"p", challenge.final()))
        refused = client.read_message()
        asked = challenge.asked
        return (len(challenge.server_first), asked["i"], refused.fields["C"]), asked["s"]


# --- The server that is asked is gone ----------------------------------------------------------------------


def test_a_server_that_is_gone_fails_those_alone_who_need_it(proxy, server, certs):
    running = asking(proxy, server, certs, "hostssl all bob all cert\nhost all all all scram-sha-256\n")
    port = running.port("l")
    assert log_in(port, certs, "alice", password("alice")) == "alice"
    server.psql("ALTER ROLE app PASSWORD 'app-secret'")
    by_certificate = {"sslcert": str(certs.client("bob").crt), "sslkey": str(certs.client("bob").key)}
    server.psql(f"REVOKE EXECUTE ON FUNCTION pgtlsproxy.auth_query(name) FROM {LOOKUP_ROLE}")
    since = running.mark()
    assert log_in(port, certs, "app", password("app")) == failed("app")
    reason = running.wait_for_event("session_decided", since=since, verdict="refused")["reason"]
    assert "has no answer: backend lookup: the backend answers 42501: permission denied" in reason
    assert log_in(port, certs, "alice", password("alice")) == "alice"  # still believed
    assert log_in(port, certs, "bob", "", binding="prefer", **by_certificate) == "bob"
    server.psql(f"GRANT EXECUTE ON FUNCTION pgtlsproxy.auth_query(name) TO {LOOKUP_ROLE}")
    deadline = time.monotonic() + 10 * PATIENCE
    while log_in(port, certs, "app", password("app")) != "app":
        assert time.monotonic() < deadline


def test_a_connection_that_the_server_ended_is_made_anew_unnoticed(proxy, server, certs):
    running = bridging(proxy, server, certs)
    assert log_in(running.port("l"), certs, "alice", password("alice")) == "alice"
    ended = server.psql(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = 'pgtlsproxy auth_query'"
    ).stdout
    assert ended.strip() == "1"
    assert log_in(running.port("l"), certs, "bob", password("bob")) == "bob"


def test_a_server_that_hangs_holds_up_nobody_else(proxy, server, certs):
    """It accepts, and says nothing: who needs an answer is refused in time, and the others do not wait."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        listener = with_tls(
            certs, auth_query=AUTH_QUERY | {"backend": "lookup"}, scram_mock_secret_file="mock"
        )
        lookup = passthrough(server, certs, port=hanging.getsockname()[1], connect_timeout="2s")
        running = proxy(
            config({"l": listener}, primary=with_certificate(server, certs), lookup=lookup),
            {"pg_hba.conf": "hostssl all bob all cert\nhost all all all scram-sha-256\n"} | FILES,
        )
        port, refused = running.port("l"), []
        waiting = [
            threading.Thread(target=lambda: refused.append(log_in(port, certs, "alice", password("alice"))))
            for _ in range(20)
        ]
        for each in waiting:
            each.start()
        proof = {"sslcert": str(certs.client("bob").crt), "sslkey": str(certs.client("bob").key)}
        assert log_in(port, certs, "bob", "", binding="prefer", **proof) == "bob"
        assert any(each.is_alive() for each in waiting)
        for each in waiting:
            each.join(10 * PATIENCE)
        assert set(refused) == {failed("alice")}
        assert len(refused) == 20


def test_a_crowd_of_unknown_names_is_one_connection(proxy, server, certs):
    running = bridging(proxy, server, certs)
    crowd = [
        threading.Thread(target=log_in, args=(running.port("l"), certs, f"nobody{number}", "x"))
        for number in range(40)
    ]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join(10 * PATIENCE)
    assert server.log.count(f"connection authorized: user={LOOKUP_ROLE}") == 1
    assert questions(server) == 40


SLOWLY = "SELECT found.* FROM pg_catalog.pg_sleep(0.1), pgtlsproxy.auth_query($1) AS found"


def test_a_crowd_of_unknown_names_delays_its_own_source_alone(proxy, server, certs):
    """Whoever comes from elsewhere has the next turn but one, and is let in long before the crowd has its answers.

    Nor is the server asked for those who have hung up meanwhile.
    """
    running = asking(proxy, server, certs, query=SLOWLY)
    names = [f"nobody{number}" for number in range(40)]
    source = wire.another_source()
    crowd = [WireClient(("127.0.0.1", running.port("l")), source=source) for _ in names]
    try:
        for name, client in zip(names, crowd, strict=True):
            client.send(wire.startup(user=name, database="alice"))
            assert client.read_message().code == 10
        for client in crowd:
            client.send(wire.sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc"))
        with wire.connected(("127.0.0.1", running.port("l")), source=wire.another_source()) as client:
            client.send(wire.startup(user="alice", database="alice"))
            wire.log_in(client, password("alice"))
        assert questions(server) < len(names) / 2
        staying, leaving = [*crowd[:25], crowd[-1]], crowd[25:-1]
        for client in leaving:
            client.close()
        for client in staying:
            assert client.read_message().code == 11
        assert questions(server) < len(names)
    finally:
        for client in crowd:
            client.close()


def test_whoever_the_proxy_asks_itself_needs_no_mock_secret_for_a_server_that_only_tells(
    proxy, server, certs
):
    """The backend of a query takes the proxy's certificate; that of the sessions asks them itself."""
    listener = with_tls(
        certs,
        auth_query={"user": "app", "backend": "lookup"},
        roles_query={"user": "app", "backend": "lookup"},
    )
    server.psql(
        "GRANT USAGE ON SCHEMA pgtlsproxy TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgtlsproxy TO app"
    )
    server.write("pg_hba.conf", f"local all all trust\nhostssl all app all cert map=pgtlsproxy\n{TLS_HBA}")
    server.reload()
    running = proxy(
        config(
            {
                "l": listener
                | {
                    "ssl_cert_file": certs.ca.server("localhost").crt,
                    "ssl_key_file": certs.ca.server("localhost").key,
                }
            },
            primary=passthrough(server, certs),
            lookup=with_certificate(server, certs),
        ),
        {"pg_hba.conf": HBA},
    )
    assert running.reload()["event"] == "reloaded"
    assert log_in(running.port("l"), certs, "alice", password("alice")) == "alice"


# --- With scram_secrets_file ------------------------------------------------------------------------------


def test_a_line_of_the_file_goes_before_what_the_server_says(proxy, server, certs):
    server.psql("CREATE ROLE elsewhere LOGIN PASSWORD 'listed'")
    line = server.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'elsewhere'").stdout.strip()
    listener = with_tls(
        certs, auth_query=AUTH_QUERY | {"backend": "lookup"}, scram_secrets_file="secrets.txt"
    )
    running = proxy(
        config({"l": listener}, primary=with_certificate(server, certs), lookup=passthrough(server, certs)),
        {
            "pg_hba.conf": SCRAM_HBA,
            "secrets.txt": f'"alice" "{line}"\n"bob" "{line}" "2001-01-01 00:00:00+00"\n',
        }
        | FILES,
    )
    port = running.port("l")
    assert log_in(port, certs, "alice", "listed") == "alice"
    assert log_in(port, certs, "alice", password("alice")) == failed("alice")
    assert log_in(port, certs, "bob", "listed") == failed("bob")
    assert log_in(port, certs, "bob", password("bob")) == failed("bob")
    assert log_in(port, certs, "app", password("app")) == "app"
