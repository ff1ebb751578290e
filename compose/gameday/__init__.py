"""Game day: faults under load on a private stack, and a verdict from outside (`make gameday`)."""
