"""The grammar below all SCRAM messages: `<letter>=<value>` behind one another, with commas between."""

from __future__ import annotations


class Malformed(Exception):
    """A message is not what its grammar says. What kind of error that is depends on who sent it.

    Args:
        detail: in the words of PostgreSQL's DETAIL; harmless in a terminal, and without any value.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Attributes:
    """A message that is read from left to right, as by PostgreSQL's read_attr_value and read_any_attr.

    A comma behind the last value is read over, there and here.

    Args:
        text: the message, or its rest.

    Raises:
        Malformed: it is empty, or has a NUL in it.
    """

    def __init__(self, text: bytes) -> None:
        if not text:
            raise Malformed("The message is empty.")
        if b"\0" in text:
            raise Malformed("Message length does not match input length.")
        self._text = text
        self.offset = 0

    @property
    def rest(self) -> bytes:
        """What has not been read."""
        return self._text[self.offset :]

    @property
    def next(self) -> bytes:
        """The next octet, not taken; empty at the end."""
        return self._text[self.offset : self.offset + 1]

    def take(self) -> bytes:
        """The next octet; empty at the end."""
        taken = self.next
        self.offset += len(taken)
        return taken

    def value(self, name: bytes) -> bytes:
        """The value of the attribute that must come now.

        Raises:
            Malformed: it is another one, or none.
        """
        if self.next != name:
            raise Malformed(f'Expected attribute "{name.decode()}" but found "{shown(self.next)}".')
        return self._value_of(self.take())

    def any(self) -> tuple[bytes, bytes]:
        """The name and value of whatever attribute comes now.

        Raises:
            Malformed: none does.
        """
        if not self.next:
            raise Malformed("Attribute expected, but found end of string.")
        if not self.next.isalpha():
            raise Malformed(f'Attribute expected, but found invalid character "{shown(self.next)}".')
        name = self.take()
        return name, self._value_of(name)

    def _value_of(self, name: bytes) -> bytes:
        if self.take() != b"=":
            raise Malformed(f'Expected character "=" for attribute "{name.decode()}".')
        value, comma, _ = self.rest.partition(b",")
        self.offset += len(value) + len(comma)
        return value


def shown(octet: bytes) -> str:
    """One octet as PostgreSQL's sanitize_char shows it; the end of the message is its NUL."""
    code = octet[0] if octet else 0
    return f"'{chr(code)}'" if 0x21 <= code <= 0x7E else f"0x{code:02x}"


def is_printable(value: bytes) -> bool:
    """Whether a value has only what RFC 5802, section 7, calls printable: ASCII, no space."""
    return all(0x21 <= code <= 0x7E for code in value)  # a comma has ended it
