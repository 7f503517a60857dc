"""The size of the slow tests that seldom fail: a part in `make test`, all in `make nightly`."""

import os
from typing import TypeVar

T = TypeVar("T")
NIGHTLY = os.environ.get("GDA_TEST_NIGHTLY") == "1"


def nightly(*, usual: T, all: T) -> T:
    """`usual` in `make test`, `all` in `make nightly`."""
    return all if NIGHTLY else usual
