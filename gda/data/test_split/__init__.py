"""The only access to the test split, and the ledger that records it."""
