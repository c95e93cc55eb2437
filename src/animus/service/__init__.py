"""The services of the contract: one servicer for each proto file, of the same name."""
