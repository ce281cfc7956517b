"""A throw-away PostgreSQL, and a tour of the proxy in front of it."""
