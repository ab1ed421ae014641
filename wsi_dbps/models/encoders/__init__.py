"""From uint8 patches to embeddings: our own small encoder, timm's models, and weights from files."""
