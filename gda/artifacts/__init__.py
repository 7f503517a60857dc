"""What the stages hand to each other: typed documents on disk, and the lists of files that tell whether they are whole. No torch."""
