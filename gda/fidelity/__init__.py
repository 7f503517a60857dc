"""How near sampled images are to real ones: metrics with floors and intervals, and the extractors whose features they use."""
