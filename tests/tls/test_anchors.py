"""Which CA a name stands for: one key, or none."""

from pathlib import Path

import pytest

from fixtures.certs import Authority
from pgtlsproxy.tls.anchors import keys_by_name
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
