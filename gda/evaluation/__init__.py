"""Evaluation: metrics.json from predictions on the test split, and what is stated of groups of images."""
