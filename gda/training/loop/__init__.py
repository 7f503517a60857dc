"""The training loop: batches of fixed composition, the passes of an update, batch norms, checkpoints."""
