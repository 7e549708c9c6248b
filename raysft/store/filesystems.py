"""The filesystem behind a storage's address: a local one, S3 or Google Cloud Storage, all through Arrow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow.fs as pafs

from raysft.store.objects import ANSWER_S, ATTEMPTS, CONNECT_S, Bucket

OpenedFilesystem = tuple[pafs.FileSystem, str, Bucket | None]

_OPTIONS = {"s3": {"region", "scheme", "endpoint_override"}, "gs": set[str]()}


@dataclass(frozen=True)
class Address:
    """The parts of `SCHEME://BUCKET/FOLDER?OPTIONS`; the scheme is `file` for a local path."""

    scheme: str
    bucket: str
    root: str
    options: dict[str, str]


def parse_address(uri: str) -> Address:
    """Raises ValueError, with no word of what may be a secret, for an address that is none or holds credentials."""
    if "://" not in uri:
        return Address("file", "", str(Path(uri).expanduser().resolve()), {})
    scheme, _, rest = uri.partition("://")
    authority, slash, folder = rest.partition("?")[0].partition("/")
    host = authority.rpartition("@")[2]
    if host != authority:
        shown = f"{scheme}://***@{host}{slash}{folder}"
        raise ValueError(f"storage {shown}: credentials come from the environment, and stand in no address")
    where = f"storage {scheme}://{host}{slash}{folder}"
    options = dict(parse_qsl(urlsplit(uri).query, keep_blank_values=True))
    known = _OPTIONS.get(scheme)
    if known is None or not host:
        raise ValueError(f"{where}: valid are a local path, s3://BUCKET/FOLDER and gs://BUCKET/FOLDER")
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{where}: unknown option {unknown[0]}; valid: {', '.join(sorted(known)) or 'none'}")
    return Address(scheme, host, f"{host}{slash}{unquote(folder)}".rstrip("/"), options)


def open_filesystem(address: Address) -> OpenedFilesystem:
    """(filesystem, root in it, bucket for conditional puts or None); OSError for a service that does not answer,
    ImportError without the package for conditional puts."""
    if address.scheme == "file":
        return pafs.LocalFileSystem(), address.root, None
    if address.scheme == "gs":
        return _gcs(), address.root, Bucket("gs", address.bucket)
    endpoint = _endpoint(address.options)
    region = _region(address.bucket, address.options, endpoint)
    return _s3(region, endpoint), address.root, Bucket("s3", address.bucket, region, endpoint)


def _endpoint(options: dict[str, str]) -> str | None:
    """Where an S3 service other than Amazon's answers."""
    named = options.get("endpoint_override")
    if named is None:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named if "://" in named else f"{options.get('scheme', 'https')}://{named}"


def _region(bucket: str, options: dict[str, str], endpoint: str | None) -> str:
    if "region" in options:
        return options["region"]
    if endpoint is not None:
        return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return str(pafs.resolve_s3_region(bucket))


def _s3(region: str, endpoint: str | None) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        allow_delayed_open=True,  # a small file is one request
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def _gcs() -> pafs.GcsFileSystem:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=ATTEMPTS * ANSWER_S))
