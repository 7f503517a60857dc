"""A step retries temporary failures itself (exit code 75), so that the server need not retry its pod for them."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from gda.errors import GdaError, TryAgainError, UsageError
from gda.runtime.reading import whole_number

RETRIES = "GDA_STEP_RETRIES"
MOST_RETRIES = 20
_DEFAULT, _FIRST_PAUSE, _LONGEST_PAUSE = 5, 30.0, 600.0  # seconds; 15.5 minutes in all

Made = TypeVar("Made")


def retrying(what: str, work: Callable[[], Made]) -> Made:
    """The result of `work`. Errors of exit code 75 are retried, up to `GDA_STEP_RETRIES` (default 5) more times.

    Pauses double from 30 seconds up to 10 minutes. Raises what `work` raises, and `UsageError` for an invalid number of retries.
    """
    for pause in _pauses():
        try:
            return work()
        except GdaError as error:
            if error.exit_code != TryAgainError.exit_code:
                raise
            print(f"{what}: {error}; trying again in {pause:g} s", flush=True)
        time.sleep(pause)
    return work()


def _pauses() -> list[float]:
    text = os.environ.get(RETRIES, "") or str(_DEFAULT)
    retries = whole_number(text)
    if retries is None or retries > MOST_RETRIES:
        raise UsageError(f"{RETRIES} {text[:30]}: accepted: 0 to {MOST_RETRIES}")
    return [min(_FIRST_PAUSE * 2**i, _LONGEST_PAUSE) for i in range(retries)]
