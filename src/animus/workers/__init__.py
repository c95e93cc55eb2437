"""What time drives: the integrator and the publisher of the log, and the task that runs them."""
