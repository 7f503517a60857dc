"""Metrics of how close sampled images are to real ones, with floors and intervals, and the extractors whose features they use."""
