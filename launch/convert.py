"""`caat convert`: converts between Hugging Face folders and checkpoints of caat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from caat.storage.disk import free_bytes, nearest_folder, size_text
from caat.storage.remote import RemoteFolder, is_url
from caat.training.checkpoint.folder import find
from conf.checks import require
from conf.convert import ConvertConfig
from conf.reading.verb import load_verb


def main(argv: list[str]) -> None:
    """Convert as ``argv`` (``from=... to=...``) says; print a summary and the path of conversion.json.

    Raises ``ValueError`` for a model that cannot be converted, before anything is written, and if writing
    fails; then no files are left.
    """
    config = load_verb(ConvertConfig, argv)
    remote = RemoteFolder(config.to, "to") if is_url(config.to) else None
    to = Path(config.to).expanduser().resolve()
    if remote is None:
        _check_target(to, config.to)
    source = Path(config.from_).expanduser()
    require(
        source.is_dir(),
        f"from={config.from_} is not a folder: give a Hugging Face model, a run or a checkpoint",
    )
    # What goes to a URL is written to a temporary folder first.
    room = partial(_check_room, to if remote is None else Path(gettempdir()), config.to)
    result, write = (_export if _is_ours(source) else _import)(config, source, room)
    if remote is None:
        _write(write, to, result)
    else:
        with TemporaryDirectory(prefix="caat-convert-") as folder:
            _write(write, Path(folder) / "model", result, remote)
    for name, value in result.items():
        print(f"{name.replace('_', ' '):<18} {f'{value:,}' if isinstance(value, int) else value}")
    print(f"{config.to.rstrip('/')}/conversion.json" if remote else to / "conversion.json")


def _is_ours(folder: Path) -> bool:
    """Return whether ``folder`` is a run or a checkpoint, and not a Hugging Face folder."""
    from layers.huggingface.families import read_kind

    if not (folder / "config.json").is_file():
        find(folder, "from")
        return True
    found = read_kind(folder)
    return found.caat is not None and not found.exported


def _import(
    config: ConvertConfig, folder: Path, check_room: Callable[[int], None]
) -> tuple[dict[str, Any], Callable]:
    from layers.huggingface.importing import check_source, import_checkpoint

    source = check_source(folder, config.parallel.tensor, config.sync.ratio)
    found, channels = source.architecture, "as they were"
    check_room(source.bytes)
    if config.order is not None:
        from layers.huggingface.ordering import order_channels, order_tokens

        source, first_half = order_channels(source, order_tokens(source, config.order))
        channels = f"ordered on {config.order}: the first half has {first_half:.1%} of the stream's square"
    result = {
        "from": str(folder),
        "became": "a checkpoint of caat",
        "shards": found.shards,
        "ratio": found.ratio,
        "channels": channels,
        "embeddings": _embeddings(found.model.tie_embeddings, source.flagged_tied),
        "tokenizer": source.tokenizer.name,
        "begin_and_end": f"{found.bos} and {', '.join(map(str, found.ends))}",
        "parameters": source.bytes // 4,
        "bytes": source.bytes,
    }
    return result, partial(import_checkpoint, source)


def _embeddings(tied: bool, flagged: bool) -> str:
    if tied:
        return "tied: one matrix, which is also the head"
    return "untied" + (": tie_word_embeddings is true, but the file has a separate head" if flagged else "")


def _export(
    config: ConvertConfig, folder: Path, check_room: Callable[[int], None]
) -> tuple[dict[str, Any], Callable]:
    from layers.huggingface.exporting import check_trained, export_checkpoint

    only_imported = {
        "parallel.tensor": config.parallel.tensor,
        "sync.ratio": config.sync.ratio,
        "order": config.order,
    }
    for name, value in only_imported.items():
        require(
            value is None,
            f"{name}={value} is for a model that comes from Hugging Face, but from={config.from_} is a "
            "checkpoint of caat, which defines it: leave it out",
        )
    trained = check_trained(find(folder, "from"))
    check_room(trained.bytes)
    found = trained.architecture
    how = found.transformers_class or "modeling_caat.py: load it with trust_remote_code=True"
    result = {
        "from": str(trained.folder),
        "became": f"a Hugging Face folder, {how}",
        "shards": found.shards,
        "ratio": found.ratio,
        "tokenizer": ", ".join(trained.tokenizer) + _how_to_load(trained.tokenizer, how),
        "begin_and_end": f"{found.bos} and {', '.join(map(str, found.ends))}",
        "bytes": trained.bytes,
    }
    return result, partial(export_checkpoint, trained)


def _how_to_load(tokenizer: Mapping[str, bytes], model: str) -> str:
    from layers.huggingface.qwen2_tokenizer import has_rules_of_qwen2

    if "tokenizer.json" not in tokenizer:
        return " alone: transformers has no equivalent"
    if model == "Qwen2ForCausalLM" and not has_rules_of_qwen2(tokenizer["tokenizer.json"]):
        return ": load it with transformers.PreTrainedTokenizerFast, not with AutoTokenizer"
    return ""


def _check_target(to: Path, given: str) -> None:
    require(
        not to.exists() or (to.is_dir() and not any(to.iterdir())),
        f"to={given} exists and is not an empty folder: give a new one",
    )
    # The finished folder takes the place of an empty one, which these are not free for.
    require(not to.is_mount(), f"to={given} is a mount point: give a folder in it")
    require(
        not to.exists() or not to.samefile(Path.cwd()),
        f"to={given} is the folder that you are in: give another one",
    )


def _check_room(place: Path, given: str, size: int) -> None:
    at, free = nearest_folder(place), free_bytes(place)
    require(
        free is None or size <= free,
        f"to={given} takes {size_text(size)}, but {size_text(free or 0)} are free"
        + (f" in {at}: make room, or set TMPDIR" if is_url(given) else ": make room, or write elsewhere"),
    )


def _write(write: Callable, to: Path, result: dict[str, Any], remote: RemoteFolder | None = None) -> None:
    """Write the folder ``to``, and upload it to ``remote`` if there is one."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("converting", total=result["bytes"])
            write(to, result, lambda size: progress.advance(task, size))
            if remote:
                size = sum(file.stat().st_size for file in to.iterdir())
                task = progress.add_task("uploading", total=size)
                remote.upload(to, lambda size: progress.advance(task, size))
    except OSError as error:
        raise ValueError(f"to={to} could not be written ({error.strerror}): no files are left") from error


if __name__ == "__main__":
    import sys

    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
