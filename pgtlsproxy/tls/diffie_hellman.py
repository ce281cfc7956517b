"""Diffie-Hellman parameters for the DHE suites of TLS 1.2."""

from __future__ import annotations

import base64
import os
import textwrap
from typing import Final

from OpenSSL import SSL

MAX_OCTETS: Final = 4096
"""Longest parameters in PEM. Those of 10,000 bits, beyond which OpenSSL does not compute, have under 2000."""

_MODP_2048: Final = bytes.fromhex(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF"
)
"""The prime of the 2048-bit MODP group (RFC 3526 section 3); its generator is 2."""

# DHParameter (PKCS #3): a SEQUENCE of two INTEGERs, the prime and the generator.
_DER: Final = b"\x30\x82\x01\x08" + b"\x02\x82\x01\x01\x00" + _MODP_2048 + b"\x02\x01\x02"

BUILT_IN: Final = (
    "-----BEGIN DH PARAMETERS-----\n"
    + "\n".join(textwrap.wrap(base64.b64encode(_DER).decode("ascii"), 64))
    + "\n-----END DH PARAMETERS-----\n"
).encode("ascii")
"""What PostgreSQL uses where ssl_dh_params_file is empty (`FILE_DH2048` in libpq-be.h), in PEM."""


class UnusableParameters(Exception):
    """Diffie-Hellman parameters that cannot be used; the text says why."""


def set_parameters(context: SSL.Context, pem: bytes) -> None:
    """Let a server's context negotiate DHE suites.

    pyOpenSSL reads parameters from a path alone. A pipe has one even where no file system can be
    written to, and takes them in before anybody reads.

    Args:
        context: a context that no connection uses yet.
        pem: a block DH PARAMETERS and nothing else.

    Raises:
        UnusableParameters: they are too long, or cannot be handed over.
        SSL.Error: OpenSSL does not take them.
    """
    if len(pem) > MAX_OCTETS:
        raise UnusableParameters(f"they are over {MAX_OCTETS >> 10} kB long")
    try:
        reading, writing = os.pipe()
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pem)
            context.load_tmp_dh(f"/dev/fd/{reading}")
        finally:
            os.close(reading)
    except OSError as error:
        raise UnusableParameters(f"they cannot be handed to OpenSSL: {error.strerror}") from None
