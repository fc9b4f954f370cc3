"""Durable files: synced to disk when written, checked by checksum and schema when read back."""
