"""What checks promises: cases that hypothesis draws, harnesses that run a component, reports, the pytest suite."""
