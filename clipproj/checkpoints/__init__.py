"""Models on the disk: found, read, written edited, and edits undone there."""
