"""pgtlsproxy: a TLS proxy for PostgreSQL that enforces certificates and pg_hba.conf."""

__version__ = "0.1.0"
