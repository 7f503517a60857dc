"""Fine-tuning one network of a generator: methods, image order, weight averages, evaluation and checkpoints."""
