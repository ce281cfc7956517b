"""Whether a chain is vouched for under another trust than the one that let it in."""

import pytest
from cryptography import x509

from fixtures.certs import Authority, common_names
from fixtures.chains import CA, node, saved, usages
from pgtlsproxy.tls.trust import Trust
from pgtlsproxy.tls.vouching import Vouching


@pytest.fixture
def leaf(certs):
    return certs.ca.issue(common_names("alice"), usage="client")


def anchors(*authorities):
    return tuple(each.issued.certificate for each in authorities)


def chain_of(issued, authority):
    return (issued.certificate, *authority.chain, authority.issued.certificate)


def crl(path):
    return x509.load_pem_x509_crl(path.read_bytes())


def both(trust, chain):
    """The verdicts on one that is there and on one that comes."""
    return [Vouching(trust, checks_time=checks_time).problem(chain) for checks_time in (False, True)]


def test_a_chain_is_vouched_for_while_its_ca_is_there(certs, leaf):
    chain = chain_of(leaf, certs.ca)
    assert both(Trust(anchors(certs.ca, certs.other_ca)), chain) == [None, None]


def test_nobody_vouches_where_the_ca_was_taken_out_or_nobody_is_asked_any_more(certs, leaf):
    chain = chain_of(leaf, certs.ca)
    assert all(both(Trust(anchors(certs.other_ca)), chain))
    assert all(both(None, chain))
    assert all(both(None, chain[:1]))


def test_nobody_vouches_for_a_server_as_a_client(certs):
    issued = certs.ca.issue(common_names("alice"), usage="server")
    verdicts = both(Trust(anchors(certs.ca)), chain_of(issued, certs.ca))
    assert verdicts == ["at depth 0: unsuitable certificate purpose"] * 2


def test_a_ca_of_the_same_name_does_not_vouch(certs, tmp_path):
    twin = Authority.root(tmp_path / "twin", "pgtlsproxy test CA")
    issued = twin.issue(common_names("alice"), usage="client")
    assert all(both(Trust(anchors(certs.ca)), chain_of(issued, twin)))


def test_who_is_on_the_newest_list_is_named_as_revoked(certs, leaf):
    trust = Trust(anchors(certs.ca), (crl(certs.ca.crl(leaf)),), check_crls=True)
    assert both(trust, chain_of(leaf, certs.ca)) == ["at depth 0: certificate revoked"] * 2
    other = certs.ca.issue(common_names("bob"), usage="client")
    assert both(trust, chain_of(other, certs.ca)) == [None, None]


def test_an_intermediate_that_is_revoked_takes_its_leaves_along(certs):
    middle = certs.ca.intermediate("middle")
    issued = middle.issue(common_names("alice"), usage="client")
    lists = (crl(certs.ca.crl(middle.issued)), crl(middle.crl()))
    trust = Trust(anchors(certs.ca), lists, check_crls=True)
    chain = (issued.certificate, middle.issued.certificate, certs.ca.issued.certificate)
    assert both(trust, chain) == ["at depth 1: certificate revoked"] * 2


def test_a_list_for_every_ca_of_the_chain_is_needed(certs, leaf):
    trust = Trust(anchors(certs.ca), (), check_crls=True)
    assert both(trust, chain_of(leaf, certs.ca)) == ["at depth 0: unable to get certificate CRL"] * 2


def test_a_root_that_has_revoked_itself_vouches_for_nobody(certs, leaf):
    trust = Trust(anchors(certs.ca), (crl(certs.ca.crl(certs.ca.issued)),), check_crls=True)
    assert both(trust, chain_of(leaf, certs.ca)) == ["at depth 1: certificate revoked"] * 2


def test_a_self_signed_certificate_needs_a_list_of_its_own_that_is_valid_when_it_comes(certs, tmp_path):
    usage = usages("digital_signature", "key_cert_sign", "crl_sign")
    own = Authority(tmp_path, saved(tmp_path / "own", node("alice", None, (CA, usage))))
    chain = (own.issued.certificate,)
    no_list = "at depth 0: unable to get certificate CRL"
    for lists, verdicts in (
        ((), [no_list, no_list]),
        ((certs.ca.crl(),), [no_list, no_list]),
        ((own.crl(),), [None, None]),
        ((own.crl(expired=True),), [None, "at depth 0: CRL has expired"]),
        ((own.crl(own.issued),), ["at depth 0: certificate revoked"] * 2),
    ):
        assert both(Trust(anchors(own), tuple(map(crl, lists)), check_crls=True), chain) == verdicts


def test_what_ran_out_meanwhile_ends_a_login_and_no_session(certs):
    issued = certs.ca.expired(common_names("alice"), usage="client")
    assert both(Trust(anchors(certs.ca)), chain_of(issued, certs.ca)) == [
        None,
        "at depth 0: certificate has expired",
    ]
    revoked = Trust(anchors(certs.ca), (crl(certs.ca.crl(issued)),), check_crls=True)
    assert "revoked" in both(revoked, chain_of(issued, certs.ca))[0]


def test_a_list_that_ran_out_ends_a_login_and_no_session_but_those_on_it(certs, leaf):
    chain = chain_of(leaf, certs.ca)
    lists = (crl(certs.ca.crl(expired=True)),)
    assert both(Trust(anchors(certs.ca), lists, check_crls=True), chain) == [
        None,
        "at depth 0: CRL has expired",
    ]
    lists = (crl(certs.ca.crl(leaf, expired=True)),)
    assert (
        both(Trust(anchors(certs.ca), lists, check_crls=True), chain)[0] == "at depth 0: certificate revoked"
    )


def test_the_issuer_is_who_signed_in_the_chain_that_verifies(certs, leaf):
    trust = Trust(anchors(certs.ca, certs.other_ca))
    assert issuer(trust, chain_of(leaf, certs.ca)) == certs.ca.issued.certificate
    assert issuer(trust, (leaf.certificate,)) == certs.ca.issued.certificate
    middle = certs.ca.intermediate("middle")
    shown = (middle.issue(common_names("alice"), usage="client").certificate, middle.issued.certificate)
    assert issuer(trust, shown) == middle.issued.certificate


def issuer(trust, chain):
    return Vouching(trust, checks_time=True).issuer(chain)
