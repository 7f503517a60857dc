"""Duplicates: near matches of images, and pictures that two splits share."""
