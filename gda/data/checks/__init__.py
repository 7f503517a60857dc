"""The same picture twice: near matches of images, and pictures that two splits share."""
