"""The cases of the public suites and what becomes of them, found out once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import trio

from chains.case import Case, Role
from chains.issuing import pem
from chains.verdicts import OURS, WANTS_A_CERTIFICATE, LibpqServer, Verdict, server_verdict
from fixtures.postgres import ClusterFactory

Verdicts = Mapping[str, Verdict]


def ours(cases: Sequence[Case], role: Role) -> Verdicts:
    """What the proxy makes of them."""

    async def run() -> Verdicts:
        return {case.id: await OURS[role](case) for case in cases}

    return trio.run(run)


@pytest.fixture(scope="module")
def postgresql(tls_cluster: ClusterFactory) -> Callable[[Sequence[Case]], Verdicts]:
    """What a PostgreSQL 17 makes of clients; all roots stand in one ssl_ca_file, since no two cases have a name in
    common. With lists every CA needs one, so that cases with and without lists have a server each."""

    def judge(cases: Sequence[Case]) -> Verdicts:
        found: dict[str, Verdict] = {}
        for has_lists in (False, True):
            some = [case for case in cases if (case.crls is not None) == has_lists and case.judged_at is None]
            if not some:
                continue
            roots = dict.fromkeys(root.pem for case in some for root in case.roots)
            files, settings = {"root.crt": b"".join(roots)}, {}
            if has_lists:
                files["root.crl"] = b"".join(pem(crl, "X509 CRL") for case in some for crl in case.crls or ())
                settings["ssl_crl_file"] = "root.crl"
            server = tls_cluster(17, WANTS_A_CERTIFICATE, settings=settings, files=files)
            found |= {case.id: server_verdict(case, (server.host, server.port)) for case in some}
        return found

    return judge


@pytest.fixture(scope="module")
def libpq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Sequence[Case]], Verdicts]]:
    """What libpq makes of servers."""
    folder: Path = tmp_path_factory.mktemp("libpq")
    server = LibpqServer(folder)
    yield lambda cases: {case.id: server.verdict(case) for case in cases if case.judged_at is None}
    server.close()
