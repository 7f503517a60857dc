"""Snapshots: shards, manifest and index; written, verified, read into memory, merged, exported."""
