"""What one supervisor hands over to the next, which may be of another version."""

import os
import socket

import pytest

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.proxy import handover
from pgtlsproxy.proxy.channel import Built, Descriptor, Orders, Serving, pack
from pgtlsproxy.proxy.handover import VARIABLE, predecessor


@pytest.fixture
def pair(monkeypatch):
    """The predecessor's end; the other one's number is in the environment."""
    ours, theirs = socket.socketpair()
    monkeypatch.setenv(VARIABLE, str(theirs.detach()))
    orders = Orders(ours)
    yield orders
    orders.close()


def offer(orders, *sockets):
    orders.send(pack({"sockets": list(sockets), "a_word_of_a_later_version": 1}))


def described(sock, **words):
    shown = "127.0.0.1:5432"
    files = words.pop("files", None)
    fixed = {"name": "a", "socket": sock, "shown": shown, "configured": shown, "is_passed": False}
    return fixed | {"files": files, "another_word": None} | words


def test_words_of_a_later_version_disturb_nobody(pair):
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as passed:
        offer(pair, described(own), described(passed, name="b", is_passed=True))
        before = predecessor()
        addresses = [sock.getsockname() for sock in (own, passed)]
    assert VARIABLE not in os.environ
    assert [opened.sock.getsockname() for _, opened in before.sockets] == addresses
    assert [(name, opened.is_lent) for name, opened in before.own] == [("a", True)]
    assert [each.name for each in before.passed] == ["b"]
    for _, opened in before.sockets:
        opened.close()
    before.sock.close()


def test_the_files_of_a_unix_socket_come_along_and_stay_while_they_are_lent(pair, tmp_path):
    path, lock_path = tmp_path / "s", tmp_path / "s.lock"
    with socket.socket(socket.AF_UNIX) as sock, lock_path.open("w") as lock:
        sock.bind(str(path))
        inode = path.stat().st_dev, path.stat().st_ino
        offer(pair, described(sock, files=(str(path), inode, Descriptor(lock.fileno()))))
        before = predecessor()
    ((_, opened),) = before.sockets
    opened.close()
    assert path.exists()
    assert lock_path.exists()
    before.sock.close()


def test_what_is_said_back_is_heard(pair):
    offer(pair)
    before = predecessor()
    before.say_failed([Mistake("here", "wrong")])
    before.say_serving()
    failed, serving = pair.receive()
    assert isinstance(failed, Built)
    assert failed.mistakes == [["here", "wrong"]]
    assert isinstance(serving, Serving)
    pair.send(pack({"go": True}))
    assert before.hear()
    pair.close()
    assert not before.hear()
    before.say_serving()  # nobody hears it
    before.sock.close()


@pytest.mark.parametrize("value", ["", "no number", "-1", "0x3", "999999"])
def test_a_variable_that_names_no_socket_is_a_mistake(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{VARIABLE} names no socket on which"):
        predecessor()


def test_a_predecessor_that_offers_nothing_is_not_waited_for_for_ever(pair, monkeypatch):
    monkeypatch.setattr(handover, "OFFER_SECONDS", 0.05)
    with pytest.raises(ConfigError, match="names no socket on which"):
        predecessor()


def test_nobody_is_the_predecessor_of_whoever_is_started_otherwise(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert predecessor() is None
