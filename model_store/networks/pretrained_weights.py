"""Where timm's pretrained weights come from: the model hub's cache on this machine, or the hub itself."""

from __future__ import annotations

from pathlib import Path

import timm
from huggingface_hub import constants, get_session, try_to_load_from_cache

from model_store.errors import PretrainedWeightsError

HUB_TIMEOUT_S = 5.0
"""How long the hub may take to say that it is there. timm's own download repeats itself for a minute or more."""

_FILE = "model.safetensors"


def weights_overlay(model: str, cache_dir: str | None = None) -> dict[str, object] | None:
    """What `timm.create_model` is given as `pretrained_cfg_overlay`: the cached file, or None to let timm download.

    cache_dir: the hub's cache, by default the one that HF_HOME or HF_HUB_CACHE name. A cached file is used without a
    network. Raises PretrainedWeightsError when timm has no weights of that name, or when they are neither cached nor
    the hub within reach (once asked, for at most HUB_TIMEOUT_S).
    """
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # a tag that the model lacks
        config = None
    repository = None if config is None else config.hf_hub_id
    if repository is None:
        raise PretrainedWeightsError(
            f"{model}: timm has no pretrained weights on the hub; set network.pretrained = false"
        )
    cached = try_to_load_from_cache(repository, _FILE, cache_dir=cache_dir)
    if isinstance(cached, str) and Path(cached).is_file():
        # A file of the hub is in torch's layout, also where the original at `url` is in another's.
        return {"file": cached, "custom_load": False}
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:
        folder = cache_dir or constants.HF_HUB_CACHE
        raise PretrainedWeightsError(
            f"{model}: its pretrained weights ({repository}) are not in the cache {folder}, and {constants.ENDPOINT} "
            f"is out of reach ({type(error).__name__}). Go online once, copy a filled cache here, or set "
            "network.pretrained = false"
        ) from error
    return None
