"""The paper's test protocol (4.1, 6), of one network or several."""
