"""Tuning: find the batching settings that serve a load best, and prove it on the running server."""
