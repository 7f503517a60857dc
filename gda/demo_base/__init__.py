"""The demo base, a small generator pre-trained on rendered glyphs: rendering its training images, and rebuilding it."""
