"""The demo: a real pipeline, run and recorded on one machine. docs/demo.md says how to read what it prints."""
