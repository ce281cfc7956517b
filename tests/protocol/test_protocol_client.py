import itertools

import pytest

from pgtlsproxy.errors import ProtocolViolation
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.client import TLS_HANDSHAKE, Action, ClientNegotiation, State
from pgtlsproxy.protocol.messages import UnsupportedVersion
from pgtlsproxy.protocol.startup import CancelRequest, GSSENCRequest, Packet, SSLRequest, StartupMessage

SSL: Packet = SSLRequest()
GSS: Packet = GSSENCRequest()
S, N = Action.START_TLS, Action.REFUSE_ENCRYPTION
ENDS: list[Packet] = [StartupMessage((3, 0), "u", "u"), CancelRequest(1, Secret(b"1234"))]


def begin(transport: str) -> ClientNegotiation:
    """A negotiation in clear with TLS offered, in clear without, or inside direct TLS."""
    negotiation = ClientNegotiation(offers_tls=transport != "no TLS")
    if transport == "direct":
        negotiation.direct_tls()
    return negotiation


def answers(transport: str, packets: tuple[Packet, ...]) -> list[Action | str]:
    """What each packet is answered with; the text of the error ends it."""
    negotiation = begin(transport)
    found: list[Action | str] = []
    for packet in packets:
        try:
            found.append(negotiation.receive(packet))
        except UnsupportedVersion as error:
            return [*found, error.reply]
    return found


SECOND_SSL = "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2"
SECOND_GSS = "unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2"


@pytest.mark.parametrize(
    ("transport", "packets", "expected"),
    [
        ("TLS", (SSL,), [S]),
        ("TLS", (GSS, SSL), [N, S]),
        ("TLS", (SSL, SSL), [S, SECOND_SSL]),
        ("TLS", (SSL, GSS), [S, SECOND_GSS]),
        ("TLS", (GSS, SSL, SSL), [N, S, SECOND_SSL]),
        ("TLS", (GSS, SSL, GSS), [N, S, SECOND_GSS]),
        ("TLS", (GSS, GSS), [N, SECOND_GSS]),
        ("no TLS", (SSL, GSS), [N, N]),
        ("no TLS", (GSS, SSL), [N, N]),
        ("no TLS", (SSL, SSL), [N, SECOND_SSL]),
        ("no TLS", (GSS, GSS), [N, SECOND_GSS]),
        ("no TLS", (SSL, GSS, SSL), [N, N, SECOND_SSL]),
        ("no TLS", (GSS, SSL, GSS), [N, N, SECOND_GSS]),
        ("direct", (SSL, GSS), [N, N]),
        ("direct", (GSS, SSL), [N, N]),
        ("direct", (SSL, SSL), [N, SECOND_SSL]),
        ("direct", (GSS, GSS), [N, SECOND_GSS]),
        ("direct", (SSL, GSS, SSL), [N, N, SECOND_SSL]),
    ],
)
def test_each_request_is_answered_as_by_postgresql(
    transport: str, packets: tuple[Packet, ...], expected: list[Action | str]
) -> None:
    assert answers(transport, packets) == expected


@pytest.mark.parametrize("transport", ["TLS", "no TLS", "direct"])
def test_no_sequence_of_requests_goes_on_for_more_than_two_answers_and_tls_begins_once(
    transport: str,
) -> None:
    for packets in itertools.product((SSL, GSS), repeat=6):
        found = answers(transport, packets)
        assert len(found) <= 3
        assert isinstance(found[-1], str)
        assert found.count(S) <= (transport == "TLS")


@pytest.mark.parametrize("packet", [SSL, GSS, *ENDS])
def test_nothing_is_heard_after_a_violation(packet: Packet) -> None:
    negotiation = begin("TLS")
    negotiation.receive(SSL)
    with pytest.raises(UnsupportedVersion):
        negotiation.receive(SSL)
    with pytest.raises(ProtocolViolation):
        negotiation.receive(packet)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("before", [(), (SSL,), (GSS,), (GSS, SSL)])
@pytest.mark.parametrize("transport", ["TLS", "no TLS", "direct"])
def test_a_startup_message_or_cancel_request_may_come_in_every_state_and_ends_it(
    transport: str, before: tuple[Packet, ...], end: Packet
) -> None:
    negotiation = begin(transport)
    for packet in before:
        negotiation.receive(packet)
    assert negotiation.receive(end) is Action.PROCEED
    for packet in (SSL, GSS, *ENDS):
        with pytest.raises(ProtocolViolation):
            negotiation.receive(packet)


def test_direct_tls_where_none_is_offered_ends_without_an_answer() -> None:
    negotiation = ClientNegotiation(offers_tls=False)
    with pytest.raises(ProtocolViolation) as caught:
        negotiation.direct_tls()
    assert caught.value.sqlstate is None
    assert negotiation.state is State.DONE


@pytest.mark.parametrize("packet", [SSL, GSS, *ENDS])
def test_direct_tls_is_the_very_first_thing_or_nothing(packet: Packet) -> None:
    negotiation = ClientNegotiation(offers_tls=True)
    negotiation.receive(packet)
    with pytest.raises(ProtocolViolation):
        negotiation.direct_tls()


def test_direct_tls_begins_with_a_handshake_record() -> None:
    assert TLS_HANDSHAKE == b"\x16"
