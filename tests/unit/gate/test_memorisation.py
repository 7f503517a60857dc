"""A generator that memorised is flagged, and the more so the more often it saw its pictures."""

import importlib.util
from pathlib import Path

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "memorisation.py"


def test_the_flagged_share_rises_with_repetition() -> None:
    """At equal steps, generated images of pictures seen 100 times are nearly all flagged, of pictures seen once as few as real ones."""
    spec = importlib.util.spec_from_file_location("memorisation", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    memorisation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memorisation)
    found = memorisation.flagged_by_dose(rows=300, doses=(1, 10, 100), updates=400, width=256, count=100, held=200, seed=0)
    print({dose: f"{flagged:.1%} (held-out {real:.1%})" for dose, (flagged, real) in found.items()})
    once, ten, hundred = (found[dose][0] for dose in (1, 10, 100))
    assert once <= 0.03
    assert once < ten < hundred
    assert ten >= 0.05
    assert hundred >= 0.9
    assert all(real <= 0.01 for _, real in found.values())
