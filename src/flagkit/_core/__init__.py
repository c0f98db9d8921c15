"""The private engine: everything here may change without notice."""
