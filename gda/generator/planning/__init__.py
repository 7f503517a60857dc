"""The sampling plan: images per class with their seeds, prompts and source images; and its cost and duration."""
