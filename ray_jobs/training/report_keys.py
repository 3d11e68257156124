"""What worker and driver say to each other beside metrics; without torch, for the driver's sake."""

STOPPED = "stopped"  # in a report: why the run cannot go on, whatever is tried again
