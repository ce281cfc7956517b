"""The CAs that lines of pg_hba.conf name (`issuer`), among those that a listener trusts about its clients."""

from __future__ import annotations

from dataclasses import replace

from pgtlsproxy.errors import ConfigError
from pgtlsproxy.policy.access import Rules
from pgtlsproxy.policy.soundness import check_issuers
from pgtlsproxy.tls.anchors import keys_by_name
from pgtlsproxy.tls.trust import Trust


def knowing_issuers(rules: Rules, trust: Trust | None) -> Rules:
    """A policy that knows the CAs which are trusted, where a line of it asks for one.

    A CA that it names and that is trusted no more vouches for nobody.

    Args:
        rules: the policy.
        trust: who vouches for clients; None where nobody does.
    """
    if not rules.asks_for_issuers:
        return rules
    return replace(rules, issuers=keys_by_name(trust) if trust is not None else {})


def with_trusted_issuers(rules: Rules, trust: Trust | None) -> Rules:
    """The same, of a policy that is new.

    Raises:
        ConfigError: a line names a CA that is not trusted, or a name that several have.
    """
    known = knowing_issuers(rules, trust)
    # Without anybody to trust the mistake lies in ssl_ca_file, and is told of it.
    if trust is not None and (mistakes := check_issuers(known)):
        raise ConfigError(mistakes)
    return known
