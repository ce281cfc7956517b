"""The self-test fails on the very mistakes that it is there for."""

import pytest
from OpenSSL import SSL

from pgtlsproxy.proxy.selftest import SelfTestFailed, prove_tls
from pgtlsproxy.tls import contexts


def test_what_we_ship_passes():
    prove_tls()


def test_a_callback_that_answers_yes_is_found_out(monkeypatch):
    monkeypatch.setattr(contexts, "_note_verify_error", lambda *_: True)
    with pytest.raises(SelfTestFailed, match="a revoked certificate was let in"):
        prove_tls()


def test_crls_that_are_loaded_and_not_enforced_are_found_out(monkeypatch):
    monkeypatch.setattr(contexts.crypto.X509Store, "set_flags", lambda *_: None)
    with pytest.raises(SelfTestFailed, match="a revoked certificate was let in"):
        prove_tls()


def test_certificates_that_are_not_asked_for_are_found_out(monkeypatch):
    monkeypatch.setattr(SSL.Context, "set_verify", lambda *_: None)
    with pytest.raises(SelfTestFailed, match="was let in"):
        prove_tls()


def test_sessions_that_resume_are_found_out(monkeypatch):
    monkeypatch.setattr(SSL.Context, "set_session_cache_mode", lambda *_: None)
    with pytest.raises(SelfTestFailed, match="a session was resumed"):
        prove_tls()
