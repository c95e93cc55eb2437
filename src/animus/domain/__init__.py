"""The rules of Animus: pure functions on values. No I/O, no clock, no randomness."""
