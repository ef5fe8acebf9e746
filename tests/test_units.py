"""Durations, rates and sizes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.units import (
    UnitError,
    format_duration,
    format_size,
    parse_duration_us,
    parse_rate_per_s,
    parse_size_bytes,
)

INT64 = st.integers(min_value=0, max_value=2**63 - 1)


class TestDurations:
    """A duration is whole microseconds."""

    @pytest.mark.parametrize(
        ("text", "us"),
        [
            ("5ms", 5_000),
            ("250us", 250),
            ("250µs", 250),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
            ("2min", 120_000_000),
            ("1h", 3_600_000_000),
            (" 5 ms ", 5_000),
            ("0", 0),
            ("0ms", 0),
            ("0.001ms", 1),
            (".5s", 500_000),
            ("1_000ms", 1_000_000),
        ],
    )
    def test_are_read_exactly(self, text: str, us: int) -> None:
        """A number and a unit make whole microseconds."""
        assert parse_duration_us(text) == us

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                "5",
                "ms",
                "5 parsecs",
                "-5ms",
                "0.5us",
                "1e3ms",
                "nan",
                "inf s",
                "5ms2s",
                "5,5ms",
                "5ms\n;",
                "0x10ms",
            ),
            *("\N{ARABIC-INDIC DIGIT FIVE}ms", "9" * 19 + "s", "9" * 50 + "us", "5MS!"),
        ],
    )
    def test_that_make_no_sense_are_refused_with_a_remedy(self, text: str) -> None:
        """Nonsense is a ValueError that says what to write."""
        with pytest.raises(UnitError, match=r"; (write a unit: 5ms, 2s|did you mean)"):
            parse_duration_us(text)

    def test_wrong_case_names_the_right_unit(self) -> None:
        """A unit in the wrong case is refused, since M is no m elsewhere, and the right one is named."""
        with pytest.raises(UnitError, match="did you mean 'ms'"):
            parse_duration_us("5MS")

    @given(INT64)
    def test_are_printed_so_that_they_are_read_back(self, us: int) -> None:
        """Whatever is printed is read back as the same microseconds."""
        assert parse_duration_us(format_duration(us)) == us

    @given(st.decimals(min_value=0, max_value=10**6, places=3), st.sampled_from(["ms", "s", "m", "h"]))
    def test_are_never_rounded(self, number: object, unit: str) -> None:
        """The result is the exact product, with no float on the way."""
        factor = {"ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}[unit]
        assert parse_duration_us(f"{number}{unit}") == Fraction(str(number)) * factor

    @pytest.mark.parametrize(
        ("us", "text"),
        [
            *((0, "0us"), (250, "250us"), (5_000, "5ms"), (2_500, "2.5ms"), (1_500_000, "1.5s"), (90_000_000, "90s")),
            *((5_400_000_000, "90m"), (7_200_000_000, "2h"), (1_000_001, "1.000001s")),
        ],
    )
    def test_are_printed_as_people_write_them(self, us: int, text: str) -> None:
        """The largest unit that shows the value exactly is chosen."""
        assert format_duration(us) == text


class TestSizes:
    """A size is whole bytes."""

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            *(("1024", 1024), ("0", 0), ("2GiB", 2**31), ("64MiB", 2**26), ("500MB", 500_000_000), ("1.5KiB", 1536)),
            *(("3kB", 3000), ("3KB", 3000), ("7B", 7), ("1TiB", 2**40), ("1 TB", 10**12)),
        ],
    )
    def test_are_read_exactly(self, text: str, size: int) -> None:
        """Units of 1024 and of 1000 are told apart."""
        assert parse_size_bytes(text) == size

    @pytest.mark.parametrize("text", ["", "2G", "2Gi", "-1", "1.5", "0.3KiB", "MB", "lots", "9999999TiB", "1e9", "2gb"])
    def test_that_make_no_sense_are_refused_with_a_remedy(self, text: str) -> None:
        """Ambiguous units such as G, and fractions of a byte, are a ValueError that says what to write."""
        with pytest.raises(UnitError, match=r"; (write bytes or a unit|did you mean)"):
            parse_size_bytes(text)

    @given(INT64)
    def test_are_printed_so_that_they_are_read_back(self, size: int) -> None:
        """Whatever is printed is read back as the same number of bytes."""
        assert parse_size_bytes(format_size(size)) == size

    @pytest.mark.parametrize(
        ("size", "text"), [(0, "0B"), (1025, "1025B"), (2**31, "2GiB"), (500_000_000, "500MB"), (512_000, "500KiB")]
    )
    def test_are_printed_as_people_write_them(self, size: int, text: str) -> None:
        """The largest unit that divides the size is chosen."""
        assert format_size(size) == text


class TestRates:
    """A rate is events per second."""

    @pytest.mark.parametrize(
        ("text", "rate"),
        [
            ("200/s", 200.0),
            ("12k/m", 200.0),
            ("1.5M/h", 1_500_000 / 3600),
            ("0.5 / s", 0.5),
            ("0/s", 0.0),
            ("60/min", 1),
        ],
    )
    def test_are_read_per_second(self, text: str, rate: float) -> None:
        """Thousands, millions, and rates per minute or hour become events per second."""
        assert parse_rate_per_s(text) == rate

    @pytest.mark.parametrize(
        "text", ["", "200", "200/", "/s", "-1/s", "200/d", "200K/s", "200 rps", "1/s/s", "9" * 30 + "/s"]
    )
    def test_that_make_no_sense_are_refused_with_a_remedy(self, text: str) -> None:
        """A rate without its time is a ValueError that says what to write."""
        with pytest.raises(UnitError, match="; write a rate: 200/s"):
            parse_rate_per_s(text)


@given(st.text(max_size=80))
def test_no_text_breaks_a_parser(text: str) -> None:
    """Any text is either read or refused with a ValueError that holds both a reason and a remedy."""
    for parse in (parse_duration_us, parse_size_bytes, parse_rate_per_s):
        try:
            assert parse(text) >= 0
        except UnitError as error:
            refusal = error
            assert (refusal.reason, refusal.remedy) > ("", "")
