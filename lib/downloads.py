"""Pretrained weights without internet: from the hub's cache, or an error in seconds.

timm and open_clip download through huggingface_hub. Its client answers a failed connection with
more attempts, for about a minute, and prints a line about each. So before a download, one small
request shows whether the hub can be reached at all.
"""
import logging
import re
import time
from contextlib import contextmanager

import huggingface_hub
import timm
from huggingface_hub import constants
from huggingface_hub.utils import get_session

PATIENCE = 3  # seconds in which a failed connection is tried again


def why_offline():
    """Why nothing can be downloaded from the hub; "" if it answers, even if slowly."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    begin = time.monotonic()
    while True:
        try:
            # The hub's own client, so that its proxy and its address (HF_ENDPOINT) are used.
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return ""
        except Exception as error:  # noqa: BLE001 (which library raises it depends on the version)
            # ConnectError, ConnectTimeout, ConnectionError or ProxyError. All else, such as
            # ReadTimeout after a slow answer, is left to the download, which tries longer.
            if not re.match("Connect|Proxy", type(error).__name__):
                return ""
            if time.monotonic() - begin > PATIENCE:
                return f"no connection to {constants.ENDPOINT}: {error}"
        time.sleep(1)


@contextmanager
def cache_only(offline):
    """If `offline`, weights come from the hub's cache in this block, or an error comes at once."""
    if not offline:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)  # open_clip logs the error that it raises
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        constants.HF_HUB_OFFLINE = before


def address_of(backbone):
    """Where the pretrained weights of a timm model are."""
    config = timm.get_pretrained_cfg(backbone)
    if config is None:  # hf-hub:OWNER/NAME, which timm takes, too
        return huggingface_hub.hf_hub_url(backbone.partition(":")[2], "model.safetensors")
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        return huggingface_hub.hf_hub_url(config.hf_hub_id, file)
    return config.url
