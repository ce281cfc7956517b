import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.policy.challenge import Action, ClientLeg, judge
from pgtlsproxy.policy.hba import Method
from pgtlsproxy.policy.proofs import Login

SCRAM = ("SCRAM-SHA-256",)
PLUS = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
OAUTH = ("OAUTHBEARER",)
MIXED = ("SCRAM-SHA-256", "OAUTHBEARER")

R, F, X = Action.RELAY, Action.FINISH, Action.REFUSE
FIRST = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 255, -1)
DEMANDS = (Method.MD5, Method.LDAP, Method.PAM, Method.RADIUS, Method.BSD, Method.GSS, Method.OAUTH)
ASKING = (Method.TRUST, Method.CERT, Method.PEER)


def opening(login: Login, method: Method, client: ClientLeg) -> dict[int, Action]:
    """The verdicts on each first message of a backend."""
    return {code: judge(login, method, code, SCRAM if code == 10 else (), client).action for code in FIRST}


def only(**allowed: Action) -> dict[int, Action]:
    return dict.fromkeys(FIRST, X) | {int(code[1:]): action for code, action in allowed.items()}


@pytest.mark.parametrize("method", ASKING)
@pytest.mark.parametrize("client", [ClientLeg.SECURE, ClientLeg.CLEAR_LOCAL])
def test_passthrough_relays_what_a_backend_may_ask(method: Method, client: ClientLeg) -> None:
    assert opening(Login.PASSTHROUGH, method, client) == only(_0=F, _3=R, _5=R, _7=R, _10=R)


@pytest.mark.parametrize("method", ASKING)
def test_a_password_in_clear_never_crosses_a_clear_leg_from_afar(method: Method) -> None:
    assert opening(Login.PASSTHROUGH, method, ClientLeg.CLEAR_REMOTE) == only(_0=F, _5=R, _7=R, _10=R)


@pytest.mark.parametrize("client", list(ClientLeg))
def test_a_scram_line_takes_scram_only(client: ClientLeg) -> None:
    assert opening(Login.PASSTHROUGH, Method.SCRAM_SHA_256, client) == only(_10=R)


def test_a_password_line_takes_scram_for_which_the_proxy_has_the_password_or_one_in_clear() -> None:
    for client in (ClientLeg.SECURE, ClientLeg.CLEAR_LOCAL):
        assert opening(Login.PASSTHROUGH, Method.PASSWORD, client) == only(_3=R, _10=R)


@pytest.mark.parametrize("client", list(ClientLeg))
def test_an_md5_line_takes_what_the_roles_secret_makes_a_server_ask(client: ClientLeg) -> None:
    assert opening(Login.PASSTHROUGH, Method.MD5, client) == only(_5=R, _10=R)


@pytest.mark.parametrize("method", [Method.LDAP, Method.PAM, Method.RADIUS, Method.BSD])
def test_a_line_whose_password_somebody_else_judges_takes_one_in_clear_where_nobody_can_read_it(
    method: Method,
) -> None:
    for client in (ClientLeg.SECURE, ClientLeg.CLEAR_LOCAL):
        assert opening(Login.PASSTHROUGH, method, client) == only(_3=R)
    assert opening(Login.PASSTHROUGH, method, ClientLeg.CLEAR_REMOTE) == only()


@pytest.mark.parametrize("client", list(ClientLeg))
def test_a_gss_line_takes_gssapi_only(client: ClientLeg) -> None:
    assert opening(Login.PASSTHROUGH, Method.GSS, client) == only(_7=R)


@pytest.mark.parametrize("client", list(ClientLeg))
@pytest.mark.parametrize("method", [*ASKING, Method.SCRAM_SHA_256, Method.PASSWORD])
def test_the_proxys_certificate_must_be_enough(method: Method, client: ClientLeg) -> None:
    assert opening(Login.CERTIFICATE, method, client) == only(_0=F)


@pytest.mark.parametrize("client", list(ClientLeg))
@pytest.mark.parametrize("method", [*ASKING, Method.SCRAM_SHA_256, Method.PASSWORD])
def test_with_a_password_of_its_own_the_proxy_answers_whatever_the_clients_leg_is(
    method: Method, client: ClientLeg
) -> None:
    """require_auth narrows it down; what the backend asks does not reach the client."""
    assert opening(Login.PASSFILE, method, client) == only(_0=F, _3=R, _5=R, _10=R)
    assert judge(Login.PASSFILE, method, 10, ("OAUTHBEARER",), client).action is Action.REFUSE


@pytest.mark.parametrize(
    ("login", "method"),
    [
        (Login.PASSTHROUGH, Method.REJECT),
        *((login, method) for login in (Login.CERTIFICATE, Login.PASSFILE) for method in DEMANDS),
    ],
)
def test_what_is_not_in_the_table_may_ask_nothing(login: Login, method: Method) -> None:
    assert opening(login, method, ClientLeg.SECURE) == only()


@pytest.mark.parametrize(
    ("method", "mechanisms", "client", "expected"),
    [
        (Method.SCRAM_SHA_256, SCRAM, ClientLeg.SECURE, R),
        (Method.SCRAM_SHA_256, PLUS, ClientLeg.SECURE, R),
        (Method.SCRAM_SHA_256, PLUS, ClientLeg.CLEAR_REMOTE, R),
        (Method.SCRAM_SHA_256, OAUTH, ClientLeg.SECURE, X),
        (Method.SCRAM_SHA_256, MIXED, ClientLeg.SECURE, X),
        (Method.SCRAM_SHA_256, (), ClientLeg.SECURE, X),
        (Method.SCRAM_SHA_256, ("scram-sha-256",), ClientLeg.SECURE, X),
        (Method.TRUST, PLUS, ClientLeg.CLEAR_REMOTE, R),
        (Method.TRUST, OAUTH, ClientLeg.SECURE, R),
        (Method.TRUST, OAUTH, ClientLeg.CLEAR_LOCAL, R),
        (Method.TRUST, OAUTH, ClientLeg.CLEAR_REMOTE, X),
        (Method.TRUST, MIXED, ClientLeg.CLEAR_REMOTE, X),
        (Method.TRUST, ("PLAIN",), ClientLeg.CLEAR_REMOTE, X),
        (Method.CERT, OAUTH, ClientLeg.CLEAR_REMOTE, X),
        (Method.TRUST, (), ClientLeg.SECURE, X),
        (Method.MD5, PLUS, ClientLeg.CLEAR_REMOTE, R),
        (Method.MD5, OAUTH, ClientLeg.SECURE, X),
        (Method.MD5, MIXED, ClientLeg.SECURE, X),
        (Method.OAUTH, OAUTH, ClientLeg.SECURE, R),
        (Method.OAUTH, OAUTH, ClientLeg.CLEAR_LOCAL, X),
        (Method.OAUTH, OAUTH, ClientLeg.CLEAR_REMOTE, X),
        (Method.OAUTH, SCRAM, ClientLeg.SECURE, X),
        (Method.OAUTH, MIXED, ClientLeg.SECURE, X),
        (Method.OAUTH, (), ClientLeg.SECURE, X),
    ],
)
def test_a_mechanism_that_gives_the_secret_away_never_crosses_a_clear_leg_from_afar(
    method: Method, mechanisms: tuple[str, ...], client: ClientLeg, expected: Action
) -> None:
    verdict = judge(Login.PASSTHROUGH, method, 10, mechanisms, client)
    assert verdict.action is expected
    assert bool(verdict.reason) is (expected is X)


@pytest.mark.parametrize(
    ("method", "codes", "expected"),
    [
        (Method.SCRAM_SHA_256, [10, 11, 12, 0], [R, R, R, F]),
        (Method.SCRAM_SHA_256, [10, 0], [R, X]),
        (Method.SCRAM_SHA_256, [10, 12], [R, X]),
        (Method.SCRAM_SHA_256, [10, 11, 0], [R, R, X]),
        (Method.SCRAM_SHA_256, [10, 11, 11], [R, R, X]),
        (Method.SCRAM_SHA_256, [10, 11, 12, 12], [R, R, R, X]),
        (Method.SCRAM_SHA_256, [10, 10], [R, X]),
        (Method.SCRAM_SHA_256, [10, 11, 3], [R, R, X]),
        (Method.TRUST, [10, 11, 12, 0], [R, R, R, F]),
        (Method.TRUST, [3, 0], [R, F]),
        (Method.TRUST, [5, 0], [R, F]),
        (Method.TRUST, [3, 3], [R, X]),
        (Method.TRUST, [5, 3], [R, X]),
        (Method.TRUST, [10, 3], [R, X]),
        (Method.TRUST, [7, 8, 8, 0], [R, R, R, F]),
        (Method.TRUST, [7, 11], [R, X]),
        (Method.TRUST, [0, 3], [F, X]),
        (Method.MD5, [5, 0], [R, F]),
        (Method.MD5, [10, 11, 12, 0], [R, R, R, F]),
        (Method.MD5, [10, 0], [R, X]),
        (Method.MD5, [5, 3], [R, X]),
        (Method.LDAP, [3, 0], [R, F]),
        (Method.LDAP, [3, 3], [R, X]),
        (Method.GSS, [7, 8, 8, 0], [R, R, R, F]),
        (Method.GSS, [7, 3], [R, X]),
    ],
)
def test_messages_come_in_the_order_of_the_protocol(
    method: Method, codes: list[int], expected: list[Action]
) -> None:
    previous: list[int | None] = [None, *codes]
    verdicts = [
        judge(
            Login.PASSTHROUGH, method, code, PLUS if code == 10 else (), ClientLeg.SECURE, previous=before
        ).action
        for code, before in zip(codes, previous, strict=False)
    ]
    assert verdicts == expected


def test_a_refusal_says_what_came_and_when() -> None:
    first = judge(Login.PASSTHROUGH, Method.SCRAM_SHA_256, 3, (), ClientLeg.SECURE)
    assert first.reason == (
        "the backend sent AuthenticationCleartextPassword (3) first: "
        "not with scram-sha-256, login passthrough"
    )
    later = judge(Login.PASSTHROUGH, Method.SCRAM_SHA_256, 99, (), ClientLeg.SECURE, previous=10)
    assert "an unknown Authentication message (99) after 10" in later.reason
    hostile = judge(Login.PASSTHROUGH, Method.SCRAM_SHA_256, 10, ("\x1b[2J",), ClientLeg.SECURE)
    assert "\x1b" not in hostile.reason


@given(
    st.sampled_from(list(Login)),
    st.sampled_from(list(Method)),
    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 12),
    st.lists(st.sampled_from([*PLUS, "OAUTHBEARER", "x"]), max_size=3),
    st.none() | st.integers(0, 12),
)
@settings(max_examples=200)
def test_a_leg_from_afar_in_clear_is_never_asked_more_than_a_secure_one(
    login: Login, method: Method, code: int, mechanisms: list[str], previous: int | None
) -> None:
    secure = judge(login, method, code, mechanisms, ClientLeg.SECURE, previous=previous).action
    clear = judge(login, method, code, mechanisms, ClientLeg.CLEAR_REMOTE, previous=previous).action
    assert clear in {secure, X}
