"""The values that ``jsonb`` does not accept: test cases, and comparisons with PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.support.database import Database
from tests.support.strategies import json_texts, nested, number_texts, thorough
from tkserver.wire import event_validation

NUL = "contains U+0000"
NUMBER = "contains a number outside the range of PostgreSQL's numeric type"
DEEP = "nested deeper than 500 levels"


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

ZEROS = "0" * 16_384
NINES = "9" * 131_073

NUMBERS_IN_RANGE = [
    "0",
    "-0",
    "0.0",
    "-1.5e-3",
    "1e131071",
    "-1e131071",
    "1E+131071",
    "10e131070",
    "9.9e131071",
    "0.1e131072",
    "0.001e131074",
    "1e-16383",
    "1E-16383",
    "1.0e-16382",
    "0.1e-16382",
    "100e-16383",
    # Zero has no digits before the decimal point, regardless of its exponent.
    "0e131072",
    "0e999999",
    "0.000e1000000",
    "0e1073741822",
    "0e-16383",
    NINES[1:],
    "-" + NINES[1:],
    "1" + "0" * 131_071,
    "0." + NINES[:16_383],
    "0." + ZEROS[1:],
    "1." + ZEROS[1:],
    NINES[1:] + "." + NINES[:16_383],
    # The exponent moves digits to the other side of the decimal point.
    NINES + "e-1",
    NINES + "9" * 16_382 + "e-16383",
    NINES[1:] + "e0",
    "0." + ZEROS[1:] + "1e1",
    "0." + ZEROS + "1e131072",
]

NUMBERS_OUT_OF_RANGE = [
    "1e131072",
    "-1e131072",
    "1E+131072",
    "10e131071",
    "9.9e131072",
    "0.1e131073",
    "0.001e131075",
    "1e-16384",
    "1E-16384",
    "1.0e-16383",
    "0.1e-16383",
    "100e-16384",
    "0e-16384",
    "0.0e-16383",
    "1e999999",
    "1e-999999",
    "1e2147483648",
    "1e-2147483648",
    "1e4294967296",
    "1e18446744073709551616",
    "1e-18446744073709551616",
    "0e1073741824",
    "0e99999999999999999999",
    "1e" + NINES[:4301],
    "1e-" + NINES[:4301],
    NINES,
    "-" + NINES,
    "1" + "0" * 131_072,
    "0." + NINES[:16_384],
    "0." + ZEROS,
    "1." + ZEROS,
    NINES[1:] + "." + NINES[:16_384],
    NINES + "." + NINES[:2],
    NINES + "e0",
    NINES + "9e-1",
    "0." + ZEROS + "1e1",
]

# Strings that contain the text of a number outside the range.
STRINGS_LIKE_NUMBERS = ['"1e999999"', r'"\"1e999999"', '{"1e999999":1}', f'"{NINES}"', f'["\\\\","{NINES}"]']


def _abbreviated(text: str) -> str:
    return text if len(text) < 40 else f"{text[:12]}...{text[-8:]} ({len(text)})"


@pytest.mark.parametrize("text", NUMBERS_IN_RANGE + STRINGS_LIKE_NUMBERS, ids=_abbreviated)
def test_number_in_range_is_accepted(text: str) -> None:
    """A number with up to 131072 digits before the decimal point and 16383 after it is accepted in any notation."""
    assert objection(text) is None
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') is None


@pytest.mark.parametrize("text", NUMBERS_OUT_OF_RANGE, ids=_abbreviated)
def test_number_out_of_range_is_rejected(text: str) -> None:
    """A number with one digit more before or after the decimal point is rejected in any notation and position."""
    assert objection(text) == NUMBER
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') == NUMBER
    assert objection(f'["\\"",{text}]') == NUMBER


LEADING_ZEROS_IN_EXPONENT = ["1e0000000000001", "1e+000000000001", "1e-00000000000000016383", f"1e{ZEROS}"]


@pytest.mark.parametrize("text", LEADING_ZEROS_IN_EXPONENT, ids=_abbreviated)
def test_leading_zeros_in_exponent_are_ignored(text: str) -> None:
    """A number in range with leading zeros in its exponent is accepted."""
    assert objection(text) is None


def test_large_exponent_with_leading_zeros_is_rejected() -> None:
    """A number out of range with leading zeros in its exponent is rejected."""
    assert objection("1e00000000000000131072") == NUMBER
    assert objection("1e-00000000000000016384") == NUMBER


# --- nesting


@pytest.mark.parametrize("bracket", ["[", "{"])
def test_more_than_500_levels_are_rejected(bracket: str) -> None:
    """500 levels of nested arrays or objects are accepted, and 501 are rejected."""
    assert objection(nested(500, bracket=bracket)) is None
    assert objection(nested(501, bracket=bracket)) == DEEP
    assert objection(nested(20_000, bracket=bracket)) == DEEP


@pytest.mark.parametrize(
    "text",
    [
        "[" + ",".join(["[]"] * 1000) + "]",
        "[" + ",".join(['{"a":[{}]}'] * 1000) + "]",
        '"' + "[" * 1000 + '"',
        '["' + "{" * 1000 + r"\"" + "[" * 1000 + '"]',
        '{"' + "[" * 1000 + '":"' + r"\\" + '"}',
        nested(250, nested(250, bracket="{")) + " ",
        "[" + nested(499) + "," + nested(499, bracket="{") + "]",
    ],
)
def test_brackets_that_are_not_nested_are_accepted(text: str) -> None:
    """Brackets next to each other, and brackets in strings, are not nested levels."""
    assert objection(text) is None


@pytest.mark.parametrize(
    "text",
    [
        nested(250, nested(251, bracket="{")),
        nested(501, '"' + "]" * 501 + '"'),
        '["' + r"\"]" * 600 + '",' + nested(500) + "]",
        "[[]," + nested(500) + "]",
        "[ " * 501 + "] " * 501,
        '{"a": [' * 250 + "[]" + "]}" * 250,
    ],
)
def test_levels_are_counted_across_brackets_and_strings(text: str) -> None:
    """Nested levels are counted across arrays, objects, white space and strings."""
    assert objection(text) == DEEP


# --- time: tests that take too long fail by the timeout of pytest


def test_many_long_numbers_take_linear_time() -> None:
    """The time for values with many long numbers is proportional to their length."""
    text = b"[" + b",".join([b"1" * 14_999] * 300) + b"]"
    assert event_validation.jsonb_objection(text) is None


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"\\\\" * 500_000 + b'"]',
        b'["' + b'\\"' * 500_000 + b'"]',
        b'["' + b"\\\\u0000" * 200_000 + b'"]',
        b"[" * 500 + b'"' + b'\\"[' * 300_000 + b'"' + b"]" * 500,
        b"[1e99999" + b",1" * 500_000 + b"]",
        b"[1e99999" + b',"\\""' * 200_000 + b"]",
        b"[" + b"[]," * 300_000 + b"0]",
    ],
    ids=["backslashes", "quotes", "no U+0000", "brackets in a string", "numbers", "strings", "arrays"],
)
def test_malicious_values_take_linear_time(text: bytes) -> None:
    """The time for values that need the slow checks is proportional to their length."""
    assert event_validation.jsonb_objection(text) is None


# --- comparison with PostgreSQL


class PostgreSQL:
    """A connection that checks whether a PostgreSQL server accepts values as ``jsonb``."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._cursor = connection.cursor()

    def accepts(self, text: str) -> bool:
        # The query does not return the value, because the driver would convert it.
        try:
            self._cursor.execute("SELECT jsonb_typeof(%s::jsonb)", (text,))
        except (psycopg2.DataError, psycopg2.errors.StatementTooComplex):
            return False
        return True


@contextmanager
def _connect(database: Database) -> Iterator[PostgreSQL]:
    with closing(psycopg2.connect(database.dsn)) as connection:
        connection.autocommit = True
        yield PostgreSQL(connection)


def test_postgresql_agrees_with_test_cases(database: Database) -> None:
    """PostgreSQL accepts and rejects the same values as the tests above."""
    with _connect(database) as postgresql:
        numbers = NUMBERS_IN_RANGE + STRINGS_LIKE_NUMBERS + LEADING_ZEROS_IN_EXPONENT
        texts = WITHOUT_NUL + numbers + [nested(500), nested(500, bracket="{")]
        rejected = [_abbreviated(text) for text in texts if not postgresql.accepts(text)]
        accepted = [_abbreviated(text) for text in WITH_NUL + NUMBERS_OUT_OF_RANGE if postgresql.accepts(text)]

    assert rejected == []
    assert accepted == []


# All examples of a test can use the same database, because they do not write to it.
against_postgresql = settings(thorough, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_postgresql_agrees_on_any_json(database: Database) -> None:
    """PostgreSQL accepts all values without objections, and rejects those with objections to numbers or U+0000."""
    with _connect(database) as postgresql:

        @against_postgresql
        @given(json_texts(surrogates=False))
        @example(r'"\u0000"')
        @example("1e131072")
        def check(text: str) -> None:
            _compare(postgresql, text)

        check()


def test_postgresql_agrees_on_any_number(database: Database) -> None:
    """PostgreSQL accepts exactly the numbers without objections."""
    with _connect(database) as postgresql:

        @against_postgresql
        @given(number_texts())
        @example("1e0000000000001")
        def check(text: str) -> None:
            _compare(postgresql, text)

        check()


def _compare(postgresql: PostgreSQL, text: str) -> None:
    problem = objection(text)
    if problem is None:
        assert postgresql.accepts(text)
    elif problem in (NUL, NUMBER):
        assert not postgresql.accepts(text)
    else:
        # The limit of PostgreSQL for nested levels is higher.
        assert problem == DEEP
