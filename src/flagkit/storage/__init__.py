"""MongoDB: collections, documents, indexes, reading, committing. Knows no policy language."""
