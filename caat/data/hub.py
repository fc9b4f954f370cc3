"""Datasets of the Hugging Face hub, or of its library's cache if the hub cannot be reached."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from conf.checks import named_line
from conf.data import DataConfig

# Timeout in seconds for asking the Hugging Face hub about a dataset.
ANSWERS_WITHIN = 10


def load_from_hub(config: DataConfig, streaming: bool = False) -> Any:
    """Return the dataset ``config.path``: a ``datasets.Dataset``, or an ``IterableDataset`` if streaming.

    Raises ``ValueError`` if it does not exist or cannot be loaded.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    assert config.path is not None
    try:
        with _only_cached(unless=_answers(config.path)):
            return datasets.load_dataset(config.path, config.subset, split=config.split, streaming=streaming)
    except Exception as error:
        raise ValueError(
            f"{config.given} is neither a local file or folder nor a Hugging Face dataset that can "
            f"be loaded (data.subset={config.subset}, data.split={config.split}): {cause(error)}. "
            "Check the path, the dataset's name, its subset and split, and the network"
        ) from error


def check_text_column(config: DataConfig, kinds: Mapping[str, object]) -> None:
    """Raise ``ValueError`` unless ``kinds``, the types of the columns by name, has the column of the text."""
    from caat.data.reading import no_column

    field = config.text_field
    if field not in kinds:
        raise ValueError(no_column(config.path, field, kinds))
    if str(kinds[field]) not in ("string", "large_string", "string_view"):
        raise ValueError(
            f"data.text_field={field} of {config.path} holds {kinds[field]}, not text: "
            f"set data.text_field to a column of strings (it has {', '.join(kinds)})"
        )


def _answers(name: str) -> bool:
    """Return whether the hub can be reached. Asks once, whereas `datasets` retries for half a minute.

    Raises an error of huggingface_hub if the dataset does not exist or access is denied.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info(name, timeout=ANSWERS_WITHIN)
    except HfHubHTTPError:
        raise
    except Exception:  # network errors of whichever HTTP library huggingface_hub uses
        return False
    return True


@contextmanager
def _only_cached(unless: bool) -> Iterator[None]:
    """Restrict `datasets` to its cache, without network access, unless ``unless`` holds."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not unless
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def cause(error: BaseException) -> str:
    """Return the first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return named_line(error)
