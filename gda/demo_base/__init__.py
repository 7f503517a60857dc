"""The demo base: a small generator pre-trained on rendered glyphs, how its images are rendered, and how it is rebuilt."""
