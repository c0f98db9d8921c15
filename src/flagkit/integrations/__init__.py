"""Bridges to other libraries. Each needs its own library and only the public API of flagkit."""
