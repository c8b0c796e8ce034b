"""Measurements beside peers: each prints figures and ratios, none is a test. See docs/benchmarks.md."""
