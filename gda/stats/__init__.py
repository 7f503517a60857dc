"""Paired tests, intervals, multiplicity and power: pure functions of arrays, no IO."""
