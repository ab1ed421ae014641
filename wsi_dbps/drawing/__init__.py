"""From attention to pictures, tables and maps that other tools open."""
