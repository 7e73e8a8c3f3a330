"""Task files, rows and rendered questions."""
