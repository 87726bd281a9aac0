"""What every package may use: errors, the terminal, files that last, devices, memory, signals."""
