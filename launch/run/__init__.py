"""The life of one training run: composed, checked, started, resumed, trained, summarised."""
