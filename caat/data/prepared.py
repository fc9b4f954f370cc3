"""The prepared text of a run: one folder of token shards, or one for each source of a mixture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from caat.data.corpus import data_fingerprint, prepare, prepared_folder
from caat.data.joint_tokenizer import joint_tokenizer, train_joint_tokenizer
from caat.data.mixing import shares_of
from caat.data.shards import TokenShards, read_index, sequence_count
from caat.data.text import check_source, is_prepared
from caat.data.tokenizer import find_tokenizer, tokenizer_difference
from conf.checks import require
from conf.data import DataConfig


@dataclass(frozen=True)
class Prepared:
    """Folders of token shards by name of the source, and their weights in a mixture.

    One text has the name "" and no weights. Raises ``ValueError`` for chats with different templates.
    """

    folders: dict[str, Path]
    weights: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path) -> Prepared:
        """Return the one text in ``folder``."""
        return Prepared({"": folder})

    def __post_init__(self) -> None:
        indices = {name: read_index(folder) for name, folder in self.folders.items()} if self.mixed else {}
        templates = {name: index.template for name, index in indices.items() if index.rows == "chat"}
        require(
            len(set(templates.values())) < 2,
            f"the chats of {' and '.join(templates)} were prepared with different templates, and a model "
            "keeps one: prepare them again from their rows, with the same data.chat_template",
        )

    @property
    def mixed(self) -> bool:
        return bool(self.weights)

    @property
    def shares(self) -> dict[str, Fraction]:
        """The share of each source in a global batch and in the validation loss."""
        return shares_of(self.weights) if self.mixed else dict.fromkeys(self.folders, Fraction(1))

    @property
    def tokenizer(self) -> Path:
        """The main file of the tokenizer, which is the same in all folders; a chat template is next to it."""
        chats = [folder for folder in self.folders.values() if read_index(folder).rows == "chat"]
        return find_tokenizer([*chats, *self.folders.values()][0])

    @property
    def untested(self) -> list[str]:
        """The names of the folders without a test split. If there are any, there is no test loss."""
        return [name for name, folder in self.folders.items() if not read_index(folder).test]

    def open(self, split: str) -> dict[str, TokenShards]:
        """Return a split of each source. Raises ``ValueError`` like :class:`TokenShards`."""
        return {name: TokenShards(folder, split) for name, folder in self.folders.items()}

    def epochs(self, sequence: int, position: int) -> dict[str, float]:
        """Return how often ``position`` sequences read each source, within one sequence of a source."""
        lengths = {name: sequence_count(shards, sequence) for name, shards in self.open("train").items()}
        return {name: float(self.shares[name] * position / length) for name, length in lengths.items()}

    def fingerprint(self, *, checksums: bool = True) -> str:
        """Return a hash of the tokens and the mixture, whatever their location: `data_fingerprint`."""
        found = {name: data_fingerprint(each, checksums=checksums) for name, each in self.folders.items()}
        if not self.mixed:
            return found[""]
        content = [[name, str(share), found[name]] for name, share in self.shares.items()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return ", ".join(map(str, self.folders.values()))


def find_prepared(config: DataConfig) -> Prepared | None:
    """Return the prepared text of ``config`` if all of it exists. Cheap.

    Raises ``ValueError`` like `check_source`, and for sources that are prepared with different tokenizers.
    """
    folders = planned_folders(config)
    if not folders or not all(map(is_prepared, folders.values())):
        return None
    return Prepared(folders, config.mixture)


def planned_folders(config: DataConfig, out: Path | None = None) -> dict[str, Path]:
    """Return the folders of :func:`prepare_text`, also of what does not exist yet.

    Empty if their names depend on a tokenizer that is not trained yet.
    """
    if out and not config.mixture:
        return {"": out}
    return {
        name: _place(source, out, name) or prepared_folder(source)
        for name, source in (_sources(config) or {}).items()
    }


def prepare_text(config: DataConfig, out: Path | None = None) -> Prepared:
    """Return the prepared text of ``config``, creating what does not exist.

    ``out`` replaces the folder under ``config.dir``; the sources of a mixture go to folders in it that have
    their names. Raises ``ValueError`` like :func:`caat.data.corpus.prepare`.
    """
    if not config.mixture:
        return Prepared.of(prepare(config, out))
    sources = _sources(config)
    if sources is None:
        train_joint_tokenizer(_separate(config))
        sources = _sources(config)
        assert sources is not None
    folders = {name: prepare(source, _place(source, out, name)) for name, source in sources.items()}
    return Prepared(folders, config.mixture)


def _place(source: DataConfig, out: Path | None, name: str) -> Path | None:
    return out / name if out and check_source(source).kind != "prepared" else None


def given_tokenizer(config: DataConfig) -> Path | None:
    """Return the tokenizer that the text is or will be prepared with; None if one is trained.

    Raises ``ValueError`` if sources of the mixture are prepared with another one.
    """
    given = Path(config.tokenizer).expanduser() if config.tokenizer else None
    if not config.mixture:
        return given
    for source in _separate(config).values():
        found = check_source(source)
        if found.kind != "prepared":
            continue
        theirs = find_tokenizer(found.files[0])
        given = given or theirs
        other = tokenizer_difference(theirs, given)
        require(
            not other,
            f"{source.given} was prepared with another tokenizer than {given}, and a mixture has one "
            f"({other}): prepare it again from its text, with data.tokenizer={given}",
        )
    return given


def check_given(config: DataConfig, folder: Path, *, tokenizer: bool = True) -> None:
    """Raise ``ValueError`` if ``folder`` was prepared without what ``config`` gives: tokenizer, test split.

    A folder that is given as prepared text has been made with other settings. ``tokenizer``: compare that.
    """
    given, used = config.tokenizer, find_tokenizer(folder)
    other = tokenizer_difference(used, Path(given).expanduser()) if given and tokenizer else ""
    require(
        not other,
        f"data.tokenizer={given}, but {folder} was prepared with another one, {used} ({other}): leave "
        "data.tokenizer out, or give the text itself as data.path",
    )
    require(
        not config.test or bool(read_index(folder).test),
        f"data.test={config.test}, but {folder} was prepared without a test split: prepare its text again "
        "with it, or leave data.test out",
    )


def _separate(config: DataConfig) -> dict[str, DataConfig]:
    return {name: config.source(name) for name in sorted(config.mixture)}


def _sources(config: DataConfig) -> dict[str, DataConfig] | None:
    """Return the settings of each source, with the tokenizer of all; None if it is not trained yet."""
    if not config.mixture:
        return {"": config}
    separate = _separate(config)
    tokenizer = given_tokenizer(config) or joint_tokenizer(separate)
    if not tokenizer.is_file():
        return None
    return {
        name: source if check_source(source).kind == "prepared" else replace(source, tokenizer=str(tokenizer))
        for name, source in separate.items()
    }
