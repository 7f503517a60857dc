"""The text-to-image generator: its weights, families, plans, sampling and fine-tuning."""
