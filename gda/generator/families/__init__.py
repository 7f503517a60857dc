"""Families of text-to-image models behind one protocol: what each is made of, and how its images are denoised."""
