"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) as PostgreSQL and libpq speak them.

`server` asks a client for a proof, `client` gives one to a server, and `bridge` stands between the two and
holds a verifier only. Each is a row of stages: a stage is a value that carries the bytes to be sent, and its
one method takes the bytes that come back and gives the next. Nothing here reads or writes; all a stage knows
of TLS is the hash of a certificate (`tls-server-end-point`, RFC 5929, section 4).
"""
