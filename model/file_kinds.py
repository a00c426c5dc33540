"""Kinds of files that run code when they are opened, or that nobody needs to open: known by name and by
their first bytes, without being opened by the libraries that they are for."""

import re

__all__ = ["refused_content", "refused_name"]

_NAMES = {
    "a pickle": ("pkl", "pickle", "joblib", "dill", "cloudpickle", "npy", "npz"),
    "a PyTorch model, which is a pickle": ("pth", "pt", "ckpt", "bin", "safetensors"),
    "an HDF5 model": ("h5", "hdf5", "weights"),
    "a Keras archive": ("keras",),
    "an archive": ("zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar"),
    "a program": ("py", "pyc", "pyo", "so", "dll", "dylib", "exe", "sh", "jar", "whl"),
    "a model of another kind": ("onnx", "tflite", "mar", "pbtxt.gz"),
    "a SavedModel in a form that is not inspected": ("cpb",),
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _NAMES.items() for suffix in suffixes}
_CONTENTS = (
    (re.compile(rb"\x80[\x02-\x05](?s:.*)"), "a pickle"),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "an HDF5 model"),
    (re.compile(rb"PK\x03\x04"), "a zip archive, as PyTorch and Keras write models"),
    (re.compile(rb"\x1f\x8b\x08"), "a gzip archive"),
    (re.compile(rb"\x7fELF"), "a program"),
)


def refused_name(path: str) -> str | None:
    """What a file is by its name, if it must not be in a release."""
    name = path.rpartition("/")[2].casefold()
    if name == "saved_model.pbtxt":
        return "a SavedModel in a form that is not inspected"
    return _BY_SUFFIX.get(name.rpartition(".")[2]) if "." in name else None


def refused_content(path: str, head: bytes) -> str | None:
    """What a file is by its first bytes, if it must not be in a release.

    The values of a SavedModel's variables may begin with any bytes, and are never read as anything else.
    """
    if "/variables/variables.data-" in path:
        return None
    return next((kind for pattern, kind in _CONTENTS if pattern.match(head)), None)
