"""The gate: everything measured on a synthetic set, the verdict with its reasons, its page, and replacing what was rejected."""
