"""Benchmarks: what flagkit costs, each figure beside its floor from the same run.

    python -m benchmarks [evaluate|snapshot|startup|refresh|import|segments|peers|all ...]
                         [--quick] [--flags COUNT] [--json FILE | --keep]
    python -m benchmarks plot

One module for each benchmark; `report` holds what they share. A benchmark is a function of a
`Plan` that yields results. Machines are noisy, so bounds are on ratios and percentiles of one run,
and a missed one is measured again before it counts.
"""
