"""What ``jsonb`` refuses: as the rules say it, and then as a real PostgreSQL does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.support.database import Database
from tests.support.strategies import json_texts, nested, number_texts, thorough
from tkserver.wire import event_validation

NUL = "holds U+0000"
NUMBER = "holds a number beyond what PostgreSQL's numeric can hold"
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
def test_nul(text: str) -> None:
    """U+0000 is found in values, keys and behind escaped backslashes."""
    assert objection(text) == NUL


@pytest.mark.parametrize("text", WITHOUT_NUL)
def test_no_nul(text: str) -> None:
    """An escaped backslash before ``u0000`` is no U+0000, nor is anything else that looks like it."""
    assert objection(text) is None


# --- numbers

ZEROS = "0" * 16_384
NINES = "9" * 131_073

FITTING = [
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
    # Zero has no digits before the point, however large its exponent is.
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
    # Digits on one side of the point, moved to the other by the exponent.
    NINES + "e-1",
    NINES + "9" * 16_382 + "e-16383",
    NINES[1:] + "e0",
    "0." + ZEROS[1:] + "1e1",
    "0." + ZEROS + "1e131072",
]

BEYOND = [
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

# What is no number, though it reads like one that is beyond.
NO_NUMBERS = ['"1e999999"', r'"\"1e999999"', '{"1e999999":1}', f'"{NINES}"', f'["\\\\","{NINES}"]']


def _brief(text: str) -> str:
    return text if len(text) < 40 else f"{text[:12]}...{text[-8:]} ({len(text)})"


@pytest.mark.parametrize("text", FITTING + NO_NUMBERS, ids=_brief)
def test_fitting_number(text: str) -> None:
    """A number of up to 131072 digits before the point and 16383 behind it is taken, however it is written."""
    assert objection(text) is None
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') is None


@pytest.mark.parametrize("text", BEYOND, ids=_brief)
def test_number_beyond(text: str) -> None:
    """One digit more on either side of the point is refused, however it is written and wherever it stands."""
    assert objection(text) == NUMBER
    assert objection(f'[1,"x",{{"a": {text} ,"b":2}}]') == NUMBER
    assert objection(f'["\\"",{text}]') == NUMBER


ZEROS_IN_EXPONENT = ["1e0000000000001", "1e+000000000001", "1e-00000000000000016383", f"1e{ZEROS}"]


@pytest.mark.parametrize("text", ZEROS_IN_EXPONENT, ids=_brief)
def test_zeros_in_exponent(text: str) -> None:
    """Zeros before an exponent do not make it larger."""
    assert objection(text) is None


def test_long_exponent_beyond() -> None:
    """Zeros before an exponent that is too large do not make it smaller."""
    assert objection("1e00000000000000131072") == NUMBER
    assert objection("1e-00000000000000016384") == NUMBER


# --- nesting


@pytest.mark.parametrize("bracket", ["[", "{"])
def test_nesting(bracket: str) -> None:
    """500 levels are taken and 501 are not, of arrays as of objects."""
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
def test_many_brackets(text: str) -> None:
    """Brackets side by side, or within strings, are no nesting."""
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
def test_nesting_in_disguise(text: str) -> None:
    """Levels are counted across kinds of brackets and white space, and whatever strings there are."""
    assert objection(text) == DEEP


# --- time: what takes more than its share runs into the timeout of every test


def test_time_for_digits() -> None:
    """Values of many long numbers take time in proportion to their length."""
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
def test_time(text: bytes) -> None:
    """Values that are made to look suspicious take time in proportion to their length."""
    assert event_validation.jsonb_objection(text) is None


# --- a real PostgreSQL


class Server:
    """Says what a PostgreSQL thinks of a text as ``jsonb``."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._cursor = connection.cursor()

    def takes(self, text: str) -> bool:
        # The value itself is not asked for, since the driver would convert it.
        try:
            self._cursor.execute("SELECT jsonb_typeof(%s::jsonb)", (text,))
        except (psycopg2.DataError, psycopg2.errors.StatementTooComplex):
            return False
        return True


@contextmanager
def _server(database: Database) -> Iterator[Server]:
    with closing(psycopg2.connect(database.dsn)) as connection:
        connection.autocommit = True
        yield Server(connection)


def test_postgresql_agrees_on_vectors(database: Database) -> None:
    """PostgreSQL draws the line exactly where the cases above do."""
    with _server(database) as server:
        texts = WITHOUT_NUL + FITTING + NO_NUMBERS + ZEROS_IN_EXPONENT + [nested(500), nested(500, bracket="{")]
        refused = [_brief(text) for text in texts if not server.takes(text)]
        taken = [_brief(text) for text in WITH_NUL + BEYOND if server.takes(text)]

    assert refused == []
    assert taken == []


# The database stays the same for all examples of a test, and nothing is written to it.
against_postgresql = settings(thorough, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_postgresql_takes_what_is_not_objected_to(database: Database) -> None:
    """PostgreSQL takes any value to which there is no objection, and refuses one with a number or U+0000 beyond it."""
    with _server(database) as server:

        @against_postgresql
        @given(json_texts(surrogates=False))
        @example(r'"\u0000"')
        @example("1e131072")
        def check(text: str) -> None:
            _agree(server, text)

        check()


def test_postgresql_agrees_on_numbers(database: Database) -> None:
    """PostgreSQL takes exactly the numbers to which there is no objection."""
    with _server(database) as server:

        @against_postgresql
        @given(number_texts())
        @example("1e0000000000001")
        def check(text: str) -> None:
            _agree(server, text)

        check()


def _agree(server: Server, text: str) -> None:
    problem = objection(text)
    if problem is None:
        assert server.takes(text)
    elif problem in (NUL, NUMBER):
        assert not server.takes(text)
    else:
        # PostgreSQL may well take more levels; the limit here lies below its own.
        assert problem == DEEP
