"""Every way to bring the stack up. Run the programs in here as modules from the repository root:
`python -m compose.local up`, `python -m compose.demo`."""
