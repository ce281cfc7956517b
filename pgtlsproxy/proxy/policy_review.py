"""What `check` says of policies that can be used: from settings to the ways in that they leave open."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from pgtlsproxy.config import Listener, Settings, TCPAddress
from pgtlsproxy.errors import Mistake
from pgtlsproxy.policy.access import Rules
from pgtlsproxy.policy.addresses import LOOPBACK
from pgtlsproxy.policy.idle import Door
from pgtlsproxy.policy.inclusion import missing
from pgtlsproxy.policy.review import Reviewed, review
from pgtlsproxy.proxy.files import SnapshotFiles


def review_policies(settings: Settings, policies: Iterable[Rules]) -> list[Mistake]:
    """What in the policies of all listeners works, and deserves a look.

    Args:
        settings: what they were made by.
        policies: all of them.
    """
    reviewed = []
    for rules in policies:
        listed = {
            backend.name: backend.reserved_users
            for backend in rules.databases.backends
            if "reserved_users" in settings.backends[backend.name].model_fields_set
        }
        reviewed.append(Reviewed(rules, _door(settings.listeners[rules.listener]), listed))
    return review(reviewed)


def left_out(files: SnapshotFiles) -> list[Mistake]:
    """The lines of all files whose file is included only if it exists, and does not."""
    found = {
        (each.where, each.what): each
        for path, content in files.rules.items()
        if isinstance(content, bytes)
        for each in missing(path, content, files.included)
    }
    return list(found.values())  # once, also where several files include the one with the line


def _door(listener: Listener) -> Door:
    """How clients can come to a listener."""
    hosts = {
        ip_address(host) for each in listener.listen if isinstance(each, TCPAddress) for host in each.hosts
    }
    versions = frozenset(host.version for host in hosts)
    if versions and listener.proxy_protocol_from:
        versions = frozenset({4, 6})  # a load balancer may bring both, whichever it speaks itself
    local = {host.version for host in hosts if host.is_loopback or host.is_unspecified}
    return Door(
        unix=listener.has_unix,
        tls=listener.ssl,
        versions=versions,
        clear_from=(
            *(network for network in LOOPBACK if network.version in local),
            *(network for network in listener.plaintext_from if network.version in versions),
        ),
    )
