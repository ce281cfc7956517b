"""The addresses of this host, for `samehost` and `samenet` in pg_hba.conf."""

from __future__ import annotations

import ipaddress

import ifaddr

from pgtlsproxy.policy.addresses import Interface


def own_interfaces() -> tuple[Interface, ...]:
    """The addresses of this host with their networks."""
    found: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            address = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(ipaddress.ip_interface(f"{address}/{entry.network_prefix}"))
    return tuple(found)
