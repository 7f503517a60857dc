"""What the stages exchange on disk: typed documents, and lists of files with checksums that show whether a folder is whole. No torch."""
