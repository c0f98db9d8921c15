"""Evaluation: pure functions of (flag, context, now). No I/O, no locks, no clock, no logging."""
