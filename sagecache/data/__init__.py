"""Images and annotations become samples."""
