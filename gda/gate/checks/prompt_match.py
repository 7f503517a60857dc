"""Do images show what their prompt says? The cosine between an image and its prompt in a space that has both (Hessel et al. 2021)."""

from collections.abc import Callable, Sequence

import numpy as np

from gda.errors import DataError
from gda.fidelity.intervals import Estimate

Embed = Callable[[Sequence[str]], np.ndarray]
_NORMAL_95 = 1.959963984540054


def cosines(features: np.ndarray, prompts: Sequence[str], embed: Embed) -> np.ndarray:
    """Cosine of each image's features float [n, d] and its prompt's embedding, float64 [n] in [-1, 1]; each text is embedded once.

    CLIPScore is 2.5 times the mean of these, where none is negative.
    """
    texts = sorted(set(prompts))
    place = {text: i for i, text in enumerate(texts)}
    embedded = _unit(embed(texts))[[place[text] for text in prompts]]
    return np.einsum("nd,nd->n", _unit(features), embedded)


def mean_of(values: np.ndarray) -> Estimate:
    """Mean with its normal 95% interval. Raises `DataError` for fewer than two values or some that are not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        raise DataError(f"a mean with an interval needs two finite values or more, got {len(values)}")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(value=mean, low=mean - _NORMAL_95 * error, high=mean + _NORMAL_95 * error)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
