"""Which CA a name stands for: one key, or none; and what is warned of lists that refuse all that a CA has issued."""

from pathlib import Path

import pytest
from cryptography import x509

from fixtures.certs import Authority
from fixtures.crls import ISSUING_DISTRIBUTION_POINT, crl
from pgtlsproxy.tls.anchors import crl_warning, keys_by_name
from pgtlsproxy.tls.certificates import key_fingerprint
from pgtlsproxy.tls.trust import Trust


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> list[Authority]:
    """Two that bear one name, and a third."""
    folder: Path = tmp_path_factory.mktemp("authorities")
    return [Authority.root(folder / name, name.partition("#")[0]) for name in ("CA, one", "CA, one#", "CA")]


def keys_of(*authorities: Authority) -> dict[str, str | None]:
    return keys_by_name(Trust(tuple(each.issued.certificate for each in authorities)))


def test_a_name_stands_for_the_key_of_its_ca(authorities: list[Authority]) -> None:
    one, _, third = authorities
    found = keys_of(one, third)
    assert found == {
        "CN=CA\\, one": key_fingerprint(one.issued.certificate),
        "CN=CA": key_fingerprint(third.issued.certificate),
    }
    assert len(set(found.values())) == 2


def test_a_ca_that_was_renewed_with_its_key_is_one(authorities: list[Authority]) -> None:
    one = authorities[0]
    renewed = one.renewed()
    assert renewed.issued.certificate != one.issued.certificate
    assert keys_of(one, renewed) == {"CN=CA\\, one": key_fingerprint(one.issued.certificate)}


def test_a_name_that_several_keys_bear_stands_for_none_of_them(authorities: list[Authority]) -> None:
    one, namesake, _ = authorities
    for anchors in ((one, namesake), (namesake, one), (one, namesake, one), (one, namesake, namesake)):
        assert keys_of(*anchors) == {"CN=CA\\, one": None}


USERS_ALONE = ISSUING_DISTRIBUTION_POINT, True, b"\x30\x03\x81\x01\xff"
CAS_ALONE = ISSUING_DISTRIBUTION_POINT, True, b"\x30\x03\x82\x01\xff"


def warning_of(authorities: list[Authority], *lists: bytes) -> str | None:
    anchors = tuple(each.issued.certificate for each in authorities)
    return crl_warning(Trust(anchors, tuple(map(x509.load_pem_x509_crl, lists)), check_crls=True))


def test_lists_by_which_every_root_is_in_order_are_not_warned_of(authorities: list[Authority]) -> None:
    one, _, third = authorities
    assert warning_of([one, third], crl(one, [1]), crl(third)) is None
    assert warning_of([one], crl(one, extensions=[CAS_ALONE])) is None


def test_a_root_without_a_list_is_named(authorities: list[Authority]) -> None:
    one, namesake, third = authorities
    found = warning_of([one, third], crl(third))
    assert found is not None
    assert found.startswith("has no revocation list of CN=CA\\, one, only of CN=CA: ")
    assert "has no revocation list of CN=CA\\, one" in str(warning_of([one], crl(namesake)))


def test_a_root_that_has_revoked_itself_is_named(authorities: list[Authority]) -> None:
    third = authorities[2]
    found = warning_of([third], crl(third, [third.issued.certificate.serial_number]))
    assert found == "has a list by which CN=CA is revoked itself, with all that it issued"


def test_a_root_that_its_list_does_not_cover_is_named(authorities: list[Authority]) -> None:
    third = authorities[2]
    found = warning_of([third], crl(third, extensions=[USERS_ALONE]))
    assert found is not None
    assert found.startswith(
        "has lists of CN=CA for a part of the certificates alone (issuingDistributionPoint)"
    )
    assert warning_of([third], crl(third, extensions=[USERS_ALONE]), crl(third)) is None
