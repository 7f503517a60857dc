"""What a training recipe consists of: augmentation, mixup, loss, optimizer and schedule."""
