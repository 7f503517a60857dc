"""Images as files: which files are images, how they are decoded, scaled, encoded and hashed."""
