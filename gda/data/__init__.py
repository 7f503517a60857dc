"""Images and labels: their sources, how a snapshot stores them, and the single function that opens the test split."""
