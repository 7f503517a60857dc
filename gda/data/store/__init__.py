"""Snapshots: shards, manifest and index; writing, verifying, reading into memory, merging."""
