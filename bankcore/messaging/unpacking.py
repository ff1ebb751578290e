"""Take a message off the wire: keep its bytes as they came, bound what they unpack to, and survive its headers.

kombu decompresses a message as it arrives, with any codec that is installed and without a limit. Here one codec is
known, the one that is used, and its output is bounded before anybody looks at it.

py-amqp reads headers and properties while it reads the connection: what it cannot read (a moment in milliseconds, text
in another encoding, tables in tables without end) would end the worker, and the next one as well. Here such a message
arrives with a header that says so, and is refused like any other that cannot be handled.
"""

from typing import Any

from amqp.basic_message import Message as AmqpMessage
from backports import zstd
from kombu import compression

# Far above 500 ids, packed or not. A broker takes messages a thousand times as large.
BYTES_MAX = 256 * 1024
# Ids are random, and shrink to a third or, as numbers, to a tenth.
RATIO_MAX = 100
CODEC = "application/zstd"
# A frame may ask for a window of memory far larger than what it holds (as a power of two).
_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): 20}


class Unpackable(Exception):
    """A body that is not unpacked; `kind` is a few words to count by."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def unpack(codec: Any, body: bytes) -> bytes:
    """Decompress a body.

    Raises:
        Unpackable: another codec, no such data, or more of it than any message of ours holds.
    """
    if len(body) > BYTES_MAX:
        raise Unpackable("too large", f"It has {len(body):,} bytes; at most {BYTES_MAX:,} are read.")
    if not codec:
        return body
    if codec != CODEC:
        raise Unpackable("unknown compression", f"Its compression {str(codec)[:80]!r} is none that is used here.")
    most = min(BYTES_MAX, len(body) * RATIO_MAX)
    try:
        # The frame says how much it holds, if it cares to.
        if (zstd.get_frame_info(body).decompressed_size or 0) > most:
            raise Unpackable("decompression bomb", f"{len(body):,} bytes say that they hold more than {most:,}.")
        decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
        plain = decompressor.decompress(body, max_length=most + 1)
    except zstd.ZstdError as error:
        raise Unpackable("broken compression", f"Its body cannot be decompressed: {error}"[:300]) from error
    if len(plain) > most:
        raise Unpackable("decompression bomb", f"{len(body):,} bytes decompress to more than {most:,}.")
    if not decompressor.eof or decompressor.unused_data:
        raise Unpackable("broken compression", "Its body is cut off, or something follows it.")
    return plain


def _bounded(codec: str) -> None:
    encode, _ = compression.get_encoder(codec)
    compression.register(encode, lambda body: unpack(codec, body), codec)


for _codec in compression.encoders():
    _bounded(_codec)


# The header of a message whose headers and properties cannot be read: the reason, and their first bytes.
UNREADABLE_HEADER = "bankcore-unreadable"
UNREADABLE_BYTES_KEPT = 4096

_load_properties = AmqpMessage._load_properties


def _load_what_can_be_read(message: Any, class_id: int, buffer: Any, offset: int) -> int:
    try:
        return int(_load_properties(message, class_id, buffer, offset))
    except Exception as error:
        kept = bytes(buffer[offset : offset + UNREADABLE_BYTES_KEPT])
        told = {"why": f"{type(error).__name__}: {error}"[:300], "bytes": kept}
        message.properties = {"application_headers": {UNREADABLE_HEADER: told}}
        return len(buffer)


AmqpMessage._load_properties = _load_what_can_be_read


def keep_bytes(channel: Any) -> None:
    """Let messages of this channel remember their body as it came over the wire, as `as_it_came`."""
    # py-amqp would make text of it, by an encoding that the message names.
    channel.auto_decode = False
    kind = channel.Message

    class AsItCame(kind):  # type: ignore[misc, valid-type]
        def __init__(self, raw: Any, *args: Any, **options: Any) -> None:
            super().__init__(raw, *args, **options)
            if isinstance(raw, dict):
                # The virtual transports carry text inside JSON.
                wire = channel.decode_body(raw.get("body"), (raw.get("properties") or {}).get("body_encoding"))
            else:
                wire = raw.body
            self.as_it_came = wire.encode("utf-8", "replace") if isinstance(wire, str) else bytes(wire or b"")

    channel.Message = AsItCame
