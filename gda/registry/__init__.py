"""The promotion gate (pure) and the model registry it moves aliases in."""
