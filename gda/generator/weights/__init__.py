"""Generators on disk: where they are, which files they have, whether these are supported and whole; adapters and averages of weights."""
