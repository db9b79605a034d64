"""Measurements: how fast electrons are counted, and how well. See docs/benchmarks.md."""
