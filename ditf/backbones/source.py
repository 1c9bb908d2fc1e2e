"""The files of a checkpoint, in a local folder or on the hub, and what to say when they cannot be had."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

__all__ = ["Files", "hub_errors"]

BUNDLED = {"ditf-tiny": Path(__file__).parent.parent / "tiny"}
"""Models that come with the package."""


@dataclass(frozen=True)
class Files:
    """One checkpoint's files, fetched one by one.

    Attributes:
        source: hub id, local folder, or the name of a bundled model.
        revision, token, local_files_only: as in ``huggingface_hub``; of no effect on a folder.
    """

    source: str
    revision: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, if it is one."""
        if self.source in BUNDLED:
            return BUNDLED[self.source]
        path = Path(self.source).expanduser()
        return path if path.is_dir() else None

    def get(self, name: str) -> Path:
        """The local path of a file, downloaded if need be.

        Raises:
            ModelError: it cannot be had; says what to try.
        """
        if (folder := self.folder) is not None:
            if not (folder / name).is_file():
                unfinished = any((folder / name).parent.glob("*.incomplete")) or "-of-" in name
                state = ", its download is not finished: run `hf download` again or copy" if unfinished else "; give"
                raise ModelError(f"{folder}: no {name} inside{state} a complete diffusers pipeline folder")
            return folder / name
        from huggingface_hub import hf_hub_download

        with hub_errors(self.source):
            return Path(
                hf_hub_download(
                    self.source,
                    name,
                    revision=self.revision,
                    token=self.token,
                    local_files_only=self.local_files_only,
                )
            )

    def find(self, *names: str) -> Path | None:
        """The first of these files that the checkpoint has.

        Raises:
            ModelError: the hub cannot be asked and none is at hand.
        """
        if (folder := self.folder) is not None:
            return next((folder / name for name in names if (folder / name).is_file()), None)
        failure: ModelError | None = None
        for name in names:
            try:
                return self.get(name)
            except _NoSuchFileError:
                continue
            except ModelError as error:  # offline: a file of another name may still be at hand
                failure = error
        if failure is not None:
            raise failure
        return None

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's content.

        Raises:
            ModelError: it cannot be had or read.
        """
        path = self.get(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); download the checkpoint again") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path}: got {type(content).__name__}, expected a JSON object; download it again")
        return content


class _NoSuchFileError(ModelError):
    """The repository exists and does not have the file."""


@contextlib.contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Say in one sentence why the hub gave nothing, and the three things to try.

    Raises:
        ModelError: in place of any error of ``huggingface_hub`` or the network.
    """
    from huggingface_hub import errors

    broken_off = tuple(kind for name in _BROKEN_OFF if (kind := getattr(errors, name, None)) is not None)
    try:
        yield
    except errors.GatedRepoError:
        reason = "access is gated and was refused"
    except errors.RepositoryNotFoundError:
        reason = "no such public model on the hub"
    except errors.RevisionNotFoundError:
        reason = "the model has no such revision"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        reason = f"it is not on this machine and the hub cannot be reached ({type(error).__name__})"
    except errors.EntryNotFoundError as error:
        raise _NoSuchFileError(f"{source}: a file is missing ({_first_line(error)}); {_advice(source)}") from None
    except errors.HFValidationError:
        reason = "neither a folder on this machine nor a hub id (owner/name)"
    except errors.HfHubHTTPError as error:
        reason = f"the hub answered with an error ({_first_line(error)})"
    except broken_off as error:
        reason = f"the download broke off ({_first_line(error)})"
    except errors.LocalTokenNotFoundError:
        reason = "a token was asked for and none is stored on this machine"
    except OSError as error:  # transformers wraps the hub's errors
        reason = f"its files cannot be had ({_first_line(error)})"
    else:
        return
    raise ModelError(f"{source}: {reason}; {_advice(source)}")


_BROKEN_OFF = ("HTTPError", "XetDownloadError", "RevisionResolutionError", "CachedRepoTreeNotFoundError")
"""Errors of ``huggingface_hub.errors`` for a connection that fails on the way; the first is its HTTP library's."""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _advice(source: str) -> str:
    return (
        f"try: (1) check the id {source!r} and the revision; (2) accept the model's licence on its page at "
        "huggingface.co and log in with `hf auth login`, or pass token=; (3) download it on another machine "
        "(`hf download`) and pass the folder"
    )
