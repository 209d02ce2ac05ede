"""Static embeddings and word vectors: means of table rows."""
