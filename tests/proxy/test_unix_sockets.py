"""The file of a Unix socket is its newest owner's, and no leftover stops anybody."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pgtlsproxy.config import UnixAddress
from pgtlsproxy.proxy.unix_sockets import BindError, listen_unix


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".s.PGSQL.5432"


@pytest.fixture
def lock(path):
    return path.with_name(path.name + ".lock")


@pytest.fixture
def listen(path):
    """One that listens. Open files lock each other out in one process as well."""
    with ExitStack() as stack:

        def go(*, is_shared=True, permissions=0o700):
            sock, files = listen_unix(UnixAddress(str(path)), permissions, None, is_shared=is_shared)
            stack.callback(sock.close)
            return sock, files

        yield go


def whose(path, *socks):
    """The index of the one that a client comes to."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for index, sock in enumerate(socks):
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                continue
            return index
    return None


def end(sock, files):
    sock.close()
    files.remove()


def test_alone_it_removes_both_files_in_the_end(listen, path, lock):
    for is_shared in (True, False):
        one = listen(is_shared=is_shared)
        assert path.is_socket()
        assert lock.read_text() == f"{os.getpid()}\n"
        end(*one)
        assert list(path.parent.iterdir()) == []


def test_the_newest_has_the_file_and_the_end_of_an_older_one_leaves_it(listen, path, lock):
    first, second, third = listen(), listen(), listen()
    assert whose(path, first[0], second[0], third[0]) == 2
    end(*second)
    end(*first)
    assert whose(path, third[0]) == 0
    assert lock.exists()
    end(*third)
    assert list(path.parent.iterdir()) == []


def test_what_waits_in_the_queue_of_the_old_one_is_accepted_by_it(listen, path):
    first = listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        second = listen()
        first[0].accept()[0].close()
        end(*first)
        with pytest.raises(BlockingIOError):
            second[0].accept()


def test_the_file_of_a_newcomer_that_died_is_taken_over_by_the_next(listen, path):
    first, second = listen(), listen()
    second[0].close()
    second[1].leave()  # as the kernel does
    with pytest.raises(ConnectionRefusedError):
        whose(path)
    third = listen()
    assert whose(path, first[0], third[0]) == 1


def test_a_newcomers_file_never_has_other_permissions(listen, path, monkeypatch):
    listen(permissions=0o700)
    seen = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: seen.append(self.stat().st_mode) or rename(self, to))
    listen(permissions=0o777)
    assert [mode & 0o777 for mode in seen] == [0o777]
    assert path.stat().st_mode & 0o777 == 0o777


def test_a_newcomer_that_fails_leaves_nothing_behind(listen, path, lock, monkeypatch):
    first = listen()
    monkeypatch.setattr(
        Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(BindError, match="Permission denied"):
        listen()
    assert sorted(path.parent.iterdir()) == [path, lock]
    assert whose(path, first[0]) == 0


@pytest.mark.parametrize("first", [True, False])
def test_both_have_to_share(listen, path, monkeypatch, first):
    monkeypatch.setattr("pgtlsproxy.proxy.unix_sockets.BIND_SECONDS", 0.05)
    one = listen(is_shared=first)
    with pytest.raises(BindError, match=rf"held by another pgtlsproxy \(process {os.getpid()}\)"):
        listen(is_shared=not first)
    assert whose(path, one[0]) == 0
    end(*one)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("is_shared", [True, False])
def test_leftovers_stop_nobody_whosever_their_process_id_is_now(listen, path, lock, is_shared):
    sock, files = listen(is_shared=is_shared)
    sock.close()
    files.leave()
    lock.write_text(f"{os.getppid()}\n")
    assert whose(path, listen(is_shared=is_shared)[0]) == 0


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_lock_file_of_a_postgresql_that_lives_is_respected(listen, path, lock, is_shared):
    """PostgreSQL writes five lines and locks nothing."""
    lock.write_text(f"{os.getppid()}\n/var/lib/postgresql/data\n1764600000\n5432\n{path.parent}\n")
    with pytest.raises(BindError, match=f"belongs to process {os.getppid()}, which is alive"):
        listen(is_shared=is_shared)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock.write_text(f"{dead.pid}\n/var/lib/postgresql/data\n1764600000\n5432\n{path.parent}\n")
    listen(is_shared=is_shared)


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_socket_of_a_server_that_answers_is_never_taken(listen, path, is_shared):
    with socket.socket(socket.AF_UNIX) as pooler:
        pooler.bind(str(path))
        pooler.listen()
        with pytest.raises(BindError, match="a server answers there"):
            listen(is_shared=is_shared)
        assert whose(path, pooler) == 0


def test_a_file_that_is_no_socket_is_not_removed(listen, path):
    path.write_text("precious")
    with pytest.raises(BindError, match="is no socket"):
        listen()
    assert path.read_text() == "precious"


def test_a_lock_file_that_its_holder_removes_meanwhile_is_no_lock(listen, path, lock, monkeypatch):
    """Who opened it before has to look again, or two would believe to be alone."""
    holders = [listen(is_shared=False)]
    really_open = os.open

    def open_and_see_it_go(target, *words):
        descriptor = really_open(target, *words)
        while holders:
            end(*holders.pop())
        return descriptor

    monkeypatch.setattr(os, "open", open_and_see_it_go)
    second = listen(is_shared=False)
    assert os.fstat(second[1].lock).st_ino == lock.stat().st_ino
    assert whose(path, second[0]) == 0


LISTENS = """
import sys
from pgtlsproxy.config import UnixAddress
from pgtlsproxy.proxy.unix_sockets import listen_unix
sock, files = listen_unix(UnixAddress(sys.argv[1]), 0o700, None, is_shared=True)
print("listens", flush=True)
sys.stdin.read()
files.remove()
"""


def test_instances_that_start_at_once_all_listen(listen, path):
    with ExitStack() as stack:
        command = [sys.executable, "-c", LISTENS, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        several = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(6)]
        assert [each.stdout.readline() for each in several] == ["listens\n"] * 6
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert whose(path, listen(is_shared=False)[0]) == 0
