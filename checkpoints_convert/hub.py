"""Checkpoints on the Hugging Face hub, named `owner/name` or `owner/name@revision` in place of a folder.

huggingface_hub downloads the files to its cache, and reads `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and the token
(`HF_TOKEN` or that of `hf auth login`). Processes of one host take turns: its file locks let one of them download a
file while the others wait for it.
"""

import contextlib
import fnmatch
import glob
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints_convert.sidecars import PROCESSOR_FILES, TOKENIZER_FILES
from checkpoints_convert.tensor_files import WEIGHT_SUFFIXES, shard_names, weight_candidates
from janus_jax import extras
from janus_jax.buckets import as_path, is_remote, local_copy
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, reading

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ResolvedRevision

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_PACKAGE = "huggingface_hub"
_CACHED_REPOSITORY = re.compile(r"models--(.+)")

_SMALL_FILES = ("config.json", "adapter_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES)
_CONVERTED_FILES = ("params/*", "unused*.safetensors")
_PARTS = ("", "vae/")
"""Folders with a checkpoint in a repository: the model, and JanusFlow's VAE."""


def local_path(path: str | Path, *, weights: bool = True) -> Path:
    """Returns the local path of a checkpoint.

    A path that exists wins over a hub id. For a hub id, the files that a checkpoint needs are downloaded to the hub's
    cache, unless the cache has them: config, tokenizer, processor, and the weights in one format.

    Args:
      path: A local path, a folder on a bucket (`buckets.local_copy`), or a hub id.
      weights: Whether to download the weights. False: only the other files.

    Returns:
      The path itself, also if it does not exist and is no hub id; or the folder in the hub's cache.

    Raises:
      JanusError: The path does not exist but looks like a hub id, and the package huggingface_hub is not installed or
        the model cannot be fetched. The message has the remedies for a wrong path and for a wrong id.
    """
    if is_remote(path):
        return local_copy(path, None if weights else _SMALL_FILES)
    match, local = _ID.fullmatch(str(path)), as_path(path)
    with reading(path):
        if match is None or local.suffix in (*WEIGHT_SUFFIXES, ".json") or local.exists():
            return local
    extras.require(f"{path} does not exist; fix the path, or, if it is a model on the hub, fetching it", _PACKAGE)
    repository, revision = match.groups()
    with _hub_errors(str(path), repository, revision):
        return _download(repository, revision, weights=weights)


def is_hub_id(text: str) -> bool:
    """Returns whether a text has the form of a hub id, and no local path has this name."""
    return bool(_ID.fullmatch(text)) and not Path(text).exists()


def create_repository(name: str, *, private: bool = False) -> None:
    """Creates a model repository, if there is none. Fails at once if the user may not write to it.

    Args:
      name: `owner/name`.
      private: Whether a new repository is private.

    Raises:
      JanusError: The package huggingface_hub is not installed, the name is no hub id, or the hub refuses the request.
    """
    extras.require("--push_to_hub", _PACKAGE)
    match = _ID.fullmatch(name)
    if match is None or match[2] is not None:
        raise JanusError(f"--push_to_hub is {name!r}; it must be OWNER/NAME.")
    from huggingface_hub import HfApi

    with _push_errors(name):
        HfApi(library_name="janus_jax").create_repo(name, private=private or None, exist_ok=True)


def push(folder: Path, name: str, message: str) -> str:
    """Uploads a folder to a model repository, in one commit. Files that are there already are not sent again.

    Args:
      message: Subject of the commit.

    Returns:
      The address of the model.

    Raises:
      JanusError: The hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    with _push_errors(name, f"; {folder} is complete, upload it with hf upload {name} {folder}"):
        HfApi(library_name="janus_jax").upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return f"{constants.ENDPOINT}/{name}"


@contextlib.contextmanager
def _push_errors(name: str, remedy: str = "") -> Iterator[None]:
    from huggingface_hub import constants

    try:
        yield
    # See `_hub_errors`.
    except Exception as error:
        raise JanusError(
            f"{name} cannot be written on {constants.ENDPOINT} ({describe_error(error)}){remedy}; check that HF_TOKEN "
            f"is a token with write access, that HF_HUB_OFFLINE is not set, and the network."
        ) from error


def is_cached(folder: Path) -> bool:
    """Returns whether a folder is in the hub's cache."""
    return _repository_name(folder) is not None


def folder_name(folder: Path) -> str:
    """Returns the name of a checkpoint's folder; the name of its repository if it is in the hub's cache."""
    return _repository_name(folder) or folder.resolve().name


def _repository_name(folder: Path) -> str | None:
    for part in folder.resolve().parts:
        if match := _CACHED_REPOSITORY.fullmatch(part):
            return match[1].rpartition("--")[2]
    return None


def _download(repository: str, revision: str | None, *, weights: bool) -> Path:
    from huggingface_hub import HfApi

    api = HfApi(library_name="janus_jax")
    # The branch is looked up once, so that all files are of the same commit.
    resolved = api.resolve_revision(repository, revision=revision)
    names = _file_names(api, repository, resolved)
    wanted = [name for part in _PARTS for name in _small_files(names, part)]
    if weights:
        wanted += [name for part in _PARTS for name in _weights(api, names, part, (repository, resolved))]
    patterns = [glob.escape(name) for name in wanted]
    # huggingface_hub has progress bars for terminals. In a log, an error must be the only line.
    bars = None if sys.stderr.isatty() else _no_bars()
    return Path(api.snapshot_download(repository, revision=resolved, allow_patterns=patterns, tqdm_class=bars))


def _no_bars() -> type:
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings | {"disable": True})

    return NoBar


def _file_names(api: "HfApi", repository: str, revision: "ResolvedRevision") -> list[str]:
    """Returns the names of all files of a commit, from the cache if possible."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled

    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return [file.path for file in get_cached_repo_tree(repository, revision=revision.resolved)]
    try:
        return api.list_repo_files(repository, revision=revision.resolved)
    except OfflineModeIsEnabled:
        # Older versions of huggingface_hub cached the files without their list.
        folder = Path(api.snapshot_download(repository, revision=revision, local_files_only=True))
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _small_files(names: Collection[str], part: str) -> list[str]:
    return [part + name for name in _SMALL_FILES if part + name in names]


def _weights(api: "HfApi", names: Iterable[str], part: str, commit: tuple[str, "ResolvedRevision"]) -> list[str]:
    """Returns the files with the weights of the checkpoint in one folder of a repository.

    Args:
      names: Names of all files.
      part: Prefix of the folder.
      commit: The repository and its commit.
    """
    repository, revision = commit
    names = [name.removeprefix(part) for name in names if name.startswith(part)]
    if any(name.startswith("params/") for name in names):
        return [part + name for pattern in _CONVERTED_FILES for name in fnmatch.filter(names, pattern)]
    candidates = weight_candidates(names)
    if len(candidates) > 1:
        raise JanusError(
            f"{repository} has several files with weights ({', '.join(candidates)}); download one with hf download "
            f"{repository} FILE, and give its path."
        )
    if candidates and candidates[0].endswith(".index.json"):
        index = api.hf_hub_download(repository, part + candidates[0], revision=revision)
        candidates += shard_names(Path(index))
    return [part + name for name in candidates]


@contextlib.contextmanager
def _hub_errors(path: str, repository: str, revision: str | None) -> Iterator[None]:
    """Turns errors of huggingface_hub into `JanusError`.

    Args:
      path: The user's text, for messages.
      repository: `owner/name`.
      revision: The branch, tag or commit; None if the user gave none.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except JanusError:
        raise
    except errors.GatedRepoError as error:
        raise JanusError(
            f"{path} is gated; accept its terms on {constants.ENDPOINT}/{repository}, and set HF_TOKEN to a token of "
            f"that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise JanusError(
            f"{path} is neither a local path nor a model on {constants.ENDPOINT} that you can read; fix the path or "
            f"the id, or, if the model is private, set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise JanusError(
            f"{repository} has no revision {revision!r} on {constants.ENDPOINT}; give one of its branches, tags or "
            f"commits after the @."
        ) from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        missing = f"{path} is neither a local path nor complete in the hub's cache ({constants.HF_HUB_CACHE}), and"
        if constants.is_offline_mode():
            raise JanusError(f"{missing} HF_HUB_OFFLINE is set; fix the path, or unset HF_HUB_OFFLINE.") from error
        raise JanusError(
            f"{missing} {constants.ENDPOINT} cannot be reached; fix the path, or check the network and HF_ENDPOINT."
        ) from error
    # The library and those below it raise errors of many types for an unreliable network or server.
    except Exception as error:
        raise JanusError(
            f"{path} cannot be fetched from {constants.ENDPOINT} ({describe_error(error)}); run the command again, or "
            f"check the network, HF_ENDPOINT and HF_TOKEN."
        ) from error
