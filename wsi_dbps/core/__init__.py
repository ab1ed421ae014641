"""The foundation: errors, geometry, settings, files written atomically, progress."""
