"""Costs of detbox compared with native runs: ``python -m benchmarks``."""
