"""From the embeddings of a bag to output logits: one file for each way of pooling."""
