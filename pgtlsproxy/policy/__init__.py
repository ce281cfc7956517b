"""pg_hba.conf and pg_ident.conf: pure functions, no I/O."""
