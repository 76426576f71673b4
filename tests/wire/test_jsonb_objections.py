"""The values that are not stored as ``jsonb``: test cases, and comparisons with PostgreSQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.database import Database
from tests.support.strategies import json_texts, nested, number_texts, thorough
from tkserver.wire import event_validation

NUL = "contains U+0000"
NUMBER = "contains a number with more than 400 digits before or after the decimal point"


def objection(text: str) -> str | None:
    return event_validation.jsonb_objection(text.encode())


# --- U+0000

WITH_NUL = [
    r'"\u0000"',
    r'"a\u0000b"',
    r'"\\\u0000"',
    r'"\\\\\u0000"',
    r'"\n\u0000"',
    r'"\u0000\u0000"',
    r'"\\u0000\u0000"',
    r'{"\u0000":1}',
    r'{"a":[{"b":"\u0000"}]}',
    r'["\\","\u0000"]',
]

WITHOUT_NUL = [
    r'"\\u0000"',
    r'"\\\\u0000"',
    r'"a\\u0000b"',
    r'{"\\u0000":"\\\\\\u0000"}',
    r'"\u0001"',
    r'"\u00010000"',
    r'"u0000"',
    '"\\\\"',
    '"␀"',
]


@pytest.mark.parametrize("text", WITH_NUL)
def test_nul_is_rejected(text: str) -> None:
    """U+0000 is rejected in values, in keys and after escaped backslashes."""
    assert objection(text) == NUL


@pytest.mark.parametrize("text", WITHOUT_NUL)
def test_text_similar_to_nul_is_accepted(text: str) -> None:
    """An escaped backslash followed by ``u0000`` is accepted, and so are other similar texts."""
    assert objection(text) is None


# --- numbers

ZEROS = "0" * 401
NINES = "9" * 401

SHORT_NUMBERS = [
    "0",
    "-0",
    "0.0",
    "-1.5e-3",
    "1e399",
    "-1e399",
    "1E+399",
    "10e398",
    "9.9e399",
    "0.1e400",
    "0.001e402",
    "1e-400",
    "1E-400",
    "1.0e-399",
    "0.1e-399",
    "100e-400",
    "-100.5e-399",
    # Zero has one digit before the decimal point, regardless of its exponent.
    "0e400",
    "0e999999",
    "0.000e1000000",
    "0e1073741822",
    "-0.0e1073741822",
    "0e-400",
    NINES[1:],
    "-" + NINES[1:],
    "1" + ZEROS[2:],
    "0." + NINES[1:],
    "0." + ZEROS[1:],
    "1." + ZEROS[1:],
    NINES[1:] + "." + NINES[1:],
    # The exponent moves digits to the other side of the decimal point.
    NINES + "e-1",
    NINES + "." + NINES[2:] + "e-1",
    NINES[1:] + NINES[1:] + "e-400",
    NINES[1:] + "e0",
    NINES[100:] + "e99",
    "0." + ZEROS[1:] + "1e1",
    "0." + ZEROS + "1e800",
    "0." + "0" * 99_990 + "1e100390",
]

LONG_NUMBERS = [
    "1e400",
    "-1e400",
    "1E+400",
    "10e399",
    "9.9e400",
    "0.1e401",
    "0.001e403",
    "1e131071",
    "-1e131071",
    "1e131072",
    "1e-401",
    "-1E-401",
    "1.0e-400",
    "0.1e-400",
    "100e-401",
    "0e-401",
    "0.0e-400",
    "0e-999",
    "1e-16383",
    "1e-16384",
    "1e999999",
    "1e-999999",
    "1e2147483648",
    "1e-2147483648",
    "1e4294967296",
    "1e18446744073709551616",
    "1e-18446744073709551616",
    "0e1073741824",
    "0e-1073741824",
    "0e99999999999999999999",
    "1e" + "9" * 4301,
    "1e-" + "9" * 4301,
    "0e" + "9" * 4301,
    NINES,
    "-" + NINES,
    "1" + ZEROS[1:],
    "9" * 131_073,
    "0." + NINES,
    "0." + ZEROS,
    "-1." + ZEROS,
    NINES[1:] + "." + NINES,
    NINES + "." + NINES[1:],
    NINES + "." + NINES[:2],
    NINES + "e0",
    NINES + "9e-1",
    NINES[99:] + "e99",
    "9" * 350 + "e99",
    "0." + "9" * 350 + "e-99",
    "0." + ZEROS + "1e1",
    "0." + ZEROS + "1e802",
    "1" + "0" * 100_000 + "e-99600",
]

# Strings that contain the text of a long number.
STRINGS_LIKE_NUMBERS = [
    '"1e999999"',
    r'"\"1e999999"',
    '{"1e999999":1}',
    f'"{NINES}"',
    f'["\\\\","{NINES}"]',
    '["-1e400",1e399,"0e-999"]',
    r'["\\\"","1e400","\\"]',
]


def _abbreviated(text: str) -> str:
    return text if len(text) < 40 else f"{text[:12]}...{text[-8:]} ({len(text)})"


@pytest.mark.parametrize("text", SHORT_NUMBERS + STRINGS_LIKE_NUMBERS, ids=_abbreviated)
def test_short_number_is_accepted(text: str) -> None:
    """A number with up to 400 digits before and after the decimal point is accepted in any notation."""
    assert objection(text) is None
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') is None


@pytest.mark.parametrize("text", LONG_NUMBERS, ids=_abbreviated)
def test_long_number_is_rejected(text: str) -> None:
    """A number with one digit more before or after the decimal point is rejected in any notation and position."""
    assert objection(text) == NUMBER
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') == NUMBER
    assert objection(f'["\\"",{text}]') == NUMBER
    assert objection(f'["1e1","\\\\",{text}]') == NUMBER


LEADING_ZEROS_IN_EXPONENT = [
    "1e0000000000001",
    "1e+000000000001",
    "1e-00000000000000400",
    "1e00000000000000399",
    "1e" + "0" * 16_384,
]


@pytest.mark.parametrize("text", LEADING_ZEROS_IN_EXPONENT, ids=_abbreviated)
def test_leading_zeros_in_exponent_are_ignored(text: str) -> None:
    """A short number with leading zeros in its exponent is accepted."""
    assert objection(text) is None


LEADING_ZEROS_IN_LARGE_EXPONENT = ["1e00000000000000400", "1e-00000000000000401", "1e-" + "0" * 5000 + "401"]


@pytest.mark.parametrize("text", LEADING_ZEROS_IN_LARGE_EXPONENT, ids=_abbreviated)
def test_large_exponent_with_leading_zeros_is_rejected(text: str) -> None:
    """A long number with leading zeros in its exponent is rejected."""
    assert objection(text) == NUMBER


# --- comparison with PostgreSQL


class PostgreSQL:
    """A connection that checks how a PostgreSQL server stores values as ``jsonb``."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._cursor = connection.cursor()

    def stored(self, text: str) -> str | None:
        """Return the text that is read for a value after it was stored, or ``None`` if it cannot be stored."""
        try:
            self._cursor.execute("SELECT %s::jsonb::text", (text,))
        except (psycopg2.DataError, psycopg2.errors.StatementTooComplex):
            return None
        (stored,) = self._cursor.fetchone()  # type: ignore[misc]
        assert isinstance(stored, str)
        return stored


def _numbers(text: str) -> list[str]:
    """Return the texts of all numbers in a JSON text."""
    numbers: list[str] = []
    json.loads(text, parse_int=numbers.append, parse_float=numbers.append)
    return numbers


def _has_only_short_numbers(text: str) -> bool:
    """Return true if each number is written without exponent, with at most 400 digits on each side of the point."""
    return all(re.fullmatch(r"-?[0-9]{1,400}(\.[0-9]{1,400})?", number) for number in _numbers(text))


@contextmanager
def _connect(database: Database) -> Iterator[PostgreSQL]:
    with closing(psycopg2.connect(database.dsn)) as connection:
        connection.autocommit = True
        yield PostgreSQL(connection)


def test_postgresql_agrees_with_test_cases(database: Database) -> None:
    """PostgreSQL stores the accepted values of the tests above with short numbers, and none of the others."""
    accepted = WITHOUT_NUL + SHORT_NUMBERS + STRINGS_LIKE_NUMBERS + LEADING_ZEROS_IN_EXPONENT
    rejected = WITH_NUL + LONG_NUMBERS + LEADING_ZEROS_IN_LARGE_EXPONENT
    with _connect(database) as postgresql:
        for text in [*accepted, nested(500), nested(500, bracket="{")]:
            stored = postgresql.stored(text)
            assert stored is not None, _abbreviated(text)
            assert _has_only_short_numbers(stored), _abbreviated(text)
        for text in rejected:
            stored = postgresql.stored(text)
            assert stored is None or not _has_only_short_numbers(stored), _abbreviated(text)


# All examples of a test can use the same database, because they do not write to it.
against_postgresql = settings(thorough, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_postgresql_stores_any_accepted_json(database: Database) -> None:
    """PostgreSQL stores all values without objections, with short numbers. With U+0000, it stores none."""
    with _connect(database) as postgresql:

        @against_postgresql
        @given(json_texts(surrogates=False))
        @example(r'"\u0000"')
        @example("1e400")
        def check(text: str) -> None:
            problem, stored = objection(text), postgresql.stored(text)
            if problem is None:
                assert stored is not None
                assert _has_only_short_numbers(stored)
            elif problem == NUL:
                assert stored is None
            else:
                assert problem == NUMBER

        check()


def test_postgresql_agrees_on_any_number(database: Database) -> None:
    """A number is accepted if and only if PostgreSQL stores it with at most 400 digits on each side."""
    with _connect(database) as postgresql:

        @against_postgresql
        @given(number_texts() | st.lists(number_texts(), max_size=3).map(lambda texts: f"[{', '.join(texts)}]"))
        @example("1e0000000000001")
        @example("0e-999")
        @example("0e1073741822")
        def check(text: str) -> None:
            stored = postgresql.stored(text)
            is_short = stored is not None and _has_only_short_numbers(stored)
            assert objection(text) == (None if is_short else NUMBER)

        check()


def test_accepted_values_are_accepted_again(database: Database) -> None:
    """The text that PostgreSQL writes for an accepted value is accepted, too."""
    with _connect(database) as postgresql:

        @against_postgresql
        @given(json_texts(surrogates=False) | number_texts())
        def check(text: str) -> None:
            if objection(text) is None:
                stored = postgresql.stored(text)
                assert stored is not None
                assert objection(stored) is None

        check()
