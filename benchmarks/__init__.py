"""What the project costs in time and memory, beside PyTorch where there is something to compare with."""
