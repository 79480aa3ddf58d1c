"""For all tests on clusters."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """What a background job starts would inherit that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
