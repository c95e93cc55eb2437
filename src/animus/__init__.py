"""Animus: the system of record for ML execution."""
