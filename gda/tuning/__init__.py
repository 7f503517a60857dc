"""Tuning of sampling settings: the grid, FID and CAS of its points, the choice among them, and the search for a synthetic ratio."""
