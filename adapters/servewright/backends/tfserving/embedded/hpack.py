"""HPACK (RFC 7541), the way HTTP/2 writes headers: read in full, written without a table."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

Header = tuple[bytes, bytes]

_STATIC: Final[tuple[Header, ...]] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""),
    (b"cache-control", b""), (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""), (b"max-forwards", b""),
    (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""),
    (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""), (b"strict-transport-security", b""),
    (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip

# The symbols whose codes have so many bits, in their order; the code is canonical. 256 ends a string and is not here.
_HUFFMAN: Final = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5"
    b"\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"
    b"\xdc\xf9",
    30: b"\n\r\x16",
}

_TABLE_SIZE: Final = 4096  # bytes; what every HTTP/2 connection begins with
_OVERHEAD: Final = 32  # bytes that an entry counts beside its text
_LARGEST_NUMBER: Final = 1 << 31
_LONGEST_SHIFT: Final = 28  # bits; longer numbers are no sizes
_LONGEST_KEPT: Final = 256  # bytes of a string whose decoding is remembered
_LARGEST_LIST: Final = 1 << 16  # bytes of all headers of a request, with their overhead


class HpackError(Exception):
    """A header block that cannot be read; the connection is lost with it."""


def _codes() -> dict[tuple[int, int], int]:
    table, code, bits = {}, 0, 0
    for length, symbols in _HUFFMAN.items():
        code <<= length - bits
        bits = length
        for symbol in symbols:
            table[length, code] = symbol
            code += 1
    return table


_CODES: Final = _codes()


def huffman_decoded(data: bytes) -> bytes:
    """Return the text of a Huffman-coded string; raise `HpackError`."""
    return _remembered(data) if len(data) <= _LONGEST_KEPT else _decoded(data)


def _decoded(data: bytes) -> bytes:
    out, code, bits = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | (byte >> shift & 1)
            bits += 1
            symbol = _CODES.get((bits, code))
            if symbol is not None:
                out.append(symbol)
                code = bits = 0
            elif bits > 30:
                raise HpackError("a Huffman code that does not exist")
    if bits > 7 or code != (1 << bits) - 1:  # what is left over is the beginning of the end mark
        raise HpackError("a Huffman string with a wrong end")
    return bytes(out)


_remembered: Final = lru_cache(maxsize=4096)(_decoded)


class Decoder:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._recent: deque[Header] = deque()  # the dynamic table, the newest entry first
        self._size, self._limit = 0, _TABLE_SIZE

    def decode(self, block: bytes) -> list[Header]:
        """Return the headers of a block; raise `HpackError`."""
        headers: list[Header] = []
        at, end, total = 0, len(block), 0
        while at < end:
            first = block[at]
            if first & 0x80:  # an entry of a table
                index, at = _number(block, at, 7)
                header = self._entry(index)
            elif first & 0x20 and not first & 0x40:  # a new size for the table
                size, at = _number(block, at, 5)
                if headers or size > _TABLE_SIZE:
                    raise HpackError("a table size out of place")
                self._limit = size
                self._shrink()
                continue
            else:
                keep = first & 0x40
                index, at = _number(block, at, 6 if keep else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                header = name, value
                if keep:
                    self._add(header)
            headers.append(header)
            total += len(header[0]) + len(header[1]) + _OVERHEAD
            if total > _LARGEST_LIST:
                raise HpackError("headers too large")
        return headers

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        if 0 < index - len(_STATIC) <= len(self._recent):
            return self._recent[index - len(_STATIC) - 1]
        raise HpackError(f"no header has the index {index}")

    def _add(self, header: Header) -> None:
        self._recent.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + _OVERHEAD
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            name, value = self._recent.pop()
            self._size -= len(name) + len(value) + _OVERHEAD


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        if at >= len(block) or value > _LARGEST_NUMBER or shift > _LONGEST_SHIFT:
            raise HpackError("a number without its end")
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(block):
        raise HpackError("a string without its length")
    coded = block[at] & 0x80
    size, at = _number(block, at, 7)
    if at + size > len(block):
        raise HpackError("a string without its end")
    text = block[at : at + size]
    return (huffman_decoded(text) if coded else text), at + size


def encode(headers: list[Header]) -> bytes:
    """Return a block that no table is needed for; names are in lower case."""
    out = bytearray()
    for name, value in headers:
        try:
            index = _STATIC.index((name, value)) + 1
        except ValueError:
            out += b"\0" + _prefixed(name) + _prefixed(value)
        else:
            out.append(0x80 | index)
    return bytes(out)


def _prefixed(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        return bytes((size,)) + text
    out, rest = bytearray((0x7F,)), size - 0x7F
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out) + text
