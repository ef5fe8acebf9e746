"""JSON as RapidJSON reads it: NaN and Infinity, the first of duplicate keys, and its words for every mistake.

Ordinary documents go through orjson; whatever orjson refuses or would read in another way is read here, step by step.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

import orjson

from servewright.backends.tfserving.embedded.status import invalid_argument

_SPACE = re.compile(rb"[ \n\r\t]*")
_DIGITS = re.compile(rb"[0-9]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES = {0x22: b'"', 0x5C: b"\\", 0x2F: b"/", 0x62: b"\b", 0x66: b"\f", 0x6E: b"\n", 0x72: b"\r", 0x74: b"\t"}
_MOST_WHOLE_DIGITS = 309
_MOST_DIGITS = (1 << 53) - 1
LONG_NUMBER = re.compile(rb"[0-9.eE+-]{16}|[eE]")
"""What a number with more digits than any double is sure of looks like, or one with an exponent."""

_HUGE = re.compile(rb"[eE]\+?0*[1-9][0-9]{2}")  # an exponent that may be too large, even where the number is 0


class JsonError(Exception):
    """A document that is no JSON; ``offset`` counts bytes."""

    def __init__(self, reason: str, offset: int) -> None:
        self.reason, self.offset = reason, offset
        super().__init__(f"JSON Parse error: {reason} at offset: {offset}")


def parse(body: bytes, *, precise: bool = False) -> Any:
    """Return what ``body`` says; raise `StatusError` in RapidJSON's words.

    Strings are `str` (undecodable bytes as surrogates), numbers `int` or `float`. RapidJSON may miss the last digits
    of a double; with ``precise`` they are missed here, too.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    if not (precise and LONG_NUMBER.search(body)) and not _HUGE.search(body):
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
        else:
            # Every ":" outside of strings belongs to a member; fewer members than that means duplicate keys.
            colons = body.count(b":")
            if (isinstance(document, dict) and len(document) == colons) or colons == count_members(document):
                return document
    try:
        return Reader(body).document()
    except JsonError as error:
        raise invalid_argument(str(error)) from error


def count_members(value: Any) -> int:
    """Return how many members all objects in ``value`` have, without looking into lists that hold no object."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            total += len(item)
            waiting += [inner for inner in item.values() if isinstance(inner, dict | list)]
        elif item and isinstance(item, list) and isinstance(item[0], dict | list):
            waiting += [inner for inner in item if isinstance(inner, dict | list)]
    return total


class Reader:
    """Reads one document from left to right, without recursion."""

    def __init__(self, body: bytes) -> None:
        end = body.find(b"\0")
        self._text = body if end < 0 else body[:end]  # a NUL ends the text for RapidJSON
        self._at = 3 if body.startswith(b"\xef\xbb\xbf") else 0

    def document(self) -> Any:
        """Return the one value of the document; raise `JsonError`."""
        self._skip_space()
        if self._at >= len(self._text):
            self._fail("The document is empty.")
        value = self._value()
        self._skip_space()
        if self._at < len(self._text):
            self._fail("The document root must not be followed by other values.")
        return value

    def _value(self) -> Any:
        """Read a value; open lists and objects wait on a stack, with the key under which their value goes."""
        stack: list[tuple[Any, str | None]] = []
        while True:
            opened = self._peek()
            value: Any
            if opened == 0x7B:  # {
                self._at += 1
                self._skip_space()
                if self._peek() != 0x7D:
                    stack.append(({}, self._key()))
                    continue
                self._at += 1
                value = {}
            elif opened == 0x5B:  # [
                self._at += 1
                self._skip_space()
                if self._peek() != 0x5D:
                    stack.append(([], None))
                    continue
                self._at += 1
                value = []
            else:
                value = self._scalar(opened)
            while stack:
                into, key = stack.pop()
                if key is None:
                    into.append(value)
                    end, complaint = 0x5D, "Missing a comma or ']' after an array element."
                else:
                    into.setdefault(key, value)
                    end, complaint = 0x7D, "Missing a comma or '}' after an object member."
                self._skip_space()
                following = self._peek()
                if following == 0x2C:  # ,
                    self._at += 1
                    self._skip_space()
                    stack.append((into, None if key is None else self._key()))
                    break
                if following != end:
                    self._fail(complaint)
                self._at += 1
                value = into
            else:
                return value

    def _key(self) -> str:
        if self._peek() != 0x22:
            self._fail("Missing a name for object member.")
        key = self._string()
        self._skip_space()
        if self._peek() != 0x3A:
            self._fail("Missing a colon after a name of object member.")
        self._at += 1
        self._skip_space()
        return key

    def _scalar(self, first: int) -> Any:
        if first == 0x22:
            return self._string()
        for word, meaning in ((b"null", None), (b"true", True), (b"false", False)):
            if first == word[0]:
                for letter in word:
                    if self._peek() != letter:
                        self._fail("Invalid value.")
                    self._at += 1
                return meaning
        return self._number()

    def _string(self) -> str:
        self._at += 1
        pieces = []
        while True:
            plain = _PLAIN.match(self._text, self._at)
            assert plain is not None
            pieces.append(plain.group())
            self._at = plain.end()
            byte = self._peek()
            if byte == 0x22:
                self._at += 1
                return b"".join(pieces).decode("utf-8", "surrogateescape")
            if byte == 0x5C:
                pieces.append(self._escape())
            elif byte == 0 and self._at >= len(self._text):
                self._fail("Missing a closing quotation mark in string.")
            else:
                self._fail("Invalid escape character in string.")

    def _escape(self) -> bytes:
        start = self._at
        self._at += 1
        kind = self._peek()
        if kind in _ESCAPES:
            self._at += 1
            return _ESCAPES[kind]
        if kind != 0x75:
            self._fail("Invalid escape character in string.", start)
        self._at += 1
        code = self._hex(start)
        if 0xD800 <= code <= 0xDFFF:
            low = 0
            if code <= 0xDBFF and self._text[self._at : self._at + 2] == b"\\u":
                self._at += 2
                low = self._hex(start)
            if not 0xDC00 <= low <= 0xDFFF:
                self._fail("The surrogate pair in string is invalid.", start)
            code = (((code - 0xD800) << 10) | (low - 0xDC00)) + 0x10000
        return chr(code).encode()

    def _hex(self, start: int) -> int:
        found = _HEX.match(self._text, self._at)
        if found is None:
            self._fail("Incorrect hex digit after \\u escape in string.", start)
        self._at = found.end()
        return int(found.group(), 16)

    def _number(self) -> int | float:
        start = self._at
        negative = self._take(0x2D)
        first = self._peek()
        if first in (0x49, 0x4E):  # I, N
            return self._special(negative=negative)
        if not 0x30 <= first <= 0x39:
            self._fail("Invalid value.")
        if first == 0x30:
            self._at += 1
            digits = b"0"
        else:
            digits = self._digits()
        fraction: bytes | None = None
        if self._take(0x2E) and not (fraction := self._digits()):
            self._fail("Miss fraction part in number.")
        exponent: int | None = None
        if self._peek() in (0x65, 0x45):
            self._at += 1
            exponent = self._exponent(start, len(fraction or b""))
        if len(digits) > _MOST_WHOLE_DIGITS:
            self._fail("Number too big to be stored in double.", start)
        whole = int(digits)
        limit = 1 << 63 if negative else (1 << 64) - 1
        if fraction is None and exponent is None and whole <= limit:
            return -whole if negative else whole
        value = _double(digits, fraction or b"", exponent or 0)
        if math.isinf(value):
            self._fail("Number too big to be stored in double.", start)
        return -value if negative else value

    def _special(self, *, negative: bool) -> float:
        if self._take(0x4E):
            if self._take(0x61) and self._take(0x4E):
                return -math.nan if negative else math.nan
            self._fail("Invalid value.")
        self._at += 1
        if not (self._take(0x6E) and self._take(0x66)):
            self._fail("Invalid value.")
        if self._peek() == 0x69:
            for letter in b"inity":
                if not self._take(letter):
                    self._fail("Invalid value.")
        return -math.inf if negative else math.inf

    def _exponent(self, start: int, places: int) -> int:
        negative = False
        if not self._take(0x2B):
            negative = self._take(0x2D)
        if not (digits := self._digits()):
            self._fail("Miss exponent in number.")
        exponent = int(digits.lstrip(b"0")[:10] or b"0")
        if negative:
            return -exponent
        if exponent > 308 + places:
            self._fail("Number too big to be stored in double.", start)
        return exponent

    def _digits(self) -> bytes:
        found = _DIGITS.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return found.group()

    def _take(self, byte: int) -> bool:
        if self._peek() == byte:
            self._at += 1
            return True
        return False

    def _peek(self) -> int:
        return self._text[self._at] if self._at < len(self._text) else 0

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _fail(self, reason: str, offset: int | None = None) -> NoReturn:
        raise JsonError(reason, self._at if offset is None else offset)


def _double(digits: bytes, fraction: bytes, exponent: int) -> float:
    """Return the number as RapidJSON's quick conversion has it: the last digit may be off by one or two."""
    whole, shift = int(digits), 0
    if whole < 1 << 64:
        value, significant, at = whole, 0, 0
        while at < len(fraction) and value <= _MOST_DIGITS:
            value = value * 10 + fraction[at] - 0x30
            at += 1
            shift -= 1
            significant += value != 0
        number = float(value)
    else:
        number, at, significant = float(int(digits[:19])), 0, 19
        for digit in digits[19:]:
            number = number * 10 + (digit - 0x30)
    while at < len(fraction):
        if significant < 17:
            number = number * 10 + (fraction[at] - 0x30)
            shift -= 1
            significant += number > 0
        at += 1
    power = exponent + shift
    if power < -308:
        return _scaled(_scaled(number, -308), power + 308)
    return _scaled(number, power)


def _scaled(number: float, power: int) -> float:
    if power < -308:
        return 0.0
    try:
        return number * 10.0**power if power >= 0 else number / 10.0**-power
    except OverflowError:
        return math.inf
