"""What the towers learned (paper 6.1), and the tests that say whether it is chance."""
