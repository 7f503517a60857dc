"""Sampling a plan: shard by shard, reproduced from a published set, and in place of rejected images."""
