"""The only place with SQL and transactions."""
