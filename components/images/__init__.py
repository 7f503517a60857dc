"""The image that every step of a pipeline runs in, and how it is made."""
