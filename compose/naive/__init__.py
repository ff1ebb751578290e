"""What most people would write first, a transfer in one synchronous view: what `make bench` compares bankcore with."""
