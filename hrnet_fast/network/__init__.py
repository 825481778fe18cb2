"""The network as one graph: recorded once, rewritten by passes, and run, exported or planned by everybody else."""
