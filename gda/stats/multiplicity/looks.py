"""How much of the significance level each look at one test split may spend."""

import math

FIRST_SHARE = 0.8


def level_of_look(alpha: float, look: int) -> float:
    """The level, in (0, alpha), at which look number `look`, from 1, is tested; all looks together err at most at `alpha`.

    The first has four fifths of `alpha`, the second a tenth, each further one half of the one before: 0.04, 0.005, 0.0025, ... for 0.05.
    So they add up to `alpha`: after any number of looks and by any rule for stopping, some null is taken for a gain with
    probability `alpha` at most: Bonferroni's inequality, with weights that are fixed beforehand. Raises `ValueError` for a look below 1.
    """
    if look < 1:
        raise ValueError(f"looks are counted from 1, got {look}")
    return alpha * FIRST_SHARE if look == 1 else alpha * (1 - FIRST_SHARE) * 2.0 ** (1 - look)


def fewest_flips(level: float) -> int:
    """How many signs must be flipped for two-sided sign flips to reach `level`, in (0, 1): n with 2^(1-n) at most that."""
    return 1 + math.ceil(-math.log2(level) - 1e-9)
