//! Benchmarks of Sira.
