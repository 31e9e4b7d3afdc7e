"""What is said about runs: comparisons, perturbed hosts, tables."""
