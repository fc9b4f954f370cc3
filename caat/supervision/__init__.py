"""What looks after a run: who agrees, who asks it to stop, and who notices when it hangs or drifts."""
