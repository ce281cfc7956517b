"""x509-limbo, as far as it can be issued anew.

Its cases are known by their names and by what they are about; the certificates are our own. Left out are what is no
question to PostgreSQL or the proxy, or cannot be issued anew:

* `online::*` and `webpki::*` with saved certificates of public sites, and the saved ones of `rfc5280::serial` and
  `rfc5280::mismatching-signature-algorithm`, which are made here instead;
* `pathlen::max-chain-depth-*` and `pathological::*-max-depth`: a longest chain is a parameter that nobody here has;
* `smime::*`: nobody reads mail here;
* cases of which no description was to be had: `pathological::nc-dos-2` and `-3`, and the newest ones of
  `rfc5280::nc` (asterisks in mail addresses), `rfc5280::san` (addresses as DNS names) and `webpki::san` (public
  suffixes of several labels). What they are about is tried in test_verify.py and in
  test_chains_are_judged_as_by_postgresql.py.
"""

from __future__ import annotations

from typing import Final

from chains.limbo_constraints import CONSTRAINTS
from chains.limbo_crls import CRLS
from chains.limbo_graphs import GRAPHS
from chains.limbo_profile import PROFILE
from chains.limbo_webpki import WEBPKI

LIMBO: Final = GRAPHS | PROFILE | CONSTRAINTS | WEBPKI | CRLS
