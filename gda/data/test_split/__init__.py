"""The one door to the test split, and the ledger of its openings."""
