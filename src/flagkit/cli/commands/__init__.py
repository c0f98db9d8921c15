"""The commands of `flagkit`, one module for each noun."""
