"""Conditional puts into a bucket of S3 or Google Cloud Storage, which Arrow's filesystems do not have.

Protocol. An object is created with `If-None-Match: *` on S3 and generation 0 on GCS, and replaced with the ETag or
generation of the bytes that the writer saw: the service lets one of several writers through. A put whose answer was
lost may have been carried out, so it is sent again, and where it is then refused the object is read: if it holds the
writer's own bytes, the writer was the one. No two writers may therefore put the same bytes under one name.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

# A request is tried so often, with growing pauses, where the service is slow, busy or not reached.
ATTEMPTS = 6
CONNECT_S = 5.0
ANSWER_S = 10.0
_PUT_S = 60.0
_PATIENCE_S = 30.0  # after which a put is not sent again

# In the paths of the service that is asked for a machine's role when the environment holds no credentials.
_METADATA_SERVICES = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/")
_NO_CREDENTIALS = {
    "s3": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
    "gs": "no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
}


class Bucket:
    """A bucket, for conditional puts. What it raises are OSErrors; ImportError if obstore is not installed."""

    def __init__(self, scheme: str, name: str, region: str | None = None, endpoint: str | None = None) -> None:
        self._scheme = scheme
        self._store = _store(scheme, name, region, endpoint)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object where there is none; False if there is one."""
        return self._put(path, data, "create")

    def replace(self, path: str, seen: bytes, data: bytes) -> bool:
        """Put an object over one that still holds `seen`; False if it holds something else, or is gone."""
        found = self._get(path)
        if found is None or found[0] != seen:
            return False
        return self._put(path, data, found[1])

    def _get(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Bytes and version of an object; None if there is none."""
        import obstore
        from obstore.exceptions import BaseError

        try:
            got = obstore.get(self._store, path)
            data = bytes(got.bytes())
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._os_error(error) from error
        version = {"e_tag": got.meta["e_tag"], "version": got.meta["version"]}
        return data, {name: value for name, value in version.items() if value is not None}

    def _put(self, path: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

        patient_until = time.monotonic() + _PATIENCE_S
        while True:
            last = time.monotonic() > patient_until
            try:
                obstore.put(self._store, path, data, mode=mode)
                return True
            except (AlreadyExistsError, PreconditionError) as error:
                found = self._get(path)
                if found is not None:
                    return found[0] == data
                if mode != "create":
                    return False
                if last:  # S3 says 409 while another put is under way, and that one need not succeed
                    raise self._os_error(error) from error
            except FileNotFoundError as error:
                if mode != "create":  # what was to be replaced is gone
                    return False
                raise FileNotFoundError("there is no such bucket") from error
            except GenericError as error:
                if last or not _is_lost(error):
                    raise self._os_error(error) from error
            except BaseError as error:
                raise self._os_error(error) from error
            time.sleep(0.5)

    def _os_error(self, error: Exception) -> OSError:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        text = " ".join(str(error).partition("Debug source")[0].split())  # what follows is for obstore's developers
        if any(path in text for path in _METADATA_SERVICES):
            return PermissionError(_NO_CREDENTIALS[self._scheme])
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        return (PermissionError if refused else OSError)(text)


def _is_lost(error: Exception) -> bool:
    """Whether the service may have carried out a put without saying so; obstore itself sends such a put once only."""
    return "HTTP error" in str(error)


def _store(scheme: str, name: str, region: str | None, endpoint: str | None) -> S3Store | GCSStore:
    from obstore.store import GCSStore, S3Store

    client: Any = {"connect_timeout": f"{CONNECT_S}s", "timeout": f"{_PUT_S}s"}
    retry: Any = {"max_retries": ATTEMPTS - 1, "retry_timeout": timedelta(seconds=_PATIENCE_S)}
    if scheme == "gs":
        return GCSStore(name, client_options=client, retry_config=retry)
    given: Any = {} if endpoint is None else {"endpoint": endpoint}
    client["allow_http"] = endpoint is not None and endpoint.startswith("http://")
    return S3Store(name, region=region, client_options=client, retry_config=retry, **given)
