"""Benchmarks, a comparison with another checkout, and a soak test."""
