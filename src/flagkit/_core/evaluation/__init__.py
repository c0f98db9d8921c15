"""Evaluation: pure functions of (flag, context, now), without I/O, locks or a clock."""
