"""Patches as picture files and archives for other tools."""
