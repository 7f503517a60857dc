"""What is sampled: images of each class with their seeds, real images that they start from, prompts; and what that costs."""
