"""What all commands share: processes, errors and exit statuses, results, the terminal."""
