"""Movies: random access to frames, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import bisect
import contextlib
import functools
import heapq
import itertools
import os
import re
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError, missing_file, unreadable
from video_diffusion_pytorch.data.formats.pictures import to_mode, with_channels
from video_diffusion_pytorch.data.formats.readers import (
    CHANNELS_TO_MODE,
    VideoReader,
    decoding,
    family_of_name,
    mode_of,
    open_file,
)

if TYPE_CHECKING:
    from PIL.Image import Image


_MP4_BOXES = (
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip"),
    *(b"udta", b"uuid", b"wide", b"pnot", b"meta", b"prft", b"emsg", b"pdin"),
)
_MKV_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """Number of bytes missing at the end of a truncated movie file.

    FFmpeg plays such a file up to its end, as if it were a shorter one.

    Args:
        path: A file whose signature fits its name.

    Returns:
        A lower bound; 0 if the file is complete, or does not state its length (as recordings of
        live streams in mkv).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "cut.avi")
        ...     _ = file.write_bytes(struct.pack("<4sI4s", b"RIFF", 104, b"AVI "))
        ...     missing_bytes(file)
        100
    """
    walks = {"mp4": _end_of_mp4, "mkv": _end_of_mkv, "avi": _end_of_avi}
    with open_file(path) as file:
        total = os.fstat(file.fileno()).st_size
        return max(walks[family_of_name(path) or ""](file, total) - total, 0)


def _end_of_mp4(file: BinaryIO, total: int) -> int:
    """Walks the boxes (ISO/IEC 14496-12, section 4.2), up to the first unknown one."""
    position = 0
    while position < total:
        file.seek(position)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if len(kind) == 4 and (size == 0 or kind not in _MP4_BOXES):  # up to the end of the file
            return total
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        position += max(size, 8)
    return position


def _end_of_mkv(file: BinaryIO, total: int) -> int:
    """Adds up the EBML header and the segment (RFC 8794, section 6)."""

    def number(position: int) -> tuple[int | None, int]:
        """A size of 1 to 8 bytes, None if unknown, and where it ends."""
        file.seek(position)
        first = file.read(1)
        if not first or not first[0]:
            return None, position + 1
        length = 9 - first[0].bit_length()
        value = int.from_bytes(first + file.read(length - 1), "big") - (1 << 7 * length)
        return (None if value == (1 << 7 * length) - 1 else value), position + length

    size, position = number(4)
    position += size or 0
    if position > total:  # perhaps beyond what a file system can seek to
        return position
    file.seek(position)
    if size is None or file.read(4) != _MKV_SEGMENT:
        return position + 4  # beyond the end only where the header is cut
    size, position = number(position + 4)
    return position + (size or 0)


def _end_of_avi(file: BinaryIO, total: int) -> int:
    """Walks the RIFF chunks: files of more than a gigabyte have several."""
    position = 0
    while position < total:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF" or len(header) < 8:
            break
        size = struct.unpack("<I", header[4:])[0]
        position += 8 + size + size % 2
    return position


_FRAME = b"\0\0\1\xb6"
_B = 2
_MOST_OF_A_REPEAT = 64  # bytes


def in_frames(packets: Iterable[Any], stream: Any) -> Iterator[Any]:
    """Splits packets of two MPEG-4 frames, and sets their time stamps.

    An avi has no time stamps but counts packets, and some encoders put a frame and the B-frame that
    refers to it into one packet, and a placeholder into the next ("packed B-frames").

    Args:
        packets: As demuxed, from a keyframe on.
        stream: PyAV's stream.

    Yields:
        Packets of one frame each; empty ones unchanged.
    """
    from av.bitstream import BitStreamFilterContext

    unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    is_reordered = stream.codec_context.has_b_frames
    # A frame that others refer to is shown when the next such frame is decoded
    held: list[Any] = []
    for packet in packets:
        for single in unpack.filter(packet) if packet.size else [packet]:
            single.stream = stream
            if not is_reordered:
                yield single
                continue
            if single.size and _kind(bytes(single)) != _B:
                if held:
                    held[0].pts = single.dts
                yield from held
                held = [single]
            else:
                single.pts = single.dts
                held.append(single)
    if held and held[0].size:
        held[0].pts = max(packet.dts or 0 for packet in held) + (held[0].duration or 1)
    yield from held


def is_coded(packet: Any) -> bool:
    """Whether an MPEG-4 packet holds a frame, rather than a repeat of the one before.

    Args:
        packet: One of `in_frames`.
    """
    if packet.size > _MOST_OF_A_REPEAT:
        return True
    bits = _bits_behind(_FRAME, bytes(packet))
    length = _bits_of_time(packet.stream.codec_context.extradata or b"")
    # its kind, a 1 for each second, 0, 1, a time within the second, 1, and whether it is coded
    seconds = bits.find("0", 2)
    coded = bits[seconds + length + 3 : seconds + length + 4]
    return not length or seconds < 0 or coded != "0"


def _kind(data: bytes) -> int:
    return int(_bits_behind(_FRAME, data)[:2] or "0", 2)


@functools.lru_cache(maxsize=64)
def _bits_of_time(header: bytes) -> int:
    """Number of bits of a frame's time, by the layer's header; 0 if unknown (ISO/IEC 14496-2)."""
    start = re.search(rb"\x00\x00\x01[\x20-\x2f]", header)
    bits = _bits_behind(start.group(), header) if start else ""
    place = 9  # after the flag for random access, and the type
    place += 8 if bits[place : place + 1] == "1" else 1
    place += 20 if bits[place : place + 4] == "1111" else 4  # the shape of pixels
    if bits[place : place + 1] == "1":  # control parameters
        place += 83 if bits[place + 4 : place + 5] == "1" else 4
    shape, resolution = bits[place + 1 : place + 3], bits[place + 4 : place + 20]
    is_plain = shape == "00" and len(resolution) == 16
    return max(1, (int(resolution, 2) - 1).bit_length()) if is_plain else 0


def _bits_behind(start: bytes, data: bytes) -> str:
    place = data.find(start)
    part = data[place + len(start) :][:32] if place >= 0 else b""
    return "".join(f"{byte:08b}" for byte in part)


EXPECTED = "a complete movie"
"""The part of an error's message that says what was expected."""

_REORDERING = ("h264", "hevc")
_MOST_LEADING = 32  # twice as many frames as these codecs reorder
_DEMUXERS = {"mp4": "mov", "mkv": "matroska", "avi": "avi"}


class Movie(NamedTuple):
    """An opened movie file.

    Attributes:
        path: The file.
        container: PyAV's object for the file.
        stream: For the video in it.
        decoder: For its codec.
    """

    path: Path
    container: Any
    stream: Any
    decoder: Any


class MovieIndex(NamedTuple):
    """The frames that a movie displays.

    Attributes:
        pts: When each frame is displayed, in units of `time_base`, ascending; empty if the file
            does not say, or says the same of two frames.
        keyframes: Those of these times at which decoding can begin, ascending; empty if decoding
            has to begin with the file.
        num_frames: Number of displayed frames.
        time_base: Seconds per unit of time.
        end: When the last frame stops being displayed; None if unknown.
        palettes: The times at which the palette changes, ascending, and the palettes.
    """

    pts: array[int]
    keyframes: array[int]
    num_frames: int
    time_base: Fraction
    end: int | None = None
    palettes: tuple[list[int], list[Any]] = ([], [])


@contextlib.contextmanager
def open_movie(path: Path) -> Iterator[Movie]:
    """Opens a movie file for demuxing.

    FFmpeg gets the opened file, and the container format is set by the name's extension, so that
    the content of the file cannot make it open other files or addresses.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: It holds no video, or frames larger than Pillow's limit.
    """
    import av
    from PIL import Image as pillow

    limit = pillow.MAX_IMAGE_PIXELS or 2**31 - 1
    # Compare checksums, and report syntax errors of the codec
    options = {"max_pixels": str(limit), "err_detect": "crccheck+bitstream+buffer"}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        with _decoding(path):
            demuxer = _DEMUXERS[family_of_name(path) or ""]
            container = stack.enter_context(
                av.open(file, format=demuxer, options=options, metadata_errors="replace")
            )
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        _check_streams(path, streams, limit)
        with _decoding(path):
            decoder = _decoder(streams[0], options)
        yield Movie(path, container, streams[0], decoder)


def _check_streams(path: Path, streams: list[Any], limit: int) -> None:
    if not streams:
        raise unreadable(path, EXPECTED, "a file without video", "remove it")
    context = streams[0].codec_context
    if context is None or context.format is None:
        advice = "convert it, for example with ffmpeg"
        raise unreadable(path, EXPECTED, "a video that FFmpeg cannot decode", advice)
    if context.width * context.height > limit:
        got = f"frames of {context.width} x {context.height} pixels"
        raise unreadable(path, EXPECTED, got, "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS")


def _decoder(stream: Any, options: dict[str, str]) -> Any:
    """The decoder of a stream, in one thread: there are many processes that load data already."""
    import av

    decoder: Any = stream.codec_context
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if decoder.name in ("vp8", "vp9") and tags.get("alpha_mode") == "1":
        # FFmpeg's own decoders ignore the second picture, which holds the opacity
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[decoder.name], "r")
        decoder.pix_fmt = "yuva420p"
    is_raw = decoder.name == "rawvideo" and decoder.pix_fmt == "bgra"
    if is_raw and decoder.codec_tag == "\0\0\0\0":  # Windows leaves the fourth byte void
        decoder.pix_fmt = "bgr0"
    decoder.options = options
    decoder.thread_count = 1
    return decoder


def _decoding(path: Path) -> contextlib.AbstractContextManager[None]:
    """Converts exceptions of PyAV to errors of the file."""
    import av

    return decoding(path, EXPECTED, damage=(av.FFmpegError, MemoryError))


def packets_of(movie: Movie, *, with_empty: bool = False) -> Iterator[Any]:
    """The packets of a movie from its current position to its end.

    Those before the first keyframe are left out: no decoder can show them.

    Args:
        movie: The opened movie.
        with_empty: Include packets without a byte, which prolong the frame before.

    Raises:
        UnreadableVideoError: A packet is damaged or missing.
    """
    started = False
    with _decoding(movie.path):
        packets = movie.container.demux(movie.stream)
        if movie.stream.container.format.name == "avi" and movie.decoder.name == "mpeg4":
            packets = in_frames(packets, movie.stream)
        for packet in packets:
            if not packet.size:
                if with_empty and started and packet.dts is not None:  # not the end
                    yield packet
                continue
            if packet.is_corrupt:
                raise unreadable(movie.path, EXPECTED, f"a damaged packet at byte {packet.pos}")
            started = started or packet.is_keyframe
            if started:
                yield packet


def is_shown(packet: Any) -> bool:
    """Whether a packet's frame is displayed, rather than only a reference of others."""
    if packet.is_discard:  # removed by an edit list
        return False
    name = packet.stream.codec_context.name
    if name == "mpeg4":
        return is_coded(packet)
    # VP8 has hidden reference frames in packets of their own, with a flag in the first byte
    return name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def time_of(packet: Any) -> int | None:
    """When a packet's frame is displayed; None if the file does not say."""
    stream = packet.stream
    # An avi only counts packets, of which FFmpeg derives wrong times where frames are reordered
    is_guess = stream.container.format.name == "avi" and stream.codec_context.name in _REORDERING
    return None if is_guess else packet.pts


def _is_before(time: int | None, first: int | None) -> bool:
    """Whether a frame is displayed before the keyframe at which decoding began."""
    return time is not None and first is not None and time < first


def movie_index(path: Path) -> MovieIndex:
    """Lists the frames of a movie, for which the whole file is read.

    The lists of the movies used last stay in memory for as long as the file does not change; 10
    bytes per frame, or 10 MB for 10 hours at 30 frames per second.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: The file is damaged.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    return _read_index(path.absolute(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _read_index(path: Path, size: int, modified: int) -> MovieIndex:
    times: list[int | None] = []
    decoded: list[int | None] = []
    keyframes: list[int | None] = []
    palettes: tuple[list[int], list[Any]] = ([], [])
    first: int | None = None
    last, extra = (-1, 0), 0
    with open_movie(path) as movie:
        for packet in packets_of(movie, with_empty=True):
            if not packet.size:
                extra += packet.duration or 0
                continue
            time = time_of(packet)
            first = time if first is None else first
            if packet.is_keyframe:
                keyframes.append(time)
            palette = packet.get_sidedata("palette") if packet.has_sidedata("palette") else None
            if palette and (not palettes[1] or bytes(palette) != bytes(palettes[1][-1])):
                palettes[0].append(time or 0)
                palettes[1].append(palette)
            if is_shown(packet) and not _is_before(time, first):
                times.append(time)
                decoded.append(packet.dts)
                order = packet.dts if time is None else time
                last = max(last, (order or 0, packet.duration or 0))
            extra = 0
        time_base = movie.stream.time_base or Fraction(1)
        duration = movie.stream.duration
    if None in times and None not in decoded:
        times, keyframes = _times_of_decoding(path, decoded, last[1] or 1), []
    known = {time for time in times if time is not None}
    starts = {time for time in keyframes if time is not None}
    is_clear = len(known) == len(times) and len(starts) == len(keyframes)
    pts = array("q", sorted(known) if is_clear else [])
    end = pts[-1] + last[1] + extra if pts and last[1] else None
    if end and duration and pts[-1] < pts[0] + duration < end:  # an edit list cuts the last one
        end = pts[0] + duration
    starts = starts if pts else set()
    return MovieIndex(pts, array("q", sorted(starts)), len(times), time_base, end, palettes)


def _times_of_decoding(path: Path, decoded: list[Any], duration: int) -> list[int | None]:
    """The display times of frames of which only the decoding times are known.

    A decoder delays its output by the number of frames that it may reorder, and then returns one
    frame per packet. The first packets are decoded to find this number, and that of the frames
    after the first keyframe that refer to frames before it, as in a file cut out of a longer one:
    they are never displayed.
    """
    shown: set[int] = set()
    with open_movie(path) as movie:
        packets = itertools.islice(packets_of(movie), _MOST_LEADING)
        with contextlib.suppress(UnreadableVideoError), _decoding(path):
            for number, packet in enumerate(itertools.chain(packets, [None])):
                if packet is not None:
                    packet.pts = number
                shown.update(frame.pts for frame in movie.decoder.decode(packet))
        delay = movie.decoder.reorder_depth
    lost = min(shown - {0}, default=1) - 1
    later = [decoded[-1] + duration * number for number in range(1, delay + 1)]
    return [*decoded, *later][delay + lost :]


# Of FFmpeg's AVColorTransferCharacteristic and AVColorPrimaries
_BT2020, _PQ, _HLG = 9, 16, 18
_WHITE = 203.0  # cd/m2
_BT2020_TO_BT709 = (  # ITU-R BT.2087
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)


def channels_of_format(pixel_format: Any) -> int:
    """Number of channels of a movie's pixels: 1, 3, or 4 with opacity.

    Args:
        pixel_format: PyAV's `VideoFormat`.

    Example:
        >>> import av
        >>> [channels_of_format(av.VideoFormat(name)) for name in ("gray10le", "yuva420p")]
        [1, 4]
    """
    if pixel_format.name.startswith(("gray", "mono")):
        return 1
    return 4 if any(part.is_alpha for part in pixel_format.components) else 3


def is_measured(pixel_format: Any) -> bool:
    """Whether pixels are grey or RGB values of more than 8 bits, as from a microscope.

    Args:
        pixel_format: PyAV's `VideoFormat`.

    Example:
        >>> import av
        >>> [is_measured(av.VideoFormat(name)) for name in ("gray10le", "gbrp16le", "yuv420p10le")]
        [True, True, False]
    """
    from av.video.frame import supported_np_pix_fmts

    is_grey = pixel_format.name.startswith("gray")
    is_deep = max(part.bits for part in pixel_format.components) > 8
    is_known = pixel_format.name in supported_np_pix_fmts and not pixel_format.is_bayer
    return is_known and is_deep and (is_grey or pixel_format.is_rgb)


@functools.cache
def _may_be_transparent(name: str) -> bool:
    from av import VideoFormat

    pixel_format = VideoFormat(name)
    return pixel_format.has_palette or channels_of_format(pixel_format) == 4


def square_width(frame: Any, shape: Fraction | None, path: Path) -> int:
    """Width of a frame that is scaled so that its pixels are square, at the same height.

    Args:
        frame: PyAV's `VideoFrame`.
        shape: Width of a pixel by its height; None or 0 if unknown.
        path: The file, for the error.

    Raises:
        UnreadableVideoError: The frame would be larger than Pillow's limit.
    """
    from PIL import Image as pillow

    if shape is None or shape == 1 or shape <= 0:
        return int(frame.width)
    width = max(1, round(frame.width * shape))
    if width * frame.height > max(pillow.MAX_IMAGE_PIXELS or 2**31 - 1, frame.width * frame.height):
        got = f"pixels {shape} times as wide as high, for frames of {frame.width} x {frame.height}"
        advice = "pass square_pixels=False to ignore it"
        raise unreadable(path, "pixels that are nearly square", got, advice)
    return width


def picture_of(
    frame: Any, channels: int, path: Path, reformatter: Any, width: int | None = None
) -> Image:
    """Converts a frame to 8 bits, and rotates it as the file says.

    HDR (PQ or HLG) and BT.2020 colours are converted to BT.709: luminance up to the reference
    white of 203 cd/m2 is kept, and highlights above it are clipped (ITU-R BT.2408).

    Args:
        frame: PyAV's `VideoFrame`.
        channels: 1, 3 or 4. With 1 and 3, frames with opacity are composed on black.
        path: The file, for the error.
        reformatter: PyAV's `VideoReformatter`, the same for all frames of a movie: a new one takes
            longer than the conversion of a small frame.
        width: Target width, before rotation; None for that of the frame.

    Raises:
        UnreadableVideoError: The rotation is not by a multiple of 90 degrees.
    """
    from PIL import Image as pillow

    is_hdr = frame.color_trc in (_PQ, _HLG) or frame.color_primaries == _BT2020
    if _may_be_transparent(frame.format.name):
        name = "rgba"
    else:
        name = "gray" if channels == 1 and not is_hdr else "rgb24"
    if is_hdr:
        deep = {"rgb24": "gbrp10le", "rgba": "gbrap10le"}[name]
        pixels = reformatter.reformat(frame, width=width, format=deep).to_ndarray()
        pixels = _standard_range(pixels, frame.color_trc, frame.color_primaries)
    elif frame.format.name in ("yuva420p", "yuva422p") and width in (None, frame.width):
        # FFmpeg 8 leaves the opacity of the last columns undefined, or takes it from other rows
        colours = reformatter.reformat(frame, format="rgb24").to_ndarray()
        plane = frame.planes[3]
        opacity = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
        pixels = np.dstack([colours, opacity])
    else:
        pixels = reformatter.reformat(frame, width=width, format=name).to_ndarray()
    picture = pillow.fromarray(_upright(pixels, frame, path))
    mode = CHANNELS_TO_MODE[channels]
    return picture if picture.mode == mode else to_mode(picture, mode)


def values_of(
    frame: Any, channels: int, path: Path, reformatter: Any, width: int | None = None
) -> torch.Tensor:
    """The values that a frame stores, `(c, h, w)` float32, rotated as the file says.

    Args:
        frame: PyAV's `VideoFrame`, of which `is_measured` is true.
        channels: As for `picture_of`.
        path: As for `picture_of`.
        reformatter: As for `picture_of`.
        width: As for `picture_of`.

    Raises:
        UnreadableVideoError: As `picture_of`.
    """
    if not is_measured(frame.format):
        got = f"frames of {frame.format.name} between others"
        raise unreadable(path, "frames of one kind of pixels", got)
    pixels = reformatter.reformat(frame, width=width).to_ndarray().astype(np.float32)
    pixels = _upright(pixels.reshape(*pixels.shape[:2], -1), frame, path)
    if frame.format.name.startswith("bgr"):
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    most = 1.0 if "f" in frame.format.name else 2.0 ** frame.format.components[0].bits - 1
    values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return with_channels(values, channels, most)


def _standard_range(pixels: np.ndarray, curve: int, primaries: int) -> np.ndarray:
    """Converts pixels `(h, w, 3 or 4)` of 10 bits to BT.709 of 8 bits."""
    light = _light(curve)[pixels[..., :3]]
    if curve == _HLG:  # a display of 1000 cd/m2, to which the curve of a scene belongs
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= luminance[..., None] ** np.float32(0.2) * np.float32(1000 / _WHITE)
    if primaries == _BT2020:
        light = light @ np.array(_BT2020_TO_BT709, np.float32).T
    colours = 255 * np.clip(light, 0, 1, out=light) ** np.float32(1 / 2.4)
    opacity = pixels[..., 3:] * np.float32(255 / 1023)
    return np.concatenate([colours, opacity], axis=2).round().astype(np.uint8)


@functools.cache
def _light(curve: int) -> np.ndarray:
    """The light of each 10-bit code, `(1024,)`, in units of the reference white.

    For HLG the light of the scene, from 0 to 1 (ITU-R BT.2100); BT.1886 for standard range.
    """
    code = np.minimum(np.arange(1024) / 1020, 1)  # FFmpeg makes 1020 of the white of YUV
    if curve == _PQ:
        power = code ** (32 / 2523)
        above, below = np.maximum(power - 3424 / 4096, 0), 2413 / 128 - 2392 / 128 * power
        light = (above / below) ** (16384 / 2610) * (10000 / _WHITE)
    elif curve == _HLG:
        bright = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(code <= 0.5, code**2 / 3, bright)
    else:
        light = code**2.4
    return light.astype(np.float32)


def _upright(pixels: np.ndarray, frame: Any, path: Path) -> np.ndarray:
    """Rotates pixels `(h, w, ...)` by a frame's display matrix.

    It displays the pixel (x, y) at (a x + c y, b x + d y), y downwards.
    """
    matrix = _side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if [a == 0, b == 0, c == 0, d == 0] not in ([0, 1, 1, 0], [1, 0, 0, 1]):
        got = f"a display matrix of {a}, {b}, {c}, {d} in units of 1/65536"
        advice = "rotate the frames themselves, with a video editor"
        raise unreadable(path, "frames rotated by multiples of 90 degrees", got, advice)
    if b:
        pixels = pixels.swapaxes(0, 1)
    if min(a, c) < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if min(b, d) < 0 else pixels


def _side_data(frame: Any) -> Any:
    """The side data of a frame, without the types that PyAV does not know, such as EXIF."""
    from av.filter import Graph

    try:
        return frame.side_data
    except ValueError as error:  # "31 is not a valid Type"
        graph, kind = Graph(), int(str(error).split()[0])
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    remove = graph.add("sidedata", f"mode=delete:type={kind}")
    graph.link_nodes(source, remove, graph.add("buffersink")).configure()
    graph.push(frame)
    return _side_data(graph.pull())


# Frames that are decoded and dropped rather than looking up the next keyframe
_WORTH_AN_INDEX = 32


class MovieReader(VideoReader):
    """Frames of a movie, decoded by FFmpeg.

    A frame is found by seeking the last keyframe before it and decoding from there; it is the same,
    bit for bit, as when all frames are decoded in order.

    Args:
        path: The file; it stays open until `close`.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the file stores.
        square_pixels: Scale the width if the file says that its pixels are not square.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: The file is truncated, damaged, or holds no video.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(
        self, path: Path, channels: int | None = None, *, square_pixels: bool = True
    ) -> None:
        from av.video.reformatter import VideoReformatter

        if channels is not None:
            mode_of(channels)
        if missing := missing_bytes(path):
            raise unreadable(path, EXPECTED, f"a file cut short by at least {missing} bytes")
        self.path, self._square_pixels = path, square_pixels
        self._reformatter = VideoReformatter()
        self._open_file = contextlib.ExitStack()
        # The position of the decoder: an iterator of the next frames, and the number of the first
        self._movie: Movie
        self._frames: Iterator[Any]
        self._next: int
        self._began_midway: bool
        self._restart()
        pixels = self._movie.decoder.format
        self.is_array = is_measured(pixels)
        super().__init__(path, channels or channels_of_format(pixels))

    @property
    def num_frames(self) -> int:
        """Number of frames, without those that an edit list removes."""
        return self._index.num_frames

    @property
    def fps(self) -> float | None:
        """Average frames per second."""
        stream = self._movie.stream
        rate = stream.average_rate or stream.guessed_rate
        return float(rate) if rate else None

    @property
    def times(self) -> Sequence[float]:
        """When each frame is displayed, in seconds after the first.

        Raises:
            UnreadableVideoError: The file does not say.
        """
        index = self._index
        if index.pts:
            return _seconds(index, index.pts)
        if not self.fps and index.num_frames != 1:
            expected = "a movie that says when its frames are displayed"
            advice = "choose frames by number, or convert it, for example with ffmpeg"
            raise unreadable(self.path, expected, "one without times or rate", advice)
        return [number / (self.fps or 1) for number in range(index.num_frames)]

    @property
    def end(self) -> float | None:
        """When the last frame stops being displayed, in seconds after the first, if known."""
        index = self._index
        if index.pts:
            return None if index.end is None else _seconds(index, [index.end])[0]
        return index.num_frames / self.fps if self.fps else None

    @property
    def _index(self) -> MovieIndex:
        return movie_index(self.path)

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        super().close()
        self._open_file.close()

    def _frame(self, index: int) -> Any:
        frame = self._decoded(index)
        if frame is None:
            return None
        convert = values_of if self.is_array else picture_of
        shape = self._movie.stream.sample_aspect_ratio if self._square_pixels else None
        with _decoding(self.path):
            width = square_width(frame, shape, self.path)
            return convert(frame, self.channels, self.path, self._reformatter, width)

    def _decoded(self, number: int) -> Any:
        """PyAV's frame of this number; None past the end."""
        if not self._next <= number <= self._next + _WORTH_AN_INDEX:
            if number >= self.num_frames:
                return None
            self._approach(number)
        while True:
            try:
                for frame in self._frames:
                    self._next += 1
                    if self._next > number:
                        return frame
                return None
            except UnreadableVideoError:
                # After some frames that are marked as keyframes decoding takes a while to be right
                may_retry = self._began_midway
                self._restart()
                if not may_retry:
                    raise

    def _approach(self, number: int) -> None:
        """Seeks the last keyframe before a frame, unless the decoder is already past it."""
        index = self._index
        if not index.keyframes:  # a file without time stamps is decoded in order
            if number < self._next:
                self._restart()
            return
        keyframe = index.keyframes[bisect.bisect_right(index.keyframes, index.pts[number]) - 1]
        if self._next <= number and bisect.bisect_left(index.pts, keyframe) <= self._next:
            return
        with _decoding(self.path):
            self._movie.container.seek(keyframe, stream=self._movie.stream)
            self._movie.decoder.flush_buffers()
        packets = packets_of(self._movie)
        first = next(packets, None)
        if first is None or first.pts is None or first.pts > keyframe:
            self._restart()
        else:
            since, palettes = index.palettes
            if palettes:  # said only where it changes
                first.set_sidedata(palettes[max(bisect.bisect_right(since, first.pts) - 1, 0)])
            self._frames = _decode(self._movie, itertools.chain([first], packets))
            self._next = bisect.bisect_left(index.pts, first.pts)
            self._began_midway = True

    def _restart(self) -> None:
        self._open_file.close()
        self._movie = self._open_file.enter_context(open_movie(self.path))
        self._frames = _decode(self._movie, packets_of(self._movie))
        self._next = 0
        self._began_midway = False


def _seconds(index: MovieIndex, times: Iterable[int]) -> list[float]:
    first, (numerator, denominator) = index.pts[0], index.time_base.as_integer_ratio()
    return [(time - first) * numerator / denominator for time in times]


def _decode(movie: Movie, packets: Iterable[Any]) -> Iterator[Any]:
    """Decodes packets from a keyframe on, and checks that each yields its frame in order."""
    first: int | None = None
    due: list[int] = []  # a heap: the times, or else the numbers, of the frames yet to come
    is_dated = True
    for number, packet in enumerate(itertools.chain(packets, [None])):
        if packet is not None:
            time = time_of(packet)
            is_dated = is_dated and time is not None
            if time is None or not is_dated:
                time = packet.pts = number
            first = time if first is None else first
            if is_shown(packet) and not (is_dated and _is_before(time, first)):
                heapq.heappush(due, time)
        for frame in _frames_of(movie, packet):
            if is_dated and _is_before(frame.pts, first):
                continue  # refers to frames before the keyframe, and cannot be right
            if frame.is_corrupt:
                raise unreadable(movie.path, EXPECTED, f"a damaged frame at {frame.time} s")
            if not due or (is_dated and due[0] != frame.pts):
                raise unreadable(movie.path, EXPECTED, f"damaged frames before {frame.time} s")
            if is_dated or frame.pts not in due:
                heapq.heappop(due)
            else:
                due.remove(frame.pts)
            yield frame
    # The first frames of a file cut out of a longer one may refer to what came before
    if due and (is_dated or sorted(due) != list(range(1, len(due) + 1))):
        raise unreadable(movie.path, EXPECTED, f"{len(due)} frames that cannot be decoded")


def _frames_of(movie: Movie, packet: Any) -> list[Any]:
    import av

    with _decoding(movie.path):
        try:
            return movie.decoder.decode(packet)
        except av.EOFError:
            return []
