"""Rollouts: a running server goes from one version of its models to the next, step by step, and back where it must."""
