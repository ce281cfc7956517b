"""Distinguished names, in the one form in which PostgreSQL compares them.

`clientname=DN` and the `connection authenticated` line use what `X509_NAME_print_ex` makes with
XN_FLAG_RFC2253 (`be_tls_open_server` in be-secure-openssl.c). `cryptography` prints another form,
and its OpenSSL binding has no such function, so the formatter is here.

Three things are stricter than OpenSSL. A name with a code point that is no Unicode character is
refused, because OpenSSL leaves it out and so prints two names alike. So is a string in pieces, which
DER does not have and OpenSSL puts together. And only the types that directories use have short
names; OpenSSL also has them for algorithms and object classes, which here are printed by number, as
unknown types are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.tls.der import (
    CONSTRUCTED,
    SEQUENCE,
    SET,
    Element,
    MalformedDER,
    elements,
    object_identifier,
    sole_element,
)

COMMON_NAME: Final = "2.5.4.3"

_SHORT_NAME_ARCS: Final = {
    # X.520
    "2.5.4": (
        "3 CN,4 SN,5 serialNumber,6 C,7 L,8 ST,9 street,10 O,11 OU,12 title,13 description,"
        "14 searchGuide,15 businessCategory,16 postalAddress,17 postalCode,18 postOfficeBox,"
        "19 physicalDeliveryOfficeName,20 telephoneNumber,21 telexNumber,22 teletexTerminalIdentifier,"
        "23 facsimileTelephoneNumber,24 x121Address,25 internationaliSDNNumber,26 registeredAddress,"
        "27 destinationIndicator,28 preferredDeliveryMethod,29 presentationAddress,"
        "30 supportedApplicationContext,31 member,32 owner,33 roleOccupant,34 seeAlso,35 userPassword,"
        "36 userCertificate,37 cACertificate,38 authorityRevocationList,39 certificateRevocationList,"
        "40 crossCertificatePair,41 name,42 GN,43 initials,44 generationQualifier,"
        "45 x500UniqueIdentifier,46 dnQualifier,47 enhancedSearchGuide,48 protocolInformation,"
        "49 distinguishedName,50 uniqueMember,51 houseIdentifier,52 supportedAlgorithms,"
        "53 deltaRevocationList,54 dmdName,65 pseudonym,72 role,97 organizationIdentifier,"
        "98 c3,99 n3,100 dnsName"
    ),
    # RFC 1274 and RFC 4519
    "0.9.2342.19200300.100.1": (
        "1 UID,2 textEncodedORAddress,3 mail,4 info,5 favouriteDrink,6 roomNumber,7 photo,8 userClass,"
        "9 host,10 manager,11 documentIdentifier,12 documentTitle,13 documentVersion,14 documentAuthor,"
        "15 documentLocation,20 homeTelephoneNumber,21 secretary,22 otherMailbox,23 lastModifiedTime,"
        "24 lastModifiedBy,25 DC,26 aRecord,27 pilotAttributeType27,28 mXRecord,29 nSRecord,"
        "30 sOARecord,31 cNAMERecord,37 associatedDomain,38 associatedName,39 homePostalAddress,"
        "40 personalTitle,41 mobileTelephoneNumber,42 pagerTelephoneNumber,43 friendlyCountryName,"
        "44 uid,45 organizationalStatus,46 janetMailbox,47 mailPreferenceOption,48 buildingName,"
        "49 dSAQuality,50 singleLevelQuality,51 subtreeMinimumQuality,52 subtreeMaximumQuality,"
        "53 personalSignature,54 dITRedirect,55 audio,56 documentPublisher"
    ),
    # PKCS #9
    "1.2.840.113549.1.9": (
        "1 emailAddress,2 unstructuredName,3 contentType,4 messageDigest,5 signingTime,"
        "6 countersignature,7 challengePassword,8 unstructuredAddress,9 extendedCertificateAttributes,"
        "14 extReq,15 SMIME-CAPS,16 SMIME,20 friendlyName,21 localKeyID"
    ),
    # RFC 3739
    "1.3.6.1.5.5.7.9": (
        "1 id-pda-dateOfBirth,2 id-pda-placeOfBirth,3 id-pda-gender,4 id-pda-countryOfCitizenship,"
        "5 id-pda-countryOfResidence"
    ),
    # Extended validation certificates
    "1.3.6.1.4.1.311.60.2.1": "1 jurisdictionL,2 jurisdictionST,3 jurisdictionC",
    # Russian state register numbers
    "1.2.643.100": "1 OGRN,3 SNILS,5 OGRNIP,111 subjectSignTool,112 issuerSignTool,113 classSignTool",
    "1.2.643.3.131.1": "1 INN",
}

SHORT_NAMES: Final = {
    f"{arc}.{entry.split()[0]}": entry.split()[1]
    for arc, entries in _SHORT_NAME_ARCS.items()
    for entry in entries.split(",")
}
"""OpenSSL's short names of attribute types, by object identifier."""

_OCTETS_PER_CHARACTER: Final = {
    0x0C: 1,  # UTF8String: OpenSSL escapes its bytes as they stand
    0x12: 1,  # NumericString
    0x13: 1,  # PrintableString
    0x14: 1,  # T61String, which OpenSSL reads as Latin-1
    0x16: 1,  # IA5String
    0x1A: 1,  # VisibleString
    0x1C: 4,  # UniversalString
    0x1E: 2,  # BMPString
}
_UTF8_STRING: Final = 0x0C

_ALWAYS_ESCAPED: Final = b',+"\\<>;'


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a name.

    Args:
        oid: its type in dotted decimal.
        value: its value as encoded.
        rdn: which RelativeDistinguishedName it stands in, counted from 0.
    """

    oid: str
    value: Element
    rdn: int


def parse(encoding: bytes) -> tuple[Attribute, ...]:
    """The attributes of a Name (RFC 5280 4.1.2.4) in the order of the encoding.

    Raises:
        MalformedDER: not a Name.
    """
    return tuple(_attributes(sole_element(encoding, SEQUENCE)))


def common_names(attributes: tuple[Attribute, ...]) -> tuple[bytes, ...]:
    """The values of every commonName in the order of the encoding, raw; a SEQUENCE whole, as OpenSSL."""
    values = (attribute.value for attribute in attributes if attribute.oid == COMMON_NAME)
    return tuple(value.encoding if value.tag == SEQUENCE else value.content for value in values)


def unnamed_types(attributes: tuple[Attribute, ...]) -> tuple[str, ...]:
    """The types without a short name, each once."""
    return tuple(dict.fromkeys(each.oid for each in attributes if each.oid not in SHORT_NAMES))


def rfc2253(attributes: tuple[Attribute, ...]) -> str:
    """A name as PostgreSQL prints it: last RDN first, everything but plain ASCII escaped.

    Raises:
        MalformedDER: a value whose characters cannot be told.
    """
    parts: list[str] = []
    previous: int | None = None
    for attribute in reversed(attributes):
        if previous is not None:
            parts.append("+" if attribute.rdn == previous else ",")
        previous = attribute.rdn
        parts.append(_assertion(attribute))
    return "".join(parts)


def _attributes(name: Element) -> Iterator[Attribute]:
    for index, rdn in enumerate(elements(name.content)):
        if rdn.tag != SET:
            raise MalformedDER("expected a RelativeDistinguishedName")
        for pair in elements(rdn.content):
            parts = list(elements(pair.content))
            if pair.tag != SEQUENCE or len(parts) != 2:
                raise MalformedDER("expected an attribute type and its value")
            if parts[1].tag & CONSTRUCTED and parts[1].tag != SEQUENCE:
                raise MalformedDER("a string is in pieces, which DER does not have")
            yield Attribute(object_identifier(parts[0]), parts[1], index)


def _assertion(attribute: Attribute) -> str:
    label = SHORT_NAMES.get(attribute.oid)
    width = _OCTETS_PER_CHARACTER.get(attribute.value.tag)
    if label is None or width is None:
        return f"{label or attribute.oid}=#{attribute.value.encoding.hex().upper()}"
    return f"{label}={_escaped(attribute.value, width)}"


def _escaped(value: Element, width: int) -> str:
    content = value.content
    if len(content) % width:
        raise MalformedDER("a string of wide characters has an odd length")
    if value.tag == _UTF8_STRING:
        characters = [content[at : at + 1] for at in range(len(content))]
    else:
        characters = [_utf8(int.from_bytes(content[at : at + width])) for at in range(0, len(content), width)]
    last = len(characters) - 1
    return "".join(
        _escaped_octet(octet, first=at == 0 and at != last, last=at == last)
        for at, character in enumerate(characters)
        for octet in character
    )


def _utf8(code: int) -> bytes:
    try:
        return chr(code).encode()
    except (ValueError, OverflowError):  # a surrogate, or beyond Unicode
        raise MalformedDER(f"0x{code:x} is no Unicode character") from None


def _escaped_octet(octet: int, *, first: bool, last: bool) -> str:
    # RFC 2253 2.4, as OpenSSL does it: what is the only character counts as the last, not as the first.
    if octet < 0x20 or octet > 0x7E:
        return f"\\{octet:02X}"
    character = chr(octet)
    if octet in _ALWAYS_ESCAPED or (character == " " and (first or last)) or (character == "#" and first):
        return "\\" + character
    return character
