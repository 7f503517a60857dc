"""Evaluation: metrics.json from predictions on the test split, and the results of groups of images."""
