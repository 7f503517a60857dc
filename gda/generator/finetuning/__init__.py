"""Fine-tuning one network of a generator: what is trained, in which order of images, averaged, scored and resumed."""
