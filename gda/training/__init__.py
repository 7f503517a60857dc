"""Classifiers: their networks and recipes, the training loop, and the arms that they are trained on."""
