"""The arms of a comparison: what each needs, what it is trained on, and the request that names it."""
