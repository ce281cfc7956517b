"""The only code that touches OpenSSL."""
