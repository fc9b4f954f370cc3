"""Reading settings from the command line and from files, and reporting mistakes in them."""
