"""Generators on disk: finding them, selecting and checking their files; adapters and averages of weights."""
