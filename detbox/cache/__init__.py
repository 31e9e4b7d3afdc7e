"""Memoization: work whose observed inputs did not change is not done again."""
