"""Tuning how images are sampled: the grid of settings, FID and CAS of its points, and the choice among them."""
