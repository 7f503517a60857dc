"""The parts of a training recipe: augmentation, mixup, loss, optimizer and schedule."""
