"""From the words that a user types to settings, and what to say about those that are wrong."""
