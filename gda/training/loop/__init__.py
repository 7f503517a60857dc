"""The training loop: batches of fixed composition, the passes of a step, batch norms, checkpoints."""
