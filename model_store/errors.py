"""Everything that can be wrong with a model, one class a cause.

ModelStoreError
├── ModelNotFoundError      no bundle or registered model of that name
├── ManifestError           manifest.json does not follow the schema
├── BundleError             the files of a bundle are not what the manifest says
│   ├── FileMissingError
│   ├── FileUnexpectedError
│   ├── SizeMismatchError
│   ├── DigestMismatchError
│   └── BundleExistsError   publishing over a version that stands
├── UnsafeWeightsError      weights that are not safetensors (a pickle, say)
├── NetworkNotFoundError    the model has no such network at that precision
├── WeightsMismatchError    the tensors do not fit the architecture that the manifest names
├── LabelMismatchError      the labels do not fit the classifier's outputs
├── ParityError             an exported network does not compute what the weights compute
└── NothingToRollBackError  the default has no earlier value
"""


class ModelStoreError(Exception):
    """Root of all errors of `model_store`."""


class ModelNotFoundError(ModelStoreError):
    """No bundle or registered model of that name and version."""


class ManifestError(ModelStoreError):
    """A manifest that does not follow the schema; the message holds each key's path."""


class BundleError(ModelStoreError):
    """The files of a bundle are not what its manifest says."""


class FileMissingError(BundleError):
    """A file that the manifest names is not there."""


class FileUnexpectedError(BundleError):
    """A file is there that the manifest does not name."""


class SizeMismatchError(BundleError):
    """A file is shorter or longer than recorded (a truncated copy, say)."""


class DigestMismatchError(BundleError):
    """A file has the recorded size but other bytes."""


class BundleExistsError(BundleError):
    """Publishing would replace a version that stands; versions are immutable."""


class UnsafeWeightsError(ModelStoreError):
    """Weights that are not a safetensors file: loading them could run code."""


class NetworkNotFoundError(ModelStoreError):
    """A registered model has no network of that name at that precision."""


class WeightsMismatchError(ModelStoreError):
    """The tensors of the weights file do not fit the architecture that the manifest names."""


class LabelMismatchError(ModelStoreError):
    """The number of labels is not the number of the classifier's outputs."""


class ParityError(ModelStoreError):
    """An exported network differs from the torch weights by more than the gate allows."""


class NothingToRollBackError(ModelStoreError):
    """The default has no earlier value to go back to."""


class PretrainedWeightsError(ModelStoreError):
    """Weights that a library fetches from a model hub are not to be had: no network, no cache, or no such weights."""
