"""What a run needs: Ray, the command line, progress, the lock on WORK, the log of stages."""
