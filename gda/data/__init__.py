"""Images and labels: where they come from, how a snapshot stores them, and the one door to the test split."""
