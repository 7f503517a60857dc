"""One thread for numpy's and scipy's linear algebra, so that no bit of a metric depends on the number of cores.

Their BLAS splits sums over as many threads as it finds cores. Torch is limited once, in
`gda.runtime.parallel.single_threaded`; numpy and scipy here.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np  # noqa: F401 - the libraries to limit must be loaded first
import scipy.linalg  # noqa: F401
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
_R = TypeVar("_R")


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # finding them takes milliseconds, limiting them microseconds


def one_thread(compute: Callable[P, _R]) -> Callable[P, _R]:
    """Decorator: `compute` runs its linear algebra on one thread; afterwards the previous limits apply again."""

    @wraps(compute)
    def limited(*args: P.args, **kwargs: P.kwargs) -> _R:
        with _libraries().limit(limits=1, user_api="blas"):
            return compute(*args, **kwargs)

    return limited
