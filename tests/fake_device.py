"""A device that computes later than it is told, on a CPU: for what the host must do right around it."""
import time


class LateEvents:
    """In place of `taken_steps.mark`: an event is reached when `behind` more were made, or when the host waits for it."""

    def __init__(self, behind):
        self.behind, self.made, self.waits = behind, 0, []  # waits: how many events had been made by then

    def __call__(self, device):
        self.made += 1
        return _LateEvent(self, self.made)


class _LateEvent:
    def __init__(self, device, number):
        self.device, self.number, self.reached, self.seconds = device, number, False, time.perf_counter()

    def query(self):
        return self.reached or self.device.made - self.number >= self.device.behind

    def synchronize(self):
        if not self.query():
            self.device.waits.append(self.device.made)
        self.reached = True

    def elapsed_time(self, end):
        assert self.query() or self.reached or end.reached, "CUDA would refuse an event that isn't reached"
        return 1e3 * (end.seconds - self.seconds)
