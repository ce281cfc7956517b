"""Hundreds of megabytes of COPY, out and in, arrive as they were sent, over every pair of legs.

PGTLSPROXY_LONG=1 makes it a gigabyte each way.
"""

import hashlib
import itertools
import os

import psycopg
import pytest

from fixtures.deployments import PROXY_CERTIFICATE_HBA, PROXY_CERTIFICATE_IDENT, config, in_clear, with_certificate
from fixtures.deployments import with_tls
from fixtures.drivers import by_certificate, by_password

LINE = 32 * 62
"""Octets of a line: so short that PostgreSQL keeps it in one piece and as it is."""

LINES = (1_000_000_000 if os.environ.get("PGTLSPROXY_LONG") else 200_000_000) // LINE
"""Each has its own content, so that one lost, doubled or out of order shows."""
