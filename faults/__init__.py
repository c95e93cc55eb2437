"""Fault scripts: bounded programs that break a running system on one machine, and check what is left of it."""
