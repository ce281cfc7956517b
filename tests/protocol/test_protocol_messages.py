import contextlib
import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import AccessDenied, BackendMisbehaved, ProtocolViolation, ProxyError
from pgtlsproxy.protocol.messages import (
    MAX_AUTH_TOKEN_OCTETS,
    MAX_LOGIN_MESSAGE_OCTETS,
    MAX_LOGIN_OCTETS,
    SSL_REQUEST,
    Authentication,
    Message,
    MessageReader,
    UnsupportedVersion,
    backend_reader,
    client_reader,
    encode_error_response,
    encode_negotiate_protocol_version,
    encode_refusal,
    encode_sasl_mechanisms,
    parse_authentication,
    parse_backend_key_data,
    parse_error_response,
    parse_parameter_status,
    parse_transaction_status,
)

BACKEND_TYPES = [b"R", b"E", b"N", b"S", b"v", b"K", b"Z"]


def raw(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def drain(reader: MessageReader) -> list[Message]:
    messages = []
    while (message := reader.next()) is not None:
        messages.append(message)
    return messages


messages = st.lists(st.tuples(st.sampled_from([b"R", b"E", b"N", b"S"]), st.binary(max_size=40)), max_size=8)


@given(messages, st.binary(max_size=4), st.lists(st.integers(1, 9)))
@settings(max_examples=200)
def test_how_the_bytes_are_chunked_makes_no_difference(
    sent: list[tuple[bytes, bytes]], rest: bytes, sizes: list[int]
) -> None:
    rest = b"S" + rest.rjust(3, b"\x00")[:3] if rest else b""  # a header that is not whole
    stream = b"".join(raw(kind, body) for kind, body in sent) + rest
    reader = backend_reader()
    got: list[Message] = []
    position = 0
    for size in [*sizes, len(stream)]:
        reader.feed(stream[position : position + size])
        position += size
        got += drain(reader)
    assert got == [Message(kind, body) for kind, body in sent]
    assert reader.take_unread() == rest


@given(
    messages,
    st.sampled_from([b"", b"S", b"S\x00\x00\x00\x0cab", b"S\x00\x00\x00\x03", b"S\x7f\xff\xff\xff", b"X"]),
)
@settings(max_examples=200)
def test_messages_of_one_type_may_be_taken_together(sent: list[tuple[bytes, bytes]], rest: bytes) -> None:
    reader, one_by_one = backend_reader(), backend_reader()
    for each in (reader, one_by_one):
        each.feed(b"".join(raw(kind, body) for kind, body in sent) + rest)
    bodies, whole = reader.next_alike(b"S")
    alike = list(itertools.takewhile(lambda message: message[0] == b"S", sent))
    assert bodies == [body for _, body in alike]
    assert whole == b"".join(raw(kind, body) for kind, body in alike)
    for _ in alike:
        one_by_one.next()
    for _ in sent[len(alike) :]:
        assert reader.next() == one_by_one.next()
    assert outcome(reader) == outcome(one_by_one)


def outcome(reader: MessageReader) -> str:
    """What comes of asking for one more."""
    try:
        return repr(reader.next())
    except BackendMisbehaved as error:
        return error.reason


def test_messages_of_one_type_count_towards_all_that_may_come() -> None:
    reader = backend_reader()
    status = raw(b"S", bytes(MAX_LOGIN_MESSAGE_OCTETS - 4))
    most = MAX_LOGIN_OCTETS // len(status)
    reader.feed(status * (most + 1))
    bodies, _ = reader.next_alike(b"S")
    assert len(bodies) == most
    with pytest.raises(BackendMisbehaved, match="too many bytes"):
        reader.next()


SIDES = [(client_reader, ProtocolViolation), (backend_reader, BackendMisbehaved)]


@given(st.binary(max_size=200), st.sampled_from(SIDES))
@settings(max_examples=200)
def test_any_bytes_are_messages_or_the_error_of_their_side(
    data: bytes, side: tuple[Callable[[], MessageReader], type[ProxyError]]
) -> None:
    make, violation = side
    reader = make()
    reader.feed(data)
    with contextlib.suppress(violation):
        taken = b"".join(message.raw for message in drain(reader))
        assert taken + reader.take_unread() == data


def test_what_was_not_taken_is_handed_back_whole_and_once() -> None:
    reader = backend_reader()
    reader.feed(raw(b"Z", b"I") + b"D\x00\x00\x00\x10anything at all")
    assert drain_one(reader) == Message(b"Z", b"I")
    assert reader.take_unread() == b"D\x00\x00\x00\x10anything at all"
    assert reader.take_unread() == b""
    assert reader.next() is None


def drain_one(reader: MessageReader) -> Message:
    message = reader.next()
    assert message is not None
    return message


def test_an_empty_body_is_a_message() -> None:
    reader = backend_reader()
    reader.feed(raw(b"N"))
    assert drain_one(reader) == Message(b"N", b"")


@pytest.mark.parametrize(
    "length", [0, 1, 2, 3, MAX_LOGIN_MESSAGE_OCTETS + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
)
@pytest.mark.parametrize("kind", BACKEND_TYPES)
def test_a_backends_length_out_of_bounds_is_refused_before_anything_is_waited_for(
    kind: bytes, length: int
) -> None:
    reader = backend_reader()
    reader.feed(kind + struct.pack("!I", length))
    with pytest.raises(BackendMisbehaved, match="invalid length"):
        reader.next()


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (b"R", MAX_LOGIN_MESSAGE_OCTETS),
        (b"E", MAX_LOGIN_MESSAGE_OCTETS),
        (b"N", MAX_LOGIN_MESSAGE_OCTETS),
        (b"S", MAX_LOGIN_MESSAGE_OCTETS),
        (b"v", 2000),
        (b"K", 264),
        (b"Z", 5),
    ],
)
def test_every_type_of_a_backend_has_its_own_limit(kind: bytes, length: int) -> None:
    reader = backend_reader()
    reader.feed(kind + struct.pack("!I", length) + bytes(length - 4))
    assert len(drain_one(reader).body) == length - 4
    over = backend_reader()
    over.feed(kind + struct.pack("!I", length + 1))
    with pytest.raises(BackendMisbehaved):
        over.next()


def test_a_parameter_status_of_a_megabyte_is_refused() -> None:
    reader = backend_reader()
    reader.feed(b"S" + struct.pack("!I", 1 << 20))
    with pytest.raises(BackendMisbehaved):
        reader.next()


def test_a_backend_cannot_talk_for_ever_before_ready_for_query() -> None:
    reader = backend_reader()
    notice = raw(b"N", bytes(MAX_LOGIN_MESSAGE_OCTETS - 4))
    for _ in range(MAX_LOGIN_OCTETS // len(notice)):
        reader.feed(notice)
        drain_one(reader)
    reader.feed(notice)
    with pytest.raises(BackendMisbehaved, match="too many bytes"):
        reader.next()


@pytest.mark.parametrize("kind", sorted({bytes([code]) for code in range(256)} - set(BACKEND_TYPES)))
def test_a_type_that_no_backend_sends_in_a_login_is_refused_at_its_first_byte(kind: bytes) -> None:
    reader = backend_reader()
    reader.feed(kind)
    with pytest.raises(BackendMisbehaved, match="message type"):
        reader.next()


def test_a_second_negotiate_protocol_version_is_refused() -> None:
    reader = backend_reader()
    answer = encode_negotiate_protocol_version((3, 0), ())
    reader.feed(answer + answer)
    assert drain_one(reader).type == b"v"
    with pytest.raises(BackendMisbehaved):
        reader.next()


@pytest.mark.parametrize("awaited", ["password", "SASL", "GSS"])
def test_a_client_that_sends_another_type_gets_the_error_of_postgresql(awaited: str) -> None:
    reader = client_reader(lambda: awaited)
    reader.feed(b"Q")
    with pytest.raises(ProtocolViolation) as caught:
        reader.next()
    assert caught.value.reply == f"expected {awaited} response, got message type 81"
    assert caught.value.sqlstate == "08P01"


def test_a_client_message_ends_at_the_limit_of_postgresql() -> None:
    reader = client_reader()
    reader.feed(raw(b"p", bytes(MAX_AUTH_TOKEN_OCTETS - 4)))
    assert len(drain_one(reader).body) == 65531
    reader.feed(b"p" + struct.pack("!I", 65536))
    with pytest.raises(ProtocolViolation) as caught:
        reader.next()
    assert caught.value.reply == "invalid message length"


def test_a_message_never_shows_its_body() -> None:
    assert "hunter2" not in repr(Message(b"p", b"hunter2\x00"))
    assert "hunter2" not in repr(Authentication(11, data=b"hunter2"))


def test_a_message_comes_out_as_it_came() -> None:
    assert Message(b"p", b"x\x00").raw == b"p\x00\x00\x00\x06x\x00"


def test_ssl_request_is_postgresqls_bytes() -> None:
    assert bytes.fromhex("0000000804d2162f") == SSL_REQUEST


def test_an_error_response_has_the_fields_and_the_order_of_the_server() -> None:
    encoded = encode_error_response("28000", "no", detail="d")
    assert encoded == raw(b"E", b"SFATAL\x00VFATAL\x00C28000\x00Mno\x00Dd\x00\x00")
    assert encode_error_response("28000", "no") == raw(b"E", b"SFATAL\x00VFATAL\x00C28000\x00Mno\x00\x00")


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=200)
def test_an_error_response_is_read_as_it_was_written(message: str, detail: str) -> None:
    encoded = encode_error_response("08P01", message, detail=detail)
    assert dict(parse_error_response(encoded[5:]).fields) == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "08P01",
        "M": message.replace("\x00", ""),
        "D": detail.replace("\x00", ""),
    }


def test_every_refusal_names_the_session() -> None:
    error = AccessDenied("secret file name", reply="go away")
    fields = parse_error_response(encode_refusal(error, "cafe")[5:]).fields
    assert (fields["C"], fields["M"], fields["D"]) == ("28000", "go away", "pgtlsproxy session cafe")
    assert b"secret" not in encode_refusal(error, "cafe")


@pytest.mark.parametrize("major", [0, 1, 2])
def test_a_client_of_protocol_2_gets_an_error_that_it_can_read(major: int) -> None:
    text = f"unsupported frontend protocol {major}.7: server supports 3.0 to 3.2"
    assert encode_refusal(UnsupportedVersion(major, 7), "cafe") == b"EFATAL:  " + text.encode() + b"\n\x00"


def test_a_client_of_protocol_4_gets_an_error_response() -> None:
    fields = parse_error_response(encode_refusal(UnsupportedVersion(4, 0), "cafe")[5:]).fields
    assert fields["C"] == "0A000"
    assert fields["M"] == "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"


def test_bytes_that_are_not_utf_8_go_back_as_they_came() -> None:
    encoded = encode_error_response("28000", 'user "\udcff"')
    assert b'Muser "\xff"\x00' in encoded


def test_negotiate_protocol_version_carries_the_full_version_number() -> None:
    assert encode_negotiate_protocol_version((3, 2), ("_pq_.a", "_pq_.b")) == raw(
        b"v", struct.pack("!II", 0x00030002, 2) + b"_pq_.a\x00_pq_.b\x00"
    )


names = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1), min_size=1)


@given(names)
def test_a_list_of_mechanisms_is_read_as_it_was_written(mechanisms: list[str]) -> None:
    encoded = encode_sasl_mechanisms(mechanisms)
    assert parse_authentication(encoded[5:]) == Authentication(10, tuple(mechanisms), encoded[9:])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x00\x00",
        b"\x00\x00\x00\x00x",
        b"\x00\x00\x00\x03x",
        b"\x00\x00\x00\x05sal",
        b"\x00\x00\x00\x05salty",
        b"\x00\x00\x00\x07x",
        b"\x00\x00\x00\x0a",
        b"\x00\x00\x00\x0a\x00",
        b"\x00\x00\x00\x0a\x00\x00",
        b"\x00\x00\x00\x0aSCRAM-SHA-256",
        b"\x00\x00\x00\x0aSCRAM-SHA-256\x00",
        b"\x00\x00\x00\x0aA\x00\x00B\x00\x00",
        b"\x00\x00\x00\x0aA\x00\x00x",
    ],
)
def test_a_malformed_authentication_message_is_refused(body: bytes) -> None:
    with pytest.raises(BackendMisbehaved):
        parse_authentication(body)


def test_what_follows_an_authentication_code_is_kept() -> None:
    assert parse_authentication(b"\x00\x00\x00\x05salt") == Authentication(5, data=b"salt")
    assert parse_authentication(b"\x00\x00\x00\x0br=x") == Authentication(11, data=b"r=x")
    assert parse_authentication(b"\x00\x00\x00\x63") == Authentication(99)


@pytest.mark.parametrize(
    ("body", "sqlstate", "message"),
    [
        (b"", None, ""),
        (b"\x00", None, ""),
        (b"SFATAL\x00Mgone\x00\x00", None, "gone"),
        (b"C57P03\x00Mgone", "57P03", "gone"),
        (b"C57P03\x00C28000\x00\x00", "57P03", ""),
        (b"C57P0\x00\x00", None, ""),
        (b"C57\x1b[0\x00\x00", None, ""),
        (b"M\x1b[31m\xff\x00\x00", None, "\\x1b[31m\\xff"),
        (b"Mbefore\x00\x00C28000\x00\x00", None, "before"),
    ],
)
def test_a_backends_error_is_read_as_far_as_it_goes(body: bytes, sqlstate: str | None, message: str) -> None:
    error = parse_error_response(body)
    assert (error.sqlstate, error.message) == (sqlstate, message)


def test_a_parameter_status_is_a_name_and_a_value() -> None:
    assert parse_parameter_status(b"in_hot_standby\x00off\x00") == (b"in_hot_standby", b"off")


@pytest.mark.parametrize("body", [b"", b"a", b"a\x00", b"a\x00b", b"a\x00b\x00c", b"a\x00b\x00c\x00"])
def test_a_malformed_parameter_status_is_refused(body: bytes) -> None:
    with pytest.raises(BackendMisbehaved):
        parse_parameter_status(body)


@pytest.mark.parametrize("octets", [4, 32, 256])
def test_a_cancel_key_may_have_4_to_256_octets_and_is_never_shown(octets: int) -> None:
    pid, key = parse_backend_key_data(struct.pack("!i", -7) + b"k" * octets)
    assert (pid, key.reveal()) == (-7, b"k" * octets)
    assert "kkkk" not in repr(key)


@pytest.mark.parametrize("octets", [0, 3, 4, 7, 261, 300])
def test_a_backend_key_data_of_another_length_is_refused(octets: int) -> None:
    with pytest.raises(BackendMisbehaved):
        parse_backend_key_data(bytes(octets))


def test_a_transaction_status_is_one_of_three() -> None:
    assert [parse_transaction_status(body) for body in (b"I", b"T", b"E")] == ["I", "T", "E"]
    for body in (b"", b"X", b"II", b"IT"):
        with pytest.raises(BackendMisbehaved):
            parse_transaction_status(body)


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_any_body_of_a_backend_is_a_value_or_its_error(body: bytes) -> None:
    parse_error_response(body)
    for parse in (
        parse_authentication,
        parse_backend_key_data,
        parse_parameter_status,
        parse_transaction_status,
    ):
        with contextlib.suppress(BackendMisbehaved):
            parse(body)
