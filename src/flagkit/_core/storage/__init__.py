"""MongoDB: collections, documents, indexes, reads and commits. Knows no policy language."""
