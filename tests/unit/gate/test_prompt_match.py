"""Cosines of images and prompts, by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from gda.errors import DataError
from gda.gate.checks.prompt_match import cosines, mean_of


def test_each_image_is_compared_with_its_own_prompt_and_each_text_embedded_once() -> None:
    """Lengths do not count; the order of the images is kept."""
    calls: list[Sequence[str]] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return np.array([{"right": [2.0, 0.0], "up": [0.0, 0.1]}[text] for text in texts])

    features = np.array([[3.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    assert cosines(features, ["right", "up", "right"], embed) == pytest.approx([1.0, 0.8, -1.0])
    assert calls == [["right", "up"]]


def test_a_mean_has_its_normal_interval() -> None:
    """1.96 standard errors to both sides."""
    found = mean_of(np.array([0.1, 0.2, 0.3]))
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(1.959963984540054 * 0.1 / np.sqrt(3))
    assert found.value - found.low == pytest.approx(found.high - found.value)


@pytest.mark.parametrize("values", [[0.5], [0.5, np.nan]])
def test_too_few_and_nan_are_refused(values: list[float]) -> None:
    """No interval, no number."""
    with pytest.raises(DataError, match="two finite values"):
        mean_of(np.array(values))
