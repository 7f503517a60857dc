"""Samples a plan shard by shard, reproduces batches of a published set, and replaces rejected images."""
