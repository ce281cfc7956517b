"""What goes over the socket pair arrives whole, with what is open; what a worker says is taken for what it is."""

import os
import socket
import threading

import pytest

from pgtlsproxy.config import Log
from pgtlsproxy.identity import Secret
from pgtlsproxy.proxy import channel
from pgtlsproxy.proxy.channel import Answers, ChannelEnded, Orders, pack
from pgtlsproxy.proxy.files import SnapshotFiles
from pgtlsproxy.proxy.orders import (
    Build,
    Built,
    Descriptor,
    Drain,
    FileSet,
    Logging,
    Serve,
    Serving,
    Swap,
    Swapped,
    Welcome,
)
from pgtlsproxy.tls.file_access import Folder, UnusableFile

LONG = 5_000_000
"""Octets; far more than a socket's buffer takes."""


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Orders(ours), Answers(theirs)


def delivered(ends, *orders):
    """What the worker receives, while the supervisor sends as its selector would have it."""
    up, down = ends
    received = []
    reader = threading.Thread(target=lambda: received.extend(down.receive() for _ in orders))
    reader.start()
    for order in orders:
        up.send(pack(order))
    while reader.is_alive():
        up.flush()
        reader.join(0.001)
    assert not up.wants_to_send
    return received


def files(folder):
    return SnapshotFiles(
        "p.yaml", None, (), {"ca.crt": b"x" * LONG, "gone.crt": UnusableFile("gone")}, {"key": b"secret"}, {},
        {"users": folder}, None, {"a": Secret(b"sesame")},
    )  # fmt: skip


def test_files_of_any_length_arrive_in_order_with_their_secrets_and_folders(ends, tmp_path):
    (tmp_path / "alice.crt").write_bytes(b"alice's")
    folder = Folder(str(tmp_path), "folder")
    sent = Build(7, 2, (FileSet(7, files(folder), 7),), beside=True)
    build, swap = delivered(ends, sent, Swap(7))
    assert (swap, build.generation, build.beside) == (Swap(7), 7, True)
    got = build.sets[0].files
    assert got.plain["ca.crt"] == b"x" * LONG
    assert str(got.plain["gone.crt"]) == "gone"
    assert got.keys == {"key": b"secret"}
    assert got.passphrases == {"a": Secret(b"sesame")}
    assert "sesame" not in repr(build) + repr(sent) + repr(pack(sent))
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert got.folders["users"].read_file("alice.crt", "certificate file") == b"alice's", "the very folder"
    assert got.folders["users"].path == str(tmp_path)
    assert os.fstat(got.folders["users"].fileno()).st_ino == os.fstat(folder.fileno()).st_ino


def test_what_goes_along_stays_open_until_it_is_sent(ends, tmp_path):
    up, down = ends
    folder = Folder(str(tmp_path), "folder")
    before = os.fstat(folder.fileno()).st_ino
    while not up.wants_to_send:
        up.send(pack(Build(1, 1, (FileSet(1, files(folder), 1),), beside=True)))
    up.send(pack(Build(2, 2, (FileSet(2, files(folder), 2),), beside=True)))
    del folder
    stranger = os.open("/", os.O_RDONLY)  # takes the number of a descriptor that was closed too early
    try:
        received = []
        reader = threading.Thread(target=lambda: received.extend(iter(down.receive, Drain(None))))
        reader.start()
        up.send(pack(Drain(None)))
        while reader.is_alive():
            up.flush()
            reader.join(0.001)
        (_, *_, last) = received
        assert os.fstat(last.sets[0].files.folders["users"].fileno()).st_ino == before
    finally:
        os.close(stranger)


def test_more_sockets_than_the_kernel_takes_at_once(ends):
    pairs = [socket.socketpair() for _ in range(300)]
    try:
        (serve,) = delivered(ends, Serve(tuple((str(n), ours) for n, (ours, _) in enumerate(pairs))))
        assert [name for name, _ in serve.listening] == [str(n) for n in range(300)]
        for n, (_, sock) in enumerate(serve.listening):
            pairs[n][1].send(b"%d" % n)
            assert sock.recv(10) == b"%d" % n
            assert not sock.get_inheritable()
            sock.close()
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_a_welcome_brings_all_that_is_shared(ends, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "table").open("wb") as table:
        secret = Secret(b"s" * 32)
        shared = Descriptor(table.fileno())
        sent = Welcome(
            3,
            Logging(Log(level="debug"), shared, 3),
            shared,
            4,
            secret,
            ours,
            (theirs, theirs),
            shared,
            ("a", "b"),
        )
        (welcome,) = delivered(ends, sent)
        with welcome.inbox, welcome.mailboxes[0], welcome.mailboxes[1]:
            assert (welcome.number, welcome.logging.log, welcome.slots) == (3, Log(level="debug"), 4)
            assert (welcome.secret, welcome.listeners) == (secret, ("a", "b"))
            os.close(welcome.tally.number)
            os.close(welcome.logging.lock.number)
            assert os.fstat(welcome.table.number).st_ino == os.fstat(table.fileno()).st_ino
            os.close(welcome.table.number)


def answers_of(ends, count):
    found = []
    while len(found) < count:
        found += ends[0].receive()
    return found


def test_answers_arrive_as_they_were(ends):
    built = Built(
        3, 2, is_usable=True, mistakes=[("a: b", "c" * LONG)], kept=["policy of listener a"], in_use=[1, 3]
    )
    sender = threading.Thread(target=lambda: [ends[1].send(each) for each in (Serving(), built, Swapped(3))])
    sender.start()
    serving, got, swapped = answers_of(ends, 3)
    sender.join()
    assert (serving, swapped) == (Serving(), Swapped(3))
    assert [tuple(each) for each in got.mistakes] == built.mistakes
    assert (got.generation, got.is_usable, got.kept, got.in_use) == (3, True, built.kept, [1, 3])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'["Drain", {}]',
        b'["Serving", {"x": 1}]',
        b'["Swapped", 3]',
        b"\x80\x05N.",
        b"\xff",
    ],
)
def test_what_is_no_answer_ends_the_channel(ends, content):
    ends[1]._sock.sendall(channel._LENGTH.pack(len(content)) + content)
    with pytest.raises(ChannelEnded):
        answers_of(ends, 1)


def test_an_answer_that_claims_to_be_endless_ends_the_channel(ends):
    ends[1]._sock.sendall(channel._LENGTH.pack(1 << 62))
    with pytest.raises(ChannelEnded):
        answers_of(ends, 1)


def test_each_end_notices_when_the_other_is_gone(ends):
    up, down = ends
    up.close()
    with pytest.raises(ChannelEnded):
        down.receive()
    ours, theirs = socket.socketpair()
    with Orders(ours).sock:
        theirs.close()
        orders = Orders(ours)
        orders.send(pack(Drain(None)))
        assert not orders.wants_to_send
        with pytest.raises(ChannelEnded):
            orders.receive()
