"""The life of one training run: compose, check, start, resume, train, summarise."""
