"""What can go wrong: one class for each kind of failure, each also the built-in exception that it is.

``except llava_sae.LlavaSaeError`` catches them all, ``except ValueError`` those that are about a value.
A Ctrl-C raises Python's own `KeyboardInterrupt`, and an argument of a wrong type its `TypeError`.
"""

from __future__ import annotations


class LlavaSaeError(Exception):
    """What failed and why.

    Attributes
    ----------
    message : str
        The sentence.
    hint : str or None
        What to do about it, where something can be done.
    """

    def __init__(self, message: str = "", hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class InvalidError(LlavaSaeError, ValueError):
    """An argument or a file is malformed, out of range, or does not fit."""


class UnknownFeatureError(LlavaSaeError, KeyError, IndexError):
    """No feature has this index or label."""


class AmbiguousFeatureError(LlavaSaeError, KeyError):
    """A label is part of several features' labels."""


class UnsupportedError(LlavaSaeError, NotImplementedError):
    """Something valid in itself that this program, or this model, cannot do."""


class DamagedError(LlavaSaeError, ValueError):
    """A file's contents are not what was written."""


class MissingError(LlavaSaeError, ValueError):
    """A file or a setting that is needed was not given."""


class NoProjectorError(LlavaSaeError, ValueError):
    """The model has no projector, and was given a picture."""


class ChatTemplateError(LlavaSaeError, ValueError):
    """The model has no chat template, or the prompt does not go with one."""


class ContextTooSmallError(LlavaSaeError, ValueError):
    """More tokens than the context holds."""


class OutOfMemoryError(LlavaSaeError, MemoryError):
    """More memory than is free."""


class ExistsError(LlavaSaeError, FileExistsError):
    """The file to be written exists."""


class HookPointMissingError(LlavaSaeError, ValueError):
    """An SAE whose hook point is not known."""


class NormFactorMissingError(LlavaSaeError, ValueError):
    """An SAE whose norm factor is not known."""


class KvTypeError(LlavaSaeError, ValueError):
    """The KV cache's number type does not go with another setting, or with a hook point."""


class NoPositionError(LlavaSaeError, ValueError):
    """There is no position of the kind that was asked for."""


class NoBaselineError(LlavaSaeError, ValueError):
    """The SAE's file does not say what is usual, and numbers count in that; ``llava-sae-cpp baseline`` measures it."""


class NoLabelsError(LlavaSaeError, ValueError):
    """A search by label, and no SAE has labels."""


class NoProbeError(LlavaSaeError, RuntimeError):
    """The files cannot be tried in a process of their own."""


class NotPublishedError(LlavaSaeError, FileNotFoundError):
    """Nothing has that name or address where models are published."""


class AccessDeniedError(LlavaSaeError, PermissionError):
    """What is published is not for everybody."""


class NetworkError(LlavaSaeError, ConnectionError):
    """A server cannot be reached, or does not answer as it should."""


class RateLimitedError(LlavaSaeError, ConnectionError):
    """A server wants to be asked less often."""


class OfflineError(LlavaSaeError, ConnectionError):
    """Something has to be downloaded, and no downloads are wanted."""


class DiskFullError(LlavaSaeError, OSError):
    """A disk has too little free space."""


class FileError(LlavaSaeError, OSError):
    """The operating system refused a file operation."""


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""


class FilePermissionError(FileError, PermissionError):
    """The file is not for this user."""


class EngineError(LlavaSaeError, RuntimeError):
    """llama.cpp or ggml refused."""


class StoppedError(LlavaSaeError, KeyboardInterrupt):
    """A run was stopped from elsewhere, such as by closing its model."""


class ClosedError(LlavaSaeError, ValueError):
    """The model is closed, or belongs to another process."""


_BY_KIND: dict[str, type[LlavaSaeError]] = {
    "invalid": InvalidError,
    "unknown_feature": UnknownFeatureError,
    "ambiguous_feature": AmbiguousFeatureError,
    "unsupported": UnsupportedError,
    "damaged": DamagedError,
    "missing": MissingError,
    "no_projector": NoProjectorError,
    "chat_template": ChatTemplateError,
    "context_length_exceeded": ContextTooSmallError,
    "out_of_memory": OutOfMemoryError,
    "exists": ExistsError,
    "hook_point_missing": HookPointMissingError,
    "norm_factor_missing": NormFactorMissingError,
    "kv_type": KvTypeError,
    "no_position": NoPositionError,
    "no_labels": NoLabelsError,
    "no_baseline": NoBaselineError,
    "no_probe": NoProbeError,
    "not_published": NotPublishedError,
    "access_denied": AccessDeniedError,
    "network": NetworkError,
    "rate_limited": RateLimitedError,
    "offline": OfflineError,
    "disk_full": DiskFullError,
    "io": FileError,
    "runtime": EngineError,
    "interrupted": StoppedError,
    # What the native module adds.
    "not_found": MissingFileError,
    "permission_denied": FilePermissionError,
    "closed": ClosedError,
}


def of_kind(kind: str, message: str, hint: str | None = None) -> LlavaSaeError:
    """Make the exception of a kind of failure; the native module raises it."""
    return _BY_KIND.get(kind, LlavaSaeError)(message, hint)
