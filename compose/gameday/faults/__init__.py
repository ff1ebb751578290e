"""The catalogue of faults. Each knows how to inject itself, how to heal, and how to prove that it took hold."""
