"""A file system that hangs while users' certificates are read holds up their sessions, and nobody else."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fixtures.waiting import until
from pgtlsproxy import pki
from pgtlsproxy.errors import BackendUnavailable
from pgtlsproxy.proxy.user_certificates import READERS, UserCertificates, UserFiles
from pgtlsproxy.tls.contexts import TLSOptions
from pgtlsproxy.tls.file_access import Folder, UnusableFile
from pgtlsproxy.tls.trust import Trust

CA = pki.make_ca("test CA")
USERS = tuple(f"user{number}" for number in range(READERS + 2))


class CountingFolder(Folder):
    """Says how often each file was read, and reads only while it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "folder")
        self.reads: list[str] = []
        self.works = threading.Event()
        self.works.set()

    def read_file(self, name: str, kind: str) -> bytes:
        self.reads.append(name)
        self.works.wait()
        return super().read_file(name, kind)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CountingFolder]:
    for user in USERS:
        issued = pki.issue_client(CA, user)
        (tmp_path / f"{user}.crt").write_bytes(issued.certificate_pem())
        key = tmp_path / f"{user}.key"
        key.touch(mode=0o600)
        key.write_bytes(issued.key_pem().reveal())
    folder = CountingFolder(tmp_path)
    yield folder
    folder.works.set()


@pytest.fixture
def users(folder: CountingFolder) -> UserCertificates:
    files = (UserFiles(folder, "{user}.crt"), UserFiles(folder, "{user}.key"))
    return UserCertificates(*files, None, TLSOptions(), Trust((CA.certificate,)))


async def test_a_hanging_file_system_takes_its_own_threads_alone(
    folder: CountingFolder, users: UserCertificates
) -> None:
    folder.works.clear()
    with trio.fail_after(20):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for user in USERS:
                    nursery.start_soon(users.context_for, user)
                await trio.to_thread.run_sync(until, lambda: len(folder.reads) >= READERS)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert len(folder.reads) == READERS
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        folder.works.set()
        for user in USERS:
            await users.context_for(user)


async def test_sessions_of_one_user_read_its_files_once(
    folder: CountingFolder, users: UserCertificates
) -> None:
    contexts = []

    async def log_in() -> None:
        contexts.append(await users.context_for("user1"))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(log_in)
    assert folder.reads == ["user1.crt"]
    assert len(contexts) == 10
    assert len(set(map(id, contexts))) == 1


async def test_a_hostile_name_costs_no_thread(folder: CountingFolder, users: UserCertificates) -> None:
    folder.works.clear()
    with trio.fail_after(20), pytest.raises(BackendUnavailable, match="under such a name"):
        await users.context_for("../user1")
    assert folder.reads == []


@pytest.mark.parametrize("name", ["../user1.crt", "a/b", "/etc/passwd", "", ".", ".."])
def test_a_folder_opens_names_of_one_component_alone(folder: CountingFolder, name: str) -> None:
    for read in (Folder.read_file, Folder.read_key_file):
        with pytest.raises(UnusableFile, match="the name is no single file's"):
            read(folder, name, os.geteuid())  # type: ignore[operator]


def test_a_folder_is_closed_with_its_last_user(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), "folder")
    descriptor = folder._descriptor
    assert os.fstat(descriptor).st_ino == tmp_path.stat().st_ino
    del folder
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
