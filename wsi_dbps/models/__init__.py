"""Encoders, aggregators, and the slide model that joins them with patch selection."""
