"""Logs: whatever writes a line, no secret is in it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animus import telemetry
from animus.domain.secrets import MASK
from animus.telemetry import redact, redacted

TOKEN = "animus_p_" + "A" * 43

# Each way in which a process may write to stderr, in both forms; the hooks are the interpreter's, so it has its own.
SOURCES = """
import asyncio, logging, os, threading, warnings
import structlog
from animus import telemetry

token, password = os.environ["TOKEN"], os.environ["PASSWORD"]
both = f"{token} {password}"
if os.environ["BARE"]:
    telemetry.redact = lambda logger, method, event: event
telemetry.conceal(password)

class Bad:
    def __del__(self):
        raise ValueError(both)

async def main():
    asyncio.get_running_loop().call_soon(lambda: int(both))
    lost = asyncio.get_running_loop().create_future()
    lost.set_exception(ValueError(both))

for form in ("text", "json"):
    telemetry.configure_logs("info", form)
    for name in ("animus.calls", "uvicorn.error", "grpc", "sqlalchemy.engine", "asyncpg"):
        structlog.get_logger(name).warning("said", about=both, **{both: both})
        logging.getLogger(name).warning("said %s", both)
        try:
            raise ValueError(both)
        except ValueError:
            logging.getLogger(name).exception("failed")
            structlog.get_logger(name).exception("failed")
    logging.getLogger("x").warning("%d", both)
    warnings.warn(both)
    Bad()
    thread = threading.Thread(target=lambda: int(both))
    thread.start()
    thread.join()
    asyncio.run(main())
raise RuntimeError(both)
"""


def written(bare: str) -> str:
    """What a process that does all that writes, with or without the last processor."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TOKEN": TOKEN,
        "PASSWORD": "correct-horse",
        "BARE": bare,
    }
    done = subprocess.run([sys.executable, "-c", SOURCES], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_no_way_into_the_log_lets_a_secret_through() -> None:
    """Other libraries' lines, exceptions, warnings, threads, tasks, what nothing caught, and what cannot be written."""
    text = written("")
    assert "correct-horse" not in text
    assert "A" * 43 not in text
    assert text.count(MASK) > 60
    for said in ("a line of x at", "UserWarning", "uncaught exception", "RuntimeError", "never retrieved", "callback"):
        assert said in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(lines) > 20


def test_without_the_processor_the_same_secrets_are_found() -> None:
    """The test above looks where secrets would be."""
    text = written("bare")
    assert text.count("correct-horse") > 60
    assert text.count("A" * 43) > 60


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("authorization: Bearer abcdefghijklmnopqrst", f"authorization: Bearer {MASK}"),
        ("host=db password=hunter2 user=x", f"host=db password={MASK} user=x"),
        ("error\nDETAIL:  Failing row contains (a,\nb).\n[SQL: x]", f"error\nDETAIL: {MASK}\n[SQL: x]"),
        ("DETAIL:  Key (a)=(b) exists.", f"DETAIL: {MASK}"),
        ("at postgresql://a:b@c/d", f"at postgresql://a:{MASK}@c/d"),
        ("a bearer of news", "a bearer of news"),
    ],
)
def test_what_is_secret_by_where_it_stands_is_taken_out(text: str, left: str) -> None:
    """A bearer credential, a libpq password, and the values that PostgreSQL quotes."""
    assert redacted(text) == left


def test_the_secrets_of_the_process_are_taken_out_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest first, whatever stands around them; very short ones are in too much else."""
    monkeypatch.setattr(telemetry, "_concealed", set())
    telemetry.conceal("hunter2", "hunter2-and-more", "short", "")
    assert redacted("xhunter2y hunter2-and-more short") == f"x{MASK}y {MASK} short"


@pytest.mark.parametrize(
    "key", ["password", "token", "api_token", "Authorization", "x-api-key", "secrets", "db.passwd"]
)
def test_the_values_of_keys_that_are_called_like_a_secret_are_taken_out(key: str) -> None:
    """At any depth, of any type; not those of keys that only mention one."""
    event: Any = {key: "x", "deep": [{key: ["x"]}], f"{key}_file": "/x", "tokens_read": 3, key.upper(): b"x"}
    assert redact(None, "", event) == {
        key: MASK,
        "deep": [{key: MASK}],
        f"{key}_file": "/x",
        "tokens_read": 3,
        key.upper(): MASK,
    }


TREES: Any = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.binary(), st.just(TOKEN), st.text(max_size=5).map(lambda text: text + TOKEN)
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([TOKEN, "a", "token"]), inner),
    max_leaves=4,
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from([TOKEN, "event"]), TREES))
def test_no_shape_is_left_in_any_event(event: Any) -> None:
    """Keys and values of all depths; and what is left can be written as JSON."""
    assert "A" * 43 not in json.dumps(redact(None, "", event))
