from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pgtlsproxy.policy import addresses
from pgtlsproxy.policy.addresses import AddressError, AddressKeyword, HostName
from pgtlsproxy.policy.records import Token


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.1.2.3/032", "10.1.2.3/32"),
        ("::1/128", "::1/128"),
        ("2001:db8::5/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_a_network_with_bits_is_read_and_its_host_bits_ignored(text: str, expected: str) -> None:
    assert addresses.parse_cidr(Token(text)) == ip_network(expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.0/33", "invalid CIDR mask"),
        ("10.0.0.0/", "invalid CIDR mask"),
        ("10.0.0.0/+8", "invalid CIDR mask"),
        ("10.0.0.0/8x", "invalid CIDR mask"),
        ("10.0.0.0/8/8", "invalid CIDR mask"),
        ("10.0.0.0/\u0668", "invalid CIDR mask"),
        ("10.0.0.0/-1", "invalid CIDR mask"),
        ("::/129", "invalid CIDR mask"),
        ("10.1/8", "four decimal numbers"),
        ("010.0.0.1/8", "four decimal numbers"),
        ("0x7f.1/8", "four decimal numbers"),
        ("256.0.0.1/8", "four decimal numbers"),
        ("fe80::1%eth0/64", "leave the zone out"),
        ("fe80:::1/64", "invalid IP address"),
        ("db.example.com/24", 'specifying both host name and CIDR mask is invalid: "db.example.com/24"'),
        ("::ffff:10.0.0.0/104", "would never match"),
    ],
)
def test_a_network_that_could_be_read_otherwise_is_refused(text: str, problem: str) -> None:
    with pytest.raises(AddressError) as caught:
        addresses.parse_cidr(Token(text))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("address", "mask", "expected"),
    [
        ("10.1.2.3", "255.0.0.0", "10.0.0.0/8"),
        ("10.1.2.3", "255.255.255.255", "10.1.2.3/32"),
        ("10.1.2.3", "0.0.0.0", "0.0.0.0/0"),
        ("10.1.2.3", "255.255.128.0", "10.1.0.0/17"),
        ("2001:db8::1", "ffff:ffff::", "2001:db8::/32"),
    ],
)
def test_a_mask_of_its_own_is_read(address: str, mask: str, expected: str) -> None:
    assert addresses.parse_masked(ip_address(address), Token(mask)) == ip_network(expected)


@pytest.mark.parametrize(
    ("address", "mask", "problem"),
    [
        ("10.1.2.3", "cert", 'invalid IP mask "cert"'),
        ("10.1.2.3", "255.1", 'invalid IP mask "255.1"'),
        ("10.1.2.3", "ffff::", "IP address and mask do not match"),
        ("10.1.2.3", "255.0.255.0", "must stand together"),
        ("10.1.2.3", "0.0.0.255", "must stand together"),
    ],
)
def test_a_mask_that_is_none_is_refused(address: str, mask: str, problem: str) -> None:
    with pytest.raises(AddressError) as caught:
        addresses.parse_masked(ip_address(address), Token(mask))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("db.example.com", "db.example.com", True),
        ("DB.example.com", "db.EXAMPLE.com", True),
        ("db.example.com", "xdb.example.com", False),
        ("db.example.com", "db.example.com.", False),
        (".example.com", "db.example.com", True),
        (".EXAMPLE.com", "a.b.example.COM", True),
        (".example.com", "example.com", False),
        (".example.com", "badexample.com", False),
        (".k", "x.\u212a", False),
        ("all", "all", True),
    ],
)
def test_a_host_name_matches_whole_or_by_its_end(text: str, name: str, *, expected: bool) -> None:
    wanted = addresses.parse_address(Token(text))
    assert isinstance(wanted, HostName)
    assert wanted.matches(name) is expected


@pytest.mark.parametrize("text", ["", "a b", "10.0.0.0\\8", "d\u00fc.example.com", "a,b"])
def test_what_is_neither_address_nor_name_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="invalid host name"):
        addresses.parse_address(Token(text))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("127.0.0.1/32", True),
        ("127.0.0.0/8", True),
        ("126.0.0.0/7", False),
        ("0.0.0.0/0", False),
        ("::1/128", True),
        ("::/127", False),
        ("10.0.0.0/8", False),
    ],
)
def test_loopback_is_what_lies_wholly_inside_it(network: str, *, expected: bool) -> None:
    assert addresses.is_loopback(ip_network(network)) is expected


INTERFACES = (ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64"))


@pytest.mark.parametrize(
    ("wanted", "address", "expected"),
    [
        (AddressKeyword.ALL, "203.0.113.1", True),
        (AddressKeyword.SAMEHOST, "192.0.2.7", True),
        (AddressKeyword.SAMEHOST, "192.0.2.8", False),
        (AddressKeyword.SAMENET, "192.0.2.8", True),
        (AddressKeyword.SAMENET, "192.0.3.8", False),
        (AddressKeyword.SAMENET, "2001:db8::8", True),
        (ip_network("10.0.0.0/8"), "10.9.9.9", True),
        (ip_network("10.0.0.0/8"), "::ffff:10.9.9.9", False),
        (ip_network("::/0"), "10.9.9.9", False),
        (ip_network("0.0.0.0/0"), "::1", False),
    ],
)
def test_an_address_matches_only_its_own_family(
    wanted: addresses.Network | AddressKeyword, address: str, *, expected: bool
) -> None:
    assert addresses.matches(wanted, ip_address(address), INTERFACES) is expected


def test_a_quoted_keyword_is_no_keyword() -> None:
    assert addresses.keyword(Token("samenet")) is AddressKeyword.SAMENET
    assert addresses.keyword(Token("all", quoted=True)) is None
