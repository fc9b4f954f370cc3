"""Files that must survive: written durably, checked by checksum and schema when they are read back."""
