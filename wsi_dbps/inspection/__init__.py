"""What a file, a folder or a slide is, in words and pictures."""
