import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.identity import Secret, decode_name, encode_name
from pgtlsproxy.protocol.messages import SSL_REQUEST
from pgtlsproxy.protocol.startup import (
    CancelRequest,
    GSSENCRequest,
    Packet,
    Replication,
    SSLRequest,
    StartupMessage,
    Version,
    encode_startup,
    packet_length,
    parse_packet,
    unsupported,
    version_answer,
)

LAYOUT = "invalid startup packet layout: expected terminator as last byte"
NO_USER = "no PostgreSQL user name specified in startup packet"


def payload(*pairs: tuple[bytes, bytes], version: Version = (3, 0), end: bytes = b"\x00") -> bytes:
    body = b"".join(name + b"\x00" + value + b"\x00" for name, value in pairs)
    return struct.pack("!HH", *version) + body + end


def startup(*pairs: tuple[bytes, bytes], version: Version = (3, 0)) -> StartupMessage:
    packet = parse_packet(payload(*pairs, version=version))
    assert isinstance(packet, StartupMessage)
    return packet


def parse_whole(packet: bytes) -> Packet:
    assert packet_length(packet[:4]) == len(packet)
    return parse_packet(packet[4:])


def refusal(data: bytes) -> ProtocolViolation:
    with pytest.raises(ProtocolViolation) as caught:
        parse_packet(data)
    return caught.value


USER = (b"user", b"alice")


# The length word


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 10_005, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_out_of_bounds_closes_without_a_word(length: int) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        packet_length(struct.pack("!I", length))
    assert caught.value.sqlstate is None


@pytest.mark.parametrize("length", [8, 9, 10_001, 10_004])
def test_a_length_that_postgresql_takes_is_taken(length: int) -> None:
    assert packet_length(struct.pack("!I", length)) == length


# SSLRequest, GSSENCRequest, CancelRequest


def test_the_encryption_requests_are_told_apart() -> None:
    assert parse_whole(SSL_REQUEST) == SSLRequest()
    assert parse_whole(struct.pack("!II", 8, 80877104)) == GSSENCRequest()


@pytest.mark.parametrize("code", [80877103, 80877104])
def test_an_encryption_request_with_bytes_inside_its_length_closes_without_a_word(code: int) -> None:
    assert refusal(struct.pack("!I", code) + b"\x00").sqlstate is None


@pytest.mark.parametrize(("request_", "minor"), [(SSLRequest(), 5679), (GSSENCRequest(), 5680)])
def test_a_request_too_many_is_a_version_that_nobody_speaks(
    request_: SSLRequest | GSSENCRequest, minor: int
) -> None:
    error = unsupported(request_)
    assert error.reply == f"unsupported frontend protocol 1234.{minor}: server supports 3.0 to 3.2"
    assert error.sqlstate == "0A000"


@given(st.integers(-(2**31), 2**31 - 1), st.binary(min_size=1, max_size=256))
def test_a_cancel_request_is_read_as_it_was_written(pid: int, key: bytes) -> None:
    packet = parse_whole(CancelRequest(pid, Secret(key)).encode())
    assert isinstance(packet, CancelRequest)
    assert (packet.pid, packet.key.reveal()) == (pid, key)


def test_a_cancel_request_of_protocol_3_0_has_16_octets() -> None:
    assert CancelRequest(258, Secret(b"abcd")).encode() == bytes.fromhex("0000001004d2162e00000102") + b"abcd"


def test_a_cancel_request_never_shows_its_key() -> None:
    assert "abcd" not in repr(CancelRequest(1, Secret(b"abcd")))


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (0, "invalid length of cancel request packet"),
        (3, "invalid length of cancel request packet"),
        (4, "invalid length of cancel key in cancel request packet"),
        (261, "invalid length of cancel key in cancel request packet"),
        (9_996, "invalid length of cancel key in cancel request packet"),
    ],
)
def test_a_cancel_request_of_another_length_closes_without_a_word(octets: int, reason: str) -> None:
    error = refusal(struct.pack("!I", 80877102) + bytes(octets))
    assert (error.reason, error.sqlstate) == (reason, None)


# Versions


@pytest.mark.parametrize("version", [(0, 0), (1, 0), (2, 0), (4, 0), (1234, 5677), (0xFFFF, 0xFFFF)])
def test_another_major_version_is_refused_in_postgresqls_words(version: Version) -> None:
    error = refusal(payload(USER, version=version))
    major, minor = version
    assert error.sqlstate == "0A000"
    assert error.reply == f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2"


@pytest.mark.parametrize("minor", [0, 1, 2, 3, 9999, 65535])
def test_every_minor_version_is_read(minor: int) -> None:
    assert startup(USER, version=(3, minor)).version == (3, minor)


def answer(version: Version, *options: bytes) -> bytes:
    names = b"".join(option + b"\x00" for option in options)
    body = struct.pack("!HHI", *version, len(options)) + names
    return b"v" + struct.pack("!I", len(body) + 4) + body


OPTION = (b"_pq_.x", b"1")


@pytest.mark.parametrize(
    ("asked", "options", "newest", "expected"),
    [
        ((3, 0), (), (3, 2), b""),
        ((3, 1), (), (3, 2), b""),
        ((3, 2), (), (3, 2), b""),
        ((3, 3), (), (3, 2), answer((3, 2))),
        ((3, 9999), (), (3, 2), answer((3, 2))),
        ((3, 0), (OPTION,), (3, 2), answer((3, 0), b"_pq_.x")),
        ((3, 2), (OPTION,), (3, 2), answer((3, 2), b"_pq_.x")),
        ((3, 9999), (OPTION,), (3, 2), answer((3, 2), b"_pq_.x")),
        ((3, 0), (), (3, 0), b""),
        ((3, 1), (), (3, 0), answer((3, 0))),
        ((3, 2), (), (3, 0), answer((3, 0))),
        ((3, 9999), (OPTION,), (3, 0), answer((3, 0), b"_pq_.x")),
        ((3, 0), ((b"_pq_.b", b""), (b"_pq_.a", b"2")), (3, 2), answer((3, 0), b"_pq_.b", b"_pq_.a")),
        ((3, 0), (OPTION, OPTION), (3, 2), answer((3, 0), b"_pq_.x")),
    ],
)
def test_the_version_is_negotiated_once_and_only_where_something_changes(
    asked: Version, options: tuple[tuple[bytes, bytes], ...], newest: Version, expected: bytes
) -> None:
    assert version_answer(startup(USER, *options, version=asked), newest) == expected


@pytest.mark.parametrize(
    ("asked", "newest", "spoken"),
    [
        ((3, 0), (3, 2), (3, 0)),
        ((3, 1), (3, 2), (3, 0)),
        ((3, 2), (3, 2), (3, 2)),
        ((3, 9999), (3, 2), (3, 2)),
        ((3, 2), (3, 0), (3, 0)),
        ((3, 9999), (3, 0), (3, 0)),
    ],
)
def test_a_backend_is_never_asked_for_more_than_the_client_takes(
    asked: Version, newest: Version, spoken: Version
) -> None:
    packet = encode_startup(startup(USER, OPTION, version=asked), newest=newest)
    assert packet[4:8] == struct.pack("!HH", *spoken)
    assert b"_pq_." not in packet


# Layout: each verdict was taken from a PostgreSQL 15, except where it says so


@pytest.mark.parametrize(
    "data",
    [
        payload(USER, end=b""),
        payload(end=b""),
        payload(USER, end=b"\x00\x00"),
        payload(USER, end=b"\x00junk\x00"),
        payload(USER, end=b"\x00x"),
        payload(USER, end=b"application_name\x00"),
        payload(USER, end=b"application_name\x00\x00"),
        payload(USER, end=b"application_name"),
        # PostgreSQL takes this one: it looks where the terminator should be, not what is there.
        payload(USER, end=b"x"),
        payload((b"", b"x"), USER),
    ],
)
def test_a_startup_packet_ends_with_its_terminator_and_nothing_else(data: bytes) -> None:
    error = refusal(data)
    assert (error.reply, error.sqlstate) == (LAYOUT, "08P01")


@pytest.mark.parametrize(
    "data", [payload(), payload((b"user", b"")), payload((b"database", b"d")), payload((b"USER", b"alice"))]
)
def test_a_startup_packet_without_a_user_is_refused(data: bytes) -> None:
    error = refusal(data)
    assert (error.reply, error.sqlstate) == (NO_USER, "28000")


@pytest.mark.parametrize(
    ("pairs", "database"),
    [
        ((), "alice"),
        (((b"database", b""),), "alice"),
        (((b"database", b"sales"),), "sales"),
        (((b"replication", b"database"),), "alice"),
        (((b"replication", b"off"),), "alice"),
        (((b"replication", b"on"),), ""),
        (((b"replication", b"on"), (b"database", b"replication")), "replication"),
    ],
)
def test_the_database_is_the_users_where_it_is_not_named(
    pairs: tuple[tuple[bytes, bytes], ...], database: str
) -> None:
    assert startup(USER, *pairs).database == database


@pytest.mark.parametrize("name", [b"user", b"database", b"options", b"replication"])
@pytest.mark.parametrize("values", [(b"on", b"off"), (b"off", b"on"), (b"on", b"on"), (b"", b"on")])
def test_a_special_parameter_twice_is_refused(name: bytes, values: tuple[bytes, bytes]) -> None:
    pairs = [(name, value) for value in values]
    if name != b"user":
        pairs.insert(1, USER)
    error = refusal(payload(*pairs))
    assert error.sqlstate == "08P01"
    assert error.reply == f'duplicate parameter "{name.decode()}" in startup packet'
    assert "PostgreSQL would take the last" in error.reason


def test_special_parameters_in_other_spellings_are_settings() -> None:
    message = startup(USER, (b"User", b"bob"), (b"USER", b"carol"), (b"Options", b"x"), (b"_PQ_.x", b"1"))
    assert message.user == "alice"
    assert message.parameters == (("User", "bob"), ("USER", "carol"), ("Options", "x"), ("_PQ_.x", "1"))
    assert message.protocol_options == ()


def test_settings_go_through_as_they_are_in_order_and_twice() -> None:
    pairs = [
        (b"role", b"boss"),
        (b"options", b"-c role=boss --role=boss"),
        (b"session_authorization", b"boss"),
        (b"application_name", b"a"),
        (b"application_name", b"b"),
    ]
    message = startup(*pairs, USER)
    assert message.parameters == tuple((name.decode(), value.decode()) for name, value in pairs)
    assert message.parameter("application_name") == "b"
    assert message.parameter("timezone") is None


def test_the_proxys_own_parameters_cannot_be_set_by_a_client() -> None:
    message = startup(
        USER,
        (b"pgtlsproxy.client_addr", b"1.2.3.4"),
        (b"PgTLSProxy.Session\x1b", b"x"),
        (b"pgtlsproxyx", b"y"),
    )
    assert message.parameters == (("pgtlsproxyx", "y"),)
    assert message.dropped == ("pgtlsproxy.client_addr", "PgTLSProxy.Session\\x1b")


@pytest.mark.parametrize("what", ["user", "database"])
@pytest.mark.parametrize("name", [b"a" * 64, "é".encode() * 32, b"a" * 62 + "é".encode(), b"\xff" * 64])
def test_a_name_that_postgresql_would_cut_is_refused(what: str, name: bytes) -> None:
    pairs = [(b"user", name)] if what == "user" else [USER, (b"database", name)]
    error = refusal(payload(*pairs))
    assert (error.reply, error.sqlstate) == (f"{what} name is longer than 63 bytes", "08P01")


@pytest.mark.parametrize("replication", [b"on", b"database", b"off"])
def test_a_database_that_is_too_long_is_refused_in_replication_too(replication: bytes) -> None:
    assert refusal(payload(USER, (b"replication", replication), (b"database", b"d" * 64))).sqlstate == "08P01"


@pytest.mark.parametrize("name", [b"a" * 63, b"a" * 61 + "é".encode(), b"\xff" * 63])
def test_a_name_of_63_bytes_is_taken(name: bytes) -> None:
    message = startup((b"user", name), (b"database", name))
    assert encode_name(message.user) == encode_name(message.database) == name


# Replication: each verdict was taken from a PostgreSQL 15


@pytest.mark.parametrize(
    "text",
    ["t", "tr", "tru", "true", "TRUE", "tR", "y", "ye", "yes", "Yes", "on", "ON", "1"],
)
def test_what_postgresql_reads_as_true_asks_for_physical_replication(text: str) -> None:
    message = startup(USER, (b"replication", text.encode()))
    assert (message.replication, message.replication_text) == (Replication.PHYSICAL, text)


@pytest.mark.parametrize("text", ["f", "fa", "false", "FALSE", "n", "no", "of", "OF", "off", "0"])
def test_what_postgresql_reads_as_false_asks_for_none(text: str) -> None:
    assert startup(USER, (b"replication", text.encode())).replication is Replication.NONE


def test_only_the_exact_word_database_asks_for_logical_replication() -> None:
    assert startup(USER, (b"replication", b"database")).replication is Replication.LOGICAL


@pytest.mark.parametrize(
    "text",
    ["", "o", "onn", "offf", "truee", "Database", "databas", "2", "00", " on", "on ", "\u0131", "\ufb00"],
)
def test_any_other_value_of_replication_is_refused_in_postgresqls_words(text: str) -> None:
    error = refusal(payload(USER, (b"replication", text.encode())))
    assert (error.reply, error.sqlstate) == (f'invalid value for parameter "replication": "{text}"', "22023")


# The packet for the backend


texts = st.binary(max_size=20).map(lambda raw: decode_name(raw.replace(b"\x00", b"")))
settings_names = st.binary(min_size=1, max_size=12).map(lambda raw: decode_name(raw.replace(b"\x00", b"x")))
special = {"user", "database", "replication"}


@st.composite
def startups(draw: st.DrawFn) -> StartupMessage:
    user = draw(texts.filter(bool))
    text = draw(st.sampled_from([None, "database", "on", "tr", "off", "0"]))
    kinds = {None: Replication.NONE, "database": Replication.LOGICAL, "on": Replication.PHYSICAL}
    kind = kinds.get(text, Replication.PHYSICAL if text == "tr" else Replication.NONE)
    database = draw(texts)
    names = settings_names.filter(lambda name: name not in special and not name.startswith("_pq_."))
    parameters = draw(st.lists(st.tuples(names, texts), max_size=5))
    return StartupMessage(
        version=(3, draw(st.sampled_from([0, 2]))),
        user=user,
        database=database if kind is Replication.PHYSICAL else database or user,
        replication=kind,
        replication_text=text,
        parameters=tuple({name: (name, value) for name, value in parameters}.values()),
    )


@given(startups())
@settings(max_examples=200)
def test_a_startup_message_is_read_as_it_was_written(message: StartupMessage) -> None:
    assert parse_whole(encode_startup(message)) == message


def test_the_packet_for_the_backend_is_built_anew() -> None:
    message = startup(
        (b"application_name", b"x"), (b"pgtlsproxy.session", b"mine"), OPTION, USER, version=(3, 2)
    )
    packet = encode_startup(message, extra=[("pgtlsproxy.session", "cafe\x00")])
    body = (
        b"user\x00alice\x00database\x00alice\x00application_name\x00x\x00pgtlsproxy.session\x00cafe\x00\x00"
    )
    assert packet == struct.pack("!IHH", len(body) + 8, 3, 2) + body


@pytest.mark.parametrize("text", ["on", "database", "off"])
def test_replication_goes_on_as_it_was_sent(text: str) -> None:
    packet = encode_startup(startup(USER, (b"replication", text.encode())))
    assert b"\x00replication\x00" + text.encode() + b"\x00" in packet


def test_physical_replication_names_a_database_only_where_the_client_did() -> None:
    bare = startup(USER, (b"replication", b"on"))
    assert b"database" not in encode_startup(bare)
    assert b"database\x00replication\x00" in encode_startup(replace(bare, database="replication"))


def test_the_longest_packet_of_a_client_reaches_the_backend() -> None:
    used = len(payload(USER, (b"application_name", b""))) + 4
    message = startup(USER, (b"application_name", b"x" * (10_004 - used)))
    packet = encode_startup(message)
    assert len(packet) == 10_004
    assert parse_whole(packet) == message


def test_a_packet_that_the_proxys_own_parameters_make_too_long_is_refused() -> None:
    message = startup(USER, (b"application_name", b"x" * 9_900))
    assert len(encode_startup(message)) <= 10_004
    with pytest.raises(ProtocolViolation) as caught:
        encode_startup(message, extra=[("pgtlsproxy.client_name", "n" * 200)])
    assert caught.value.reply == "startup packet is too long"


def test_300_parameters_go_through() -> None:
    pairs = [(b"a.b%d" % number, b"v") for number in range(300)]
    message = startup(USER, *pairs)
    assert parse_whole(encode_startup(message)) == message
    assert len(message.parameters) == 300
