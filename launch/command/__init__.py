"""What every command does alike: processes, errors and exit statuses, results, the terminal."""
