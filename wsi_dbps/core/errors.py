"""Everything that can go wrong and is not a bug.

    WsiDbpsError
    ├── ManifestError          a cohort table that cannot be used
    ├── ConfigError            a setting that is unknown or out of range
    ├── SlideError             one slide that cannot be used
    │   ├── UnreadableSlideError
    │   └── MissingMppError
    ├── CacheError             a patch cache that is missing, damaged or of another version
    │   └── SpecMismatchError  a cache made with other settings or from another slide file, or an export
    │                          made with other settings or from another cache
    ├── UnknownGridError       the size or mpp of a slide, which a file does not say
    ├── CheckpointError        a checkpoint that is missing, damaged or does not fit
    ├── TrainingError          training cannot start or go on
    │   └── StoppedError       training was told to end, and has saved its state
    ├── PredictionError        predictions that cannot be made or evaluated
    └── OutputError            a file that cannot be written
        └── ForeignFileError   a file of somebody else, which is never replaced

Each message is one line: which slide, which file, what was found, what to do. The command line prints it and exits
with 2 (1 when only some slides failed, 143 or 130 when training was told to end); anything else is a bug and keeps its
traceback.
"""


class WsiDbpsError(Exception):
    """Base of every error a user can cause or repair."""


class ManifestError(WsiDbpsError):
    """A cohort table that cannot be used; the message lists every problem with its line number."""


class ConfigError(WsiDbpsError):
    """A setting that is unknown or out of range."""


class SlideError(WsiDbpsError):
    """One slide that cannot be used; the others go on."""


class UnreadableSlideError(SlideError):
    """A file that no reader, or not the one asked for, can open or decode."""


class MissingMppError(SlideError):
    """Neither the manifest nor the file says how large a pixel is."""


class CacheError(WsiDbpsError):
    """A patch cache that is missing, damaged or of another format version."""


class SpecMismatchError(CacheError):
    """A patch cache made with other settings or from another slide file, or an export of another cache."""


class UnknownGridError(WsiDbpsError):
    """The size or mpp of a slide or its patches is needed, and the file at hand does not say it."""


class CheckpointError(WsiDbpsError):
    """A checkpoint that is missing, damaged, or does not fit the cohort or the settings."""


class TrainingError(WsiDbpsError):
    """Training cannot start or go on."""


class StoppedError(TrainingError):
    """Training was told to end, by SIGTERM or Ctrl-C; its state is saved, to go on from."""

    def __init__(self, message: str, *, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        """128 + the signal's number: 143 after SIGTERM, 130 after Ctrl-C."""


class PredictionError(WsiDbpsError):
    """Predictions that cannot be made, read or evaluated."""


class OutputError(WsiDbpsError):
    """A file that cannot be written: no space, no permission."""


class ForeignFileError(OutputError):
    """A file that this package did not write, or that was changed since, where it would write one of its own."""


def one_line(said: object) -> str:
    """What an error of another library says, on one line and at most 200 characters long.

    Examples:
        >>> one_line(ValueError("no such\\n   key"))
        'no such key'
    """
    return " ".join(str(said).split())[:200]


def torch_said(error: Exception) -> str:
    """Why `torch.load` refused a file, in one line, without torch's advice to let the file run code.

    Examples:
        >>> torch_said(ValueError("no such\\nkey"))
        'no such key'
    """
    if "weights_only" in str(error):
        return "it holds Python objects other than tensors, which could run code; save its tensors alone (.safetensors)"
    return one_line(error)
