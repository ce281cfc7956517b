"""For which hosts a wildcard does not stand, for the CAs above it may not certify them."""

import ipaddress

import pytest
from cryptography import x509

from fixtures.chains import CA, SIGNS, node
from pgtlsproxy.errors import BackendTLSFailed
from pgtlsproxy.tls.name_constraints import require_permitted

HOST = "db.example.com"
ADDRESS = x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))


def names(*texts):
    return [x509.DNSName(text) for text in texts]


def limited(permitted, excluded):
    constraints = x509.NameConstraints(permitted, excluded)
    return node("limited", None, critical=(constraints,)).certificate


FORBIDDEN = {
    "excluded": (None, names("db.example.com")),
    "excluded in capitals": (None, names("DB.Example.com")),
    "below what is excluded": (None, names("example.com")),
    "below what is excluded, with a dot in front": (None, names(".example.com")),
    "excluded beside others": (None, names("a.example", "db.example.com")),
    "everything excluded": (None, names("")),
    "not permitted": (names("web.example.com"), None),
    "only something below it is permitted": (names(".db.example.com"), None),
    "only a name with the same end is permitted": (names("b.example.com"), None),
    "permitted and excluded": (names("example.com"), names("db.example.com")),
}
ALLOWED = {
    "permitted": (names("db.example.com"), None),
    "permitted in capitals": (names("DB.Example.com"), None),
    "below what is permitted": (names("a.example", "example.com"), None),
    "below what is permitted, with a dot in front": (names(".example.com"), None),
    "another is excluded": (None, names("web.example.com", "b.example.com")),
    "only addresses are permitted": ([ADDRESS], None),
    "only addresses are excluded": (None, [ADDRESS]),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_host_that_a_ca_may_not_certify_is_refused_wherever_that_ca_stands(case):
    free, bound = node("free").certificate, limited(*FORBIDDEN[case])
    for chain in ([bound], [bound, free], [free, bound]):
        with pytest.raises(BackendTLSFailed) as refused:
            require_permitted(chain, HOST)
        assert refused.value.reason == (
            f'the name constraints of CN=limited forbid host name "{HOST}", for which a wildcard of the server '
            "certificate stands"
        )


@pytest.mark.parametrize("case", ALLOWED)
def test_any_other_host_is_not(case):
    require_permitted([node("free").certificate, limited(*ALLOWED[case])], HOST)
    require_permitted([], HOST)


def test_constraints_that_cannot_be_read_forbid_every_host():
    odd = x509.UnrecognizedExtension(x509.NameConstraints.oid, b"\x30\x03\xa0\x01\x00")
    with pytest.raises(BackendTLSFailed, match="the name constraints of CN=odd cannot be read"):
        require_permitted([node("odd", None, (CA, SIGNS, odd)).certificate], HOST)
